"""A directory of its own for each server: unpacked archives, sockets, the configuration as it was written."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from serving.errors import CannotServe

PREFIX = "torchserve-"
LOCK = ".lock"  # held while the directory is in use; a lock ends with its process, however that ends
OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # what lies there under that name may be anything


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """Makes the directory, and removes it; before that, what killed servers have left."""
    parent = Path(os.environ.get("TEMP") or tempfile.gettempdir())
    try:
        remove_stale(parent)
        scratch, lock = _locked_directory(parent)
    except OSError as err:
        raise CannotServe(f"no temporary directory could be made: {err}") from err
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


def private_directory(scratch: Path) -> Path:
    """A place in it for the gateway, whose maps hold hashes of keys."""
    folder = scratch / "gateway"
    folder.mkdir(0o700)
    return folder


def remove_stale(parent: Path) -> None:
    """Removes directories of ours whose lock nobody holds."""
    for lock_path in parent.glob(f"{PREFIX}*/{LOCK}"):
        with suppress(OSError):  # it is in use, or no lock
            if lock_path.parent.lstat().st_uid != os.getuid():
                continue  # anybody may put anything into /tmp
            lock = os.open(lock_path, OPEN)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock_path.parent, ignore_errors=True)
            finally:
                os.close(lock)


def _locked_directory(parent: Path) -> tuple[Path, int]:
    while True:
        scratch = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = os.open(scratch / LOCK, OPEN | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if scratch.exists():
            return scratch, lock
        os.close(lock)  # until it was locked, another start could take it for stale
