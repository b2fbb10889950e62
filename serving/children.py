"""Child processes: they end when their parent does, and leave no zombie."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Collection
from contextlib import suppress

PR_SET_PDEATHSIG = 1  # sys/prctl.h


def own_session() -> None:
    """Runs in the child: Ctrl-C in the terminal reaches the parent only, whose end is a SIGTERM to the child."""
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def reap(ours: Collection[int]) -> None:
    """Buries children that are not ours but were left to us: process 1 inherits every orphan of a container."""
    with suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if ended.si_pid in ours:
                return  # its status is for subprocess
            os.waitpid(ended.si_pid, 0)
