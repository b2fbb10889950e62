"""All of it, one after the other: what is found stands in the results' extra."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.figures import Results
from benchmarks.prompt.inside import exactness, saving
from benchmarks.prompt.models import DEEP, WIDE, directory
from benchmarks.prompt.served import AT_ONCE, OurPrompts, SeedPrompts, in_flight, large, throughput

LARGE_ROUNDS = 5  # of an answer by lists, which takes seconds
FLIGHT_ROUNDS = 10  # long enough for what grows to show


def measure(rounds: int, results: Results, say: Callable[[str], None]) -> None:
    """Makes the models where there are none yet, and measures."""
    seed = SeedPrompts(DEEP)
    assert seed.environment is not None
    seed.environment.ensure()
    for shape in (DEEP, WIDE):
        say(f"{shape.name}: hidden {shape.hidden}, {shape.depth} layers, of which {list(shape.layers)} are wanted")
        directory(shape)
    for candidate in (OurPrompts(DEEP), seed):
        results.candidates[candidate.name] = {"about": candidate.about, "repairs": []}
    versions = seed.environment.versions()
    results.candidates["seed"]["versions"] = {
        name: versions[name] for name in ("torch", "transformers", "fastapi")
    }
    results.extra["exactness"] = exactness(DEEP, say)
    results.extra["saving"] = saving(DEEP, max(3, rounds), say)
    results.extra["large"] = large(LARGE_ROUNDS, say) | {"bytes": WIDE.answer_bytes}
    results.extra["in_flight"] = in_flight(FLIGHT_ROUNDS, say) | {"at_once": AT_ONCE}
    results.extra["prompts_per_second"] = throughput(rounds, say)
