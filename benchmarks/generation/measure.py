"""All of it, one after the other: what is found stands in the results' extra."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from benchmarks.candidates.candidate import Candidate, Job
from benchmarks.figures import Results
from benchmarks.generation.candidates import (
    NEW,
    STREAMS,
    TASK,
    SeedGenerate,
    TransformersServe,
    VllmServe,
    native,
    native_route,
    transformers_engine,
    vllm_engine,
)
from benchmarks.generation.leaks import leaks
from benchmarks.generation.models import directory, prompts
from benchmarks.generation.streams import whole
from benchmarks.generation.turns import in_turns
from benchmarks.processes import running

WARM, TURNS, WAVES = 12, 4, 3  # waves of streams before the turns of a round, turns, and waves in each
LEAK_CACHE_BYTES = 1 << 26  # of vLLM's: so small that the first streams have touched all of it


def measure(rounds: int, streams: int, results: Results, say: Callable[[str], None]) -> None:
    """Makes the model where there is none yet, and measures. Raises Failed."""
    directory()
    pairs: dict[str, tuple[Candidate, Candidate]] = {
        "transformers": (transformers_engine(), TransformersServe()),
        "vllm": (vllm_engine(), VllmServe()),
    }
    if TransformersServe.environment:
        TransformersServe.environment.ensure()
    everybody = [one for pair in pairs.values() for one in pair] + [SeedGenerate()]
    for candidate in everybody:
        results.candidates[candidate.name] = {"about": candidate.about, "repairs": []}
    found: dict[str, Any] = {one.name: {"rates": [], "first": []} for pair in pairs.values() for one in pair}
    results.extra["streams"] = found
    for number in range(rounds):
        for pair in pairs.values():
            with ExitStack() as stack:
                say(f"[{number + 1}/{rounds}] starting {' and '.join(candidate.name for candidate in pair)}")
                served = [(candidate, stack.enter_context(_at_work(candidate))) for candidate in pair]
                for turn, candidate, figures in in_turns(served, TURNS, WARM, WAVES):
                    first = statistics.median(figures.first)
                    found[candidate.name]["rates"].append(figures.tokens_per_second)
                    found[candidate.name]["first"].append(first)
                    rate = f"{figures.tokens_per_second:.0f} tokens/s, first text {1e3 * first:.0f} ms"
                    say(f"  [{turn + 1}/{TURNS}] {candidate.name}: {rate}")
    answers: dict[str, list[float]] = {"ours": [], "seed": []}
    results.extra["answers"] = answers
    for number in range(rounds):
        for name, each in (("seed", SeedGenerate()), ("ours", native_route())):
            answers[name].append(_answered(each))
            say(f"[{number + 1}/{rounds}] whole answers, {name}: {answers[name][-1]:.0f} tokens/s")
    results.extra["leaks"] = {}
    for ours in (transformers_engine(), vllm_engine(LEAK_CACHE_BYTES)):
        say(f"{streams} streams, {ours.name}: one in three is left midway")
        with _at_work(ours) as job:
            results.extra["leaks"][ours.name] = leaks(ours, job, streams, say)


def _answered(candidate: Candidate) -> float:
    bodies = [native(text) for text in prompts(4 * STREAMS)]
    with _at_work(candidate) as job:
        path = candidate.wires[TASK].path
        asyncio.run(whole(job.port, path, bodies[:STREAMS], STREAMS, NEW))
        return asyncio.run(whole(job.port, path, bodies[STREAMS:], STREAMS, NEW))


def _at_work(candidate: Candidate) -> AbstractContextManager[Job]:
    """The candidate's server, answering."""
    return running(candidate, TASK, directory(), "generation")
