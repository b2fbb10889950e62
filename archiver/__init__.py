"""Builds, inspects and verifies the archives that TorchServe serves.

A recipe (what to build) becomes members (what is packed), which become an archive, which is opened the way a
worker opens it before it takes its place. Neither torch nor transformers is imported here.
"""
