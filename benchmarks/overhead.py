"""What the server itself costs: a handler that does nothing, over stock TorchServe and over this project's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from benchmarks.candidates.candidate import Candidate, Job, Wire
from benchmarks.candidates.ours import serving
from benchmarks.candidates.torchserve import archive, java_home, stock
from benchmarks.closed_loop import closed_loop, url
from benchmarks.encoder import rotated
from benchmarks.environments import BENCH, PEERS, ROOT
from benchmarks.figures import Measurement, Results, Standing
from benchmarks.processes import Failed, served

TASK = "nothing"
CONNECTIONS = (1, 16, 64)
WARM_UP = 4.0  # s at 64 connections: Java compiles what is hot
BATCHES = {1: "", 64: "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 64\nmaxBatchDelay: 1\n"}


class Stock(Candidate):
    """`torchserve --start` with nothing set but ports, and tokens off."""

    name = "stock"
    about = "stock TorchServe: its launcher, its logging, batchSize 1 (its default)"
    environment = None
    wires: ClassVar = {TASK: Wire("/predictions/noop", str.encode, lambda answer: [])}
    batch_size: ClassVar[int] = 1

    def prepare(self, job: Job) -> None:
        """The archive, the same for stock and ours."""
        config = job.store / "noop-config.yaml"
        config.write_text(BATCHES[self.batch_size])
        more = ("--config-file", str(config)) if BATCHES[self.batch_size] else ()
        archive(job, "noop", PEERS / "noop_handler.py", *more)

    def command(self, job: Job) -> list[str]:
        """Defaults."""
        return stock(job, "noop=noop.mar", {})

    def variables(self, job: Job) -> dict[str, str]:
        """The same Java for all."""
        return java_home()


class Stock64(Stock):
    """Like for like: stock with this project's batchSize."""

    name = "stock, batchSize 64"
    about = "stock TorchServe, with the batchSize (64) and maxBatchDelay (1 ms) of this project's archives"
    batch_size = 64


class OursOne(Stock):
    """Like for like: this project's server with stock's batchSize."""

    name = "ours, batchSize 1"
    about = "scripts/serve.sh's server and configuration, batchSize 1"

    def command(self, job: Job) -> list[str]:
        """What scripts/serve.sh runs."""
        return serving(job, "noop=noop.mar")

    def variables(self, job: Job) -> dict[str, str]:
        """Where the program is."""
        return {"PYTHONPATH": str(ROOT), **java_home()}


class Ours64(OursOne):
    """This project's server with its archives' batchSize."""

    name = "ours"
    about = (
        "scripts/serve.sh's server and configuration, batchSize 64 and maxBatchDelay 1 ms, as its archives have"
    )
    batch_size = 64


CANDIDATES: tuple[type[Candidate], ...] = (Stock, Stock64, OursOne, Ours64)


def measure(rounds: int, seconds: float, results: Results, say: Callable[[str], None]) -> None:
    """Runs all in turns; one that fails once is out."""
    turn = 12 + WARM_UP + len(CONNECTIONS) * (seconds + 1)
    say(f"about {rounds * len(CANDIDATES) * turn / 60:.0f} minutes")
    candidates = [candidate() for candidate in CANDIDATES]
    for candidate in candidates:
        store = _store(candidate)
        store.mkdir(parents=True, exist_ok=True)
        candidate.prepare(Job(TASK, Path(), 0, store, store))
        results.candidates[candidate.name] = {"about": candidate.about, "repairs": []}
        results.stand(Standing(TASK, candidate.name))
    for number in range(rounds):
        for candidate in rotated(candidates, number):
            say(f"round {number + 1} of {rounds}: {candidate.name}")
            try:
                _take(candidate, number, seconds, results, say)
            except (Failed, OSError) as err:
                candidates.remove(candidate)
                results.stand(Standing(TASK, candidate.name, "failed", str(err)))
                say(f"    failed: {err}")


def _take(candidate: Candidate, number: int, seconds: float, results: Results, say: Callable[[str], None]) -> None:
    with served(candidate, TASK, Path(), _store(candidate)) as job:
        bodies = job.scratch / "bodies.txt"
        bodies.write_text("{}\n")
        where = url(job.port, candidate.wires[TASK].path)
        closed_loop(where, bodies, 64, WARM_UP, lumps=False)
        for connections in CONNECTIONS:
            load = closed_loop(where, bodies, connections, seconds, lumps=False)
            results.measurements.append(Measurement(TASK, candidate.name, f"empty@{connections}", number, load))
            say(f"    {connections:3} connections {load.per_second:8.0f}/s  p50 {load.p50:.2f} ms")


def _store(candidate: Candidate) -> Path:
    return BENCH / "work" / candidate.name.replace(", ", "-").replace(" ", "-")
