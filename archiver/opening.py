"""The other end of worker.py: starts the clean process, and asks it about the finished archive."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from archiver.errors import Refused
from archiver.layout import GOLDEN, Member

SCRIPT = Path(__file__).with_name("worker.py")
LARGEST = 16 << 20  # bytes of an extra file that is compared by content
TIMEOUT, PROVING_TIMEOUT = 600, 3600  # s for importing; where golden answers are computed
# What a worker needs of this process's environment; everything else stays here, PYTHONPATH above all.
PASSED_ON = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT", "OMP_WAIT_POLICY")


class Opening:
    """A worker that is loading the handler while the archive is being written."""

    def __init__(self, members: Sequence[Member], stage: Path) -> None:
        self._sizes = {member.name: member.size for member in members}
        self._timeout = PROVING_TIMEOUT if has_golden(members) else TIMEOUT
        self._stage = stage
        self._log = stage.with_name("log").open("w+", encoding="utf-8", errors="replace")
        self.process = start_clean(SCRIPT, str(stage), self._log, stdin=subprocess.PIPE)

    def check(self, archive: Path) -> list[str]:
        """Opens the finished archive there.

        Returns:
            what is worth knowing.

        Raises:
            Refused: a worker could not open it; every reason.
        """
        order = json.dumps({"archive": str(archive), "sizes": self._sizes})
        try:
            answer, _ = self.process.communicate(order + "\n", timeout=self._timeout)
            report = json.loads(answer)
        except subprocess.TimeoutExpired as error:
            raise Refused(f"the archive's handler was not imported within {self._timeout} s") from error
        except ValueError as error:
            raise Refused(
                f"the clean process ended with status {self.process.returncode}", *self._last_lines()
            ) from error
        if report["problems"]:
            raise Refused(*(f"in a worker: {problem}" for problem in report["problems"]))
        notes: list[str] = report["notes"]
        return notes

    def _last_lines(self) -> list[str]:
        self._log.seek(0)
        return self._log.read().strip().splitlines()[-3:]

    def close(self) -> None:
        """Ends the process, wherever it is."""
        self.process.kill()
        self.process.communicate()
        self._log.close()


def start_clean(
    script: Path,
    argument: str,
    log: IO[str],
    *,
    stdin: int = subprocess.DEVNULL,
    more: Sequence[str] = (),
    kept: Sequence[int] = (),
    scratch: Path | None = None,
) -> subprocess.Popen[str]:
    """Starts a script that finds nothing of this process's: the archive's handler, not the repository's.

    Args:
        script: reports on stdout.
        argument: its only one.
        log: takes what it says on stderr.
        stdin: as subprocess.Popen's.
        more: variables that it may have beside those that every worker needs.
        kept: file descriptors that stay open in it.
        scratch: a directory for its temporary files, where this process's own will not do.
    """
    environment = {name: os.environ[name] for name in (*PASSED_ON, *more) if name in os.environ}
    if scratch is not None:
        environment["TMPDIR"] = str(scratch)
    return subprocess.Popen(
        [sys.executable, "-I", str(script), argument],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env={**environment, "HF_HUB_OFFLINE": "1"},
        pass_fds=kept,
    )


def has_golden(members: Sequence[Member]) -> bool:
    """Whether answers are to be computed, for which the model is needed."""
    return any(member.name.startswith(f"{GOLDEN}/") for member in members)


@contextmanager
def opening(members: Sequence[Member]) -> Iterator[Opening]:
    """Starts loading the handler from these members, in a private directory."""
    with tempfile.TemporaryDirectory(prefix="archiver-") as private:
        stage = Path(private, "archive")
        proven = has_golden(members)
        for member in members:
            path = stage / member.name
            if member.name.startswith("model/"):
                if proven and isinstance(member.source, Path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.symlink_to(member.source.resolve())
            elif member.size <= LARGEST or isinstance(member.source, bytes):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(member.content())
        worker = Opening(members, stage)
        try:
            yield worker
        finally:
            worker.close()
