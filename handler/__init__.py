"""What runs inside a TorchServe worker; this package travels in every archive.

It is imported as `from handler.x import y`, in the repository and in the archive alike: modules laid flat at
the archive's root would be shadowed by TorchServe's own (`ts/` is the worker's first import path).
"""
