"""What is tried: settings of one worker in process, and settings of the server around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from handler.config import ModelConfig

BUDGETS = {
    "cpu": (128, 256, 384, 512, 1024, 2048, 4096),
    "cuda": tuple(2048 << step for step in range(7)),  # up to 131072
}
QUICK_BUDGETS = {"cpu": (256, 512, 2048), "cuda": (8192, 32_768)}
BATCH_SIZES = (16, 64, 128)
QUICK_BATCH_SIZES = (64,)
MOST_LANES = 64  # that handler.lanes may be


@dataclass(frozen=True, order=True)
class Inside:
    """How one worker runs its micro-batches."""

    budget: int  # handler.max_batch_tokens
    lanes: int


@dataclass(frozen=True, order=True)
class Outside:
    """How the server shares the work out."""

    workers: int
    threads: int  # of each
    batch_size: int

    def __str__(self) -> str:
        """As progress and tables call it."""
        return f"workers {self.workers}, threads {self.threads}, batchSize {self.batch_size}"


def insides(device: str, threads: int, quick: bool) -> list[Inside]:
    """Every budget with every number of lanes."""
    budgets = (QUICK_BUDGETS if quick else BUDGETS)[device]
    lanes = {1, 2} if device == "cuda" else {1, min(2, threads), min(threads, MOST_LANES)}
    return [Inside(budget, count) for budget in budgets for count in sorted(lanes)]


def shares(cores: int, quick: bool) -> list[tuple[int, int]]:
    """Workers and the threads of each: one worker with all cores, one a core, and what lies between."""
    workers = {1, cores} if quick else {1, 2, 4, cores}
    return [(count, cores // count) for count in sorted(workers) if count <= cores]


def batch_sizes(connections: int, quick: bool) -> list[int]:
    """Sizes that differ under this load: no batch is larger than what waits."""
    sizes = QUICK_BATCH_SIZES if quick else BATCH_SIZES
    enough = [size for size in sizes if size >= connections]
    return [size for size in sizes if size < connections] + enough[:1]


def outsides(cores: int, connections: int, quick: bool) -> list[Outside]:
    """The grid of the second stage."""
    return [
        Outside(workers, threads, size)
        for workers, threads in shares(cores, quick)
        for size in batch_sizes(connections, quick)
    ]


def inside_config(config: ModelConfig, threads: int, inside: Inside) -> ModelConfig:
    """The recipe's configuration with the first stage's settings."""
    handler = replace(config.handler, threads=threads, lanes=inside.lanes, max_batch_tokens=inside.budget)
    return replace(config, handler=handler)


def outside_config(config: ModelConfig, outside: Outside, inside: Inside) -> ModelConfig:
    """The recipe's configuration with the settings of both stages."""
    server = replace(
        config.server,
        minWorkers=outside.workers,
        maxWorkers=outside.workers,
        batchSize=outside.batch_size,
    )
    return inside_config(replace(config, server=server), outside.threads, inside)


def threads_of(candidates: Sequence[Outside]) -> list[int]:
    """The first stage runs once for each of these."""
    return sorted({candidate.threads for candidate in candidates})
