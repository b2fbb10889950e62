"""Starts a candidate's server, waits until it answers, and ends every process of it."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from archiver.errors import Refused
from benchmarks.candidates.candidate import Candidate, Job
from benchmarks.environments import BENCH, ROOT
from benchmarks.http_client import HOST
from serving.ports import free_ports

START_SECONDS = 180.0
STOP_SECONDS = 15.0
PORTS = 7  # in a row, for each server; two of them for a gateway
OURS_ALONE = ("TS_", "PYTHON", "OMP_", "MKL_")  # what is set here for others must not change what a server does


class Failed(Refused):
    """Why a candidate cannot be measured, in one line."""


@contextmanager
def running(candidate: Candidate, task: str, model: Path, name: str) -> Iterator[Job]:
    """The candidate's server with what it builds, which is kept under a benchmark's name. Raises Failed."""
    store = BENCH / "work" / name
    store.mkdir(parents=True, exist_ok=True)
    candidate.prepare(Job(task, model, 0, store, store))
    with served(candidate, task, model, store) as job:
        yield job


@contextmanager
def served(candidate: Candidate, task: str, model: Path, store: Path) -> Iterator[Job]:
    """The candidate's server, answering, inside the `with` block.

    Raises:
        Failed: it ended, or did not answer in time.
    """
    scratch = Path(tempfile.mkdtemp(prefix="bench-"))
    job = Job(task, model, free_ports(PORTS), scratch, store)
    log = scratch / "output.log"
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                candidate.command(job),
                cwd=scratch,
                env=environment(scratch) | candidate.variables(job),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            wait_until_it_answers(process, candidate, job, log)
            yield job
        finally:
            end(process)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def environment(scratch: Path) -> dict[str, str]:
    """This process's, without what is meant for it, and with a place for temporary files."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(OURS_ALONE)}
    return {**mine, "TMPDIR": str(scratch), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def wait_until_it_answers(process: subprocess.Popen[bytes], candidate: Candidate, job: Job, log: Path) -> None:
    """Sends one text again and again until the answer is 200."""
    wire, end_at = candidate.wires[job.task], time.monotonic() + START_SECONDS
    while time.monotonic() < end_at:
        if (status := process.poll()) is not None:
            raise Failed(f"ended with status {status}: {last_line(log)}")
        with suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(HOST, job.port, timeout=30)
            headers = {"Content-Type": "application/json", "Accept": wire.accept}
            connection.request("POST", wire.path, wire.body("ready"), headers)
            answered = connection.getresponse().status == 200
            connection.close()
            if answered:
                return
        time.sleep(0.25)
    raise Failed(f"did not answer within {START_SECONDS:.0f} s: {last_line(log)}")


def last_line(log: Path) -> str:
    """The last thing that a server said."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].replace(f"{ROOT}/", "")[:200] if lines else "it said nothing"


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The process and all that descend from it or share its session."""
    members: set[psutil.Process] = set()
    with suppress(psutil.NoSuchProcess):
        top = psutil.Process(process.pid)
        members = {top, *top.children(recursive=True)}
    for other in psutil.process_iter():
        with suppress(OSError):
            if os.getsid(other.pid) == process.pid:  # its parent may have ended before it
                members.add(other)
    return list(members)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends the server in good order, and what outlives that by force.

    The whole process group is told: TorchServe's launcher and Triton's script leave their servers running else.
    """
    members = family(process)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    _, alive = psutil.wait_procs(members, timeout=STOP_SECONDS)
    for member in {*alive, *family(process)}:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    _, alive = psutil.wait_procs(alive, timeout=10)
    process.wait(10)
    if alive:
        raise Failed(f"still running after it was killed: {[member.pid for member in alive]}")


def run(command: Sequence[str], scratch: Path) -> None:
    """A command that has to succeed, such as one that builds an archive."""
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(scratch), cwd=scratch, check=False
    )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise Failed(f"{Path(command[0]).name} failed: {(lines or ['it said nothing'])[-1][:200]}")


def resident(pid: int, line: str = "VmRSS") -> int:
    """Bytes of a process's memory: now, or at most (VmHWM)."""
    status = Path(f"/proc/{pid}/status").read_text()
    [kilobytes] = [text.split()[1] for text in status.splitlines() if text.startswith(f"{line}:")]
    return int(kilobytes) * 1024
