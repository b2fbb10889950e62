"""Run as a program: waits until standard input ends, then kills the processes whose handles are its arguments.

A process's standard input ends when the last one that could write to it is gone, however it went.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from os import close, pidfd_open


def guard(pids: Sequence[int]) -> subprocess.Popen[bytes]:
    """Starts the guard of these processes. They end when this one does, or what is returned is let go."""
    handles = [pidfd_open(pid) for pid in pids]  # unlike a number, a handle never means another process
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, *map(str, handles)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=handles,
        )
    finally:
        for handle in handles:
            close(handle)


if __name__ == "__main__":
    sys.stdin.read()
    for handle in sys.argv[1:]:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(int(handle), signal.SIGKILL)
