"""A directory of its own for each server: unpacked archives, sockets, the configuration as it was written."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.errors import CannotServe

PREFIX = "torchserve-"
LOCK = ".lock"  # held while the directory is in use; a lock ends with its process, however that ends


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """Makes the directory, and removes it; before that, what killed servers have left."""
    parent = Path(os.environ.get("TEMP") or tempfile.gettempdir())
    try:
        remove_stale(parent)
        scratch = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = (scratch / LOCK).open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as err:
        raise CannotServe(f"no temporary directory could be made: {err}") from err
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        lock.close()


def private_directory(scratch: Path) -> Path:
    """A place in it for the gateway, whose maps hold hashes of keys."""
    folder = scratch / "gateway"
    folder.mkdir(0o700)
    return folder


def remove_stale(parent: Path) -> None:
    """Removes directories whose lock nobody holds."""
    for lock_path in parent.glob(f"{PREFIX}*/{LOCK}"):
        try:
            with lock_path.open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock_path.parent, ignore_errors=True)
        except OSError:
            continue  # it is in use, or somebody else's
