"""Starts TorchServe with this repository's configuration, and ends it without dropping a request."""
