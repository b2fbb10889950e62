"""Processes of ours: none outlives the run, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from serving.children import own_session

ROOT = Path(__file__).resolve().parent.parent
STOP_SECONDS = 60.0  # a server drains and takes Java down
LAST_LINES = 15  # of a log, which say why


@contextmanager
def module(
    name: str, arguments: Sequence[str], temp: Path, log: Path, *, read: bool = True
) -> Iterator[subprocess.Popen[str]]:
    """`python -m NAME ARGUMENTS` of this repository, ended by SIGTERM on the way out.

    Args:
        name: the module.
        arguments: for it.
        temp: where it may put temporary files.
        log: gets its stderr.
        read: whether we read its stdout; else that goes to the log too.
    """
    mine = {key: value for key, value in os.environ.items() if not key.startswith("TS_")}
    environment = {**mine, "PYTHONPATH": str(ROOT), "TMPDIR": str(temp), "TEMP": str(temp)}
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", name, *arguments],
            env=environment,
            cwd=temp,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if read else errors,
            stderr=errors,
            text=True,
            preexec_fn=own_session,  # noqa: PLW1509 - no thread has been started
        )
    try:
        yield process
    finally:
        _stop(process)


def tail(log: Path) -> str:
    """The end of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:]) if log.exists() else ""


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # also what it has left of its own
    process.wait()
    if process.stdout:
        process.stdout.close()
