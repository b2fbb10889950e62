"""What all candidates have in common."""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.environments import Environment

CLASSIFY = "text-classification"
EMBED = "feature-extraction"
TASKS = (CLASSIFY, EMBED)
PYTHON = sys.executable
THE_PEERS = Environment("peers")
Numbers = Sequence[float | None]  # None: the answer does not tell this one


@dataclass(frozen=True)
class Job:
    """One start of one server.

    Attributes:
        port: the first of five that it may listen on; predictions are asked of this one.
        scratch: its own directory, which goes away with it.
        store: where what `prepare` has built is kept for the whole run.
    """

    task: str
    model: Path
    port: int
    scratch: Path
    store: Path


@dataclass(frozen=True)
class Wire:
    """How a text is put to a server, and how the numbers are read from its answer."""

    path: str
    body: Callable[[str], bytes]
    read: Callable[[Any], Numbers]
    accept: str = "*/*"

    def numbers(self, answer: bytes) -> Numbers:
        """The label's probabilities, or the embedding."""
        return self.read(json.loads(answer))


class Candidate(ABC):
    """A server that takes part.

    Attributes:
        name: in tables.
        about: what it is and how it is set, in one line.
        wires: task -> how it is asked. A task that is not in it is not taken part in.
        environment: what it runs in; nothing for the project's own.
        repairs: each thing that was changed in what its users would run as it stands.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    wires: ClassVar[Mapping[str, Wire]]
    environment: ClassVar[Environment | None] = THE_PEERS
    repairs: ClassVar[tuple[str, ...]] = ()

    @property
    def python(self) -> str:
        """The interpreter of its environment."""
        return str(self.environment.python) if self.environment else PYTHON

    def prepare(self, job: Job) -> None:  # noqa: B027 - most have nothing to build
        """Builds what it serves, once a run."""

    @abstractmethod
    def command(self, job: Job) -> list[str]:
        """The command line that serves."""

    def variables(self, job: Job) -> dict[str, str]:
        """What its environment needs beside the machine's own."""
        return {}


def text_body(text: str) -> bytes:
    """{"text": …}."""
    return json.dumps({"text": text}).encode()


def confidence(answer: Mapping[str, Any]) -> Numbers:
    """Of two labels' probabilities, the predicted one's."""
    numbers: list[float | None] = [None, None]
    numbers[answer["prediction"]] = answer["confidence"]
    return numbers
