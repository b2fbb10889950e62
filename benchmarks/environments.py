"""What is made once, under .bench/: the peers' environments, each with pins of its own and none the project's."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from archiver.errors import Refused

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / ".bench"
PEERS = ROOT / "benchmarks" / "peers"
INSTALL_SECONDS = 1800


def made_once(place: Path, make: Callable[[Path], object]) -> Path:
    """A directory that `make` fills, unless it is there; where that is stopped halfway, it is not there."""
    if not place.exists():
        beside = place.with_suffix(".tmp")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        make(beside)
        beside.rename(place)
    return place


class Unavailable(Refused):
    """Why a peer is left out, in one line."""


@dataclass(frozen=True)
class Environment:
    """One virtual environment.

    Attributes:
        name: its directory under .bench/, and its requirements-NAME.txt.
        base: the Python that it is made with.
    """

    name: str
    base: str = sys.executable

    @property
    def requirements(self) -> Path:
        """What it holds, pinned."""
        return PEERS / f"requirements-{self.name}.txt"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return BENCH / self.name / "bin" / "python"

    def ensure(self) -> None:
        """Installs what is pinned, once.

        Raises:
            Unavailable: it cannot be made here.
        """
        stamp = BENCH / self.name / ".installed"
        digest = hashlib.sha256(self.requirements.read_bytes()).hexdigest()
        if stamp.exists() and stamp.read_text() == digest:
            return
        if shutil.which(self.base) is None:
            raise Unavailable(f"there is no {self.base} to make its environment with")
        print(f"installing .bench/{self.name} (once; some minutes)", file=sys.stderr, flush=True)
        pip = [str(self.python), "-m", "pip", "install", "--quiet"]
        _run([self.base, "-m", "venv", str(BENCH / self.name)])
        # torch by itself and first: asked for by another package it would come in another build.
        torch = [line for line in self.requirements.read_text().splitlines() if line.startswith("torch==")]
        for wanted in [*torch, f"--requirement={self.requirements}"]:
            _run([*pip, wanted])
        stamp.write_text(digest)

    def versions(self) -> dict[str, str]:
        """What is installed in it."""
        listed = subprocess.run(
            [str(self.python), "-m", "pip", "list", "--format", "json"], capture_output=True, text=True, check=True
        )
        return {package["name"]: package["version"] for package in json.loads(listed.stdout)}


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired as err:
        raise Unavailable(f"could not be installed in {INSTALL_SECONDS} s") from err
    except subprocess.CalledProcessError as err:
        lines = [line for line in str(err.stderr).splitlines() if line.lower().startswith("error")]
        raise Unavailable(f"could not be installed: {(lines or ['no reason given'])[0]}") from err
