"""A child process that ends when its parent does, however that happens."""

from __future__ import annotations

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1  # sys/prctl.h


def own_session() -> None:
    """Runs in the child: Ctrl-C in the terminal reaches the parent only, whose end is a SIGTERM to the child."""
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
