"""Generating text: the same engines behind their own servers and behind TorchServe, and the seed's service."""
