"""Text generation: rounds over TorchServe's continuous batching, with an engine that is an ASGI application."""
