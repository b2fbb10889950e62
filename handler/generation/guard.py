"""Run as a program: looks who descends from a worker, and kills them all when its standard input ends.

A process's standard input ends when the last one that could write to it is gone, however it went.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

LOOK_SECONDS = 0.5  # an engine that is being loaded starts processes
SELDOM_SECONDS = 10.0  # one that serves hardly does, and a look takes milliseconds where there are many threads
SLOWING = 1.05  # from one look to the next: they are ten seconds apart after three minutes
# In the environment of a worker's processes, by which those are found that it started after the last look. Older
# ones have written their names over it (setproctitle).
MARK = "GENERATION_GUARD"


def guard() -> subprocess.Popen[bytes]:
    """Starts the guard of all processes that this one has and will have: they end when it does."""
    mark = f"{os.getpid()}-{time.time_ns()}"
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(os.getpid()), mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if name != MARK},  # of a guard before this one
    )
    os.environ[MARK] = mark
    return process


def descendants(pid: int) -> Iterator[int]:
    """Children, theirs, and so on (proc(5), /proc/pid/task/tid/children)."""
    with contextlib.suppress(OSError):  # a process, or a thread, that has ended meanwhile
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                for child in map(int, file.read().split()):
                    yield child
                    yield from descendants(child)


def marked(mark: str) -> Iterator[int]:
    """Handles of the processes that have it in their environment (proc(5), /proc/pid/environ)."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # another user's, or one that has ended
            handle = os.pidfd_open(int(path.parent.name))
            if f"{MARK}={mark}".encode() in path.read_bytes().split(b"\0"):
                yield handle
            else:
                os.close(handle)


def watch(worker: int, mark: str) -> None:
    """Returns when standard input has ended, and nobody of the worker's is left."""
    handles: dict[int, int] = {}  # unlike a number, a handle never means another process
    pause = LOOK_SECONDS
    while not select.select([sys.stdin], [], [], pause)[0]:
        pause = min(pause * SLOWING, SELDOM_SECONDS)
        for pid in {*descendants(worker)} - handles.keys() - {os.getpid()}:
            with contextlib.suppress(ProcessLookupError):
                handles[pid] = os.pidfd_open(pid)
        ended = select.select(list(handles.values()), [], [], 0)[0]  # a handle can be read once its process has
        for handle in ended:
            os.close(handle)
        handles = {pid: handle for pid, handle in handles.items() if handle not in ended}
    for handle in (*handles.values(), *marked(mark)):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)


if __name__ == "__main__":
    watch(int(sys.argv[1]), sys.argv[2])
