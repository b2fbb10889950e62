"""What stands in front of TorchServe: HAProxy, told by a table of routes, a configuration and docker/gateway/."""
