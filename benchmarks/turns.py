"""One candidate's turn: start it, check it, load it, end it. Only one server runs at a time.

A server that waits for its turn would still take from the one that is measured: some poll, and TorchServe starts a
process a minute for its metrics.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.candidates.candidate import Candidate, Job, Wire
from benchmarks.check import Wrong, check
from benchmarks.closed_loop import closed_loop, url
from benchmarks.environments import BENCH, Unavailable
from benchmarks.figures import Load, Measurement, Results, Standing
from benchmarks.http_client import Reply, ask_all, post
from benchmarks.machine import busy_cores, pick
from benchmarks.open_loop import find_knee, keeps_up, load, open_loop
from benchmarks.processes import Failed, served
from benchmarks.texts import COUNT

CELLS = (("mixed", 1), ("mixed", 16), ("mixed", 64), ("short", 64), ("long", 64))
SHARES = (0.5, 0.8)  # of the knee
BUSY = 0.2  # cores that others use, from which a turn is told as disturbed
SETTLING = 3  # texts, one after another
CHECK_CONNECTIONS = 64  # so that what is checked was batched with others


@dataclass(frozen=True)
class Plan:
    """How long and how often."""

    rounds: int = 3
    seconds: float = 6
    open_seconds: float = 10
    knee_seconds: float = 6
    open_loop: bool = True
    texts: int = COUNT


@dataclass(frozen=True)
class Material:
    """A task's model, the texts of each set, and the right answers to them."""

    task: str
    model: Path
    sets: Mapping[str, Sequence[str]]
    expected: Mapping[str, Sequence[np.ndarray]]


class Turns:
    """The turns of one candidate at one task."""

    def __init__(
        self, candidate: Candidate, material: Material, plan: Plan, results: Results, say: Callable[[str], None]
    ) -> None:
        self.candidate, self.material, self.plan = candidate, material, plan
        self.results, self.say = results, say
        self.standing = Standing(material.task, candidate.name)
        self.store = BENCH / "work" / f"{candidate.name}-{material.task}"

    def prepare(self) -> None:
        """Installs and builds what it needs; one that cannot be had is out, in one line."""
        self.store.mkdir(parents=True, exist_ok=True)
        described: dict[str, Any] = {"about": self.candidate.about, "repairs": list(self.candidate.repairs)}
        self.results.candidates[self.candidate.name] = described
        try:
            if self.candidate.environment:
                self.candidate.environment.ensure()
                described["versions"] = pick(self.candidate.environment.versions())
            self.candidate.prepare(Job(self.material.task, self.material.model, 0, self.store, self.store))
            self._stand(self.standing)
        except (Unavailable, Failed, OSError) as err:
            self._out("skipped", str(err))

    def take(self, number: int) -> None:
        """One round, numbered from 0. What goes wrong costs this candidate its figures, and nobody else theirs."""
        if self.standing.state != "measured":
            return
        self._look_around(number)
        try:
            with served(self.candidate, self.material.task, self.material.model, self.store) as job:
                self._check(job, self.material.sets if number == 0 else ("mixed",))
                self._closed(job, number)
                if self.plan.open_loop:
                    self._open(job, number)
        except Wrong as err:
            self.standing = dataclasses.replace(self.standing, difference=err.difference)
            self._out("wrong", str(err))
        except (Failed, OSError) as err:
            self._out("failed", str(err))

    def _look_around(self, number: int) -> None:
        """Two torch threads that share two cores with a third lose far more than their share."""
        if (busy := busy_cores()) > BUSY:
            told = f"{self.material.task}, round {number + 1}, {self.candidate.name}: {busy:.1f} cores"
            self.results.extra.setdefault("disturbed", []).append(told)
            self.say(f"    others use the machine: {busy:.1f} cores; what follows will be too low")

    @property
    def _wire(self) -> Wire:
        return self.candidate.wires[self.material.task]

    def _check(self, job: Job, names: Sequence[str] | Mapping[str, Sequence[str]]) -> None:
        """Every text, many at once; it also warms the server up."""
        for name in names:
            replies = asyncio.run(ask_all(job.port, self._requests(job, name), CHECK_CONNECTIONS))
            if bad := [reply for reply in replies if reply.status != 200]:
                said = f"{bad[0].status} {bad[0].body[:100].decode(errors='replace')}"
                raise Failed(f"{len(bad)} of {len(replies)} texts were not answered: {said}")
            self._judge(replies, name)

    def _judge(self, replies: Sequence[Reply], name: str) -> None:
        right = self.material.expected[name]
        worst = check(self._wire, replies, [right[number % len(right)] for number in range(len(replies))])
        self._stand(dataclasses.replace(self.standing, difference=max(worst, self.standing.difference or 0.0)))

    def _closed(self, job: Job, number: int) -> None:
        for name, connections in CELLS:
            bodies = job.scratch / f"{name}.txt"
            bodies.write_bytes(b"".join(self._wire.body(text) + b"\n" for text in self.material.sets[name]))
            where = url(job.port, self._wire.path)
            self._settle(job)
            self._note(number, f"{name}@{connections}", closed_loop(where, bodies, connections, self.plan.seconds))

    def _settle(self, job: Job) -> None:
        """Waits until what a load has left behind is done: wrk goes without waiting for its last answers."""
        asyncio.run(ask_all(job.port, self._requests(job, "short")[:SETTLING], 1))

    def _open(self, job: Job, number: int) -> None:
        self._settle(job)
        if number == 0:
            closed = self.results.values(self.material.task, self.candidate.name, "mixed@64")[0]
            seconds = self.plan.knee_seconds
            knee = find_knee(closed, lambda rate: keeps_up(self._replies(job, rate, seconds, number), seconds))
            self._stand(dataclasses.replace(self.standing, knee=knee))
        if self.standing.knee is None:
            return
        for share in SHARES:
            seconds = self.plan.open_seconds
            replies = self._replies(job, share * self.standing.knee, seconds, number)
            self._note(number, f"open@{share:.0%}", load(replies, seconds))

    def _replies(self, job: Job, rate: float, seconds: float, number: int) -> list[Reply]:
        replies = open_loop(job.port, self._requests(job, "mixed"), rate, seconds, seed=number)
        self._judge(replies, "mixed")
        return replies

    def _requests(self, job: Job, name: str) -> list[bytes]:
        return [post(self._wire.path, self._wire.body(text), job.port) for text in self.material.sets[name]]

    def _note(self, number: int, cell: str, figures: Load) -> None:
        self.results.measurements.append(
            Measurement(self.material.task, self.candidate.name, cell, number, figures)
        )
        latency = f"p50 {figures.p50:.1f} ms, p99 {figures.p99:.1f} ms"
        errors = f", {figures.errors} errors" if figures.errors else ""
        self.say(f"    {cell:10} {figures.per_second:8.1f}/s  {latency}{errors}")

    def _out(self, state: str, note: str) -> None:
        self._stand(dataclasses.replace(self.standing, state=state, note=note))
        self.say(f"    {self.candidate.name}: {state}: {note}")

    def _stand(self, standing: Standing) -> None:
        self.standing = standing
        self.results.stand(standing)
