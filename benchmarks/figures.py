"""What a run found, as it is written to JSON and read back."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Load:
    """What one load came to. Percentiles are milliseconds."""

    per_second: float
    p50: float
    p90: float
    p95: float
    p99: float
    requests: int
    errors: int


@dataclass(frozen=True)
class Measurement:
    """One load on one candidate in one round. A cell is a set and connections, as mixed@64, or open@80%."""

    task: str
    candidate: str
    cell: str
    round: int
    load: Load


@dataclass(frozen=True)
class Standing:
    """How a candidate fared at a task: `measured`, or else it has no figure and the note says why."""

    task: str
    candidate: str
    state: str = "measured"
    note: str = ""
    difference: float | None = None
    knee: float | None = None


@dataclass
class Results:
    """One run of one verb."""

    verb: str
    date: str
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    candidates: dict[str, dict[str, Any]] = field(default_factory=dict)
    standings: list[Standing] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def standing(self, task: str, candidate: str) -> Standing | None:
        """How it fared, or nothing where it was not asked."""
        found = [one for one in self.standings if (one.task, one.candidate) == (task, candidate)]
        return found[0] if found else None

    def stand(self, standing: Standing) -> None:
        """Notes how a candidate fares; one that has no figure loses those that it had."""
        key = (standing.task, standing.candidate)
        self.standings = [one for one in self.standings if (one.task, one.candidate) != key] + [standing]
        if standing.state != "measured":
            self.measurements = [one for one in self.measurements if (one.task, one.candidate) != key]

    def values(self, task: str, candidate: str, cell: str, what: str = "per_second") -> dict[int, float]:
        """Round -> the figure."""
        return {
            one.round: getattr(one.load, what)
            for one in self.measurements
            if (one.task, one.candidate, one.cell) == (task, candidate, cell)
        }

    def write(self, path: Path) -> None:
        """As JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")


def read(path: Path) -> Results:
    """What `write` wrote."""
    raw = json.loads(path.read_text())
    raw["standings"] = [Standing(**one) for one in raw["standings"]]
    raw["measurements"] = [Measurement(**{**one, "load": Load(**one["load"])}) for one in raw["measurements"]]
    return Results(**raw)


def ratios(above: Mapping[int, float], below: Mapping[int, float]) -> list[float]:
    """Round by round: what slows the whole machine for a while slows both."""
    return [above[number] / below[number] for number in sorted(above) if below.get(number)]


def spread(values: list[float], digits: int = 1) -> str:
    """The median, and from where to where."""
    if not values:
        return "-"
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"
