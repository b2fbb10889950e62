"""Whether TorchServe's frontend, which has started this worker, may have a round for it that is on its way."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

ASLEEP = "SZX"  # proc_pid_stat(5): it sleeps, or has ended


def may_have_a_round() -> bool:
    """Whether a thread of the frontend, or the one here that rounds come to, runs or waits for a core."""
    here = Path(f"/proc/self/task/{os.getpid()}/stat")
    threads = Path(f"/proc/{os.getppid()}/task").glob("*/stat")
    return any(map(is_awake, (here, *threads)))


def is_awake(stat: Path) -> bool:
    """Whether the thread of a /proc/PID/task/TID/stat runs, or would if it had a core."""
    with contextlib.suppress(OSError):  # it has ended, or is not shown to us
        return stat.read_text().rpartition(")")[2].split()[0] not in ASLEEP
    return False
