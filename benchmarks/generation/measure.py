"""All of it, one after the other: what is found stands in the results' extra."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
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
from benchmarks.generation.streams import Streamed, load, whole
from benchmarks.processes import running

WARM, WAVES = 3, 8  # of streams, before a measurement and in it; Java compiles what it runs often
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
    for number in range(rounds):
        for pair in pairs.values():
            for candidate in pair if number % 2 == 0 else reversed(pair):
                figures = _streamed(candidate)
                found[candidate.name]["rates"].append(figures.tokens_per_second)
                found[candidate.name]["first"].append(statistics.median(figures.first))
                say(
                    f"[{number + 1}/{rounds}] {candidate.name}: {figures.tokens_per_second:.0f} tokens/s, "
                    f"first text {1e3 * statistics.median(figures.first):.0f} ms"
                )
    results.extra["streams"] = found
    answers: dict[str, list[float]] = {"ours": [], "seed": []}
    for number in range(rounds):
        for name, each in (("seed", SeedGenerate()), ("ours", native_route())):
            answers[name].append(_answered(each))
            say(f"[{number + 1}/{rounds}] whole answers, {name}: {answers[name][-1]:.0f} tokens/s")
    results.extra["answers"] = answers
    results.extra["leaks"] = {}
    for ours in (transformers_engine(), vllm_engine(LEAK_CACHE_BYTES)):
        say(f"{streams} streams, {ours.name}: one in three is left midway")
        with _at_work(ours) as job:
            results.extra["leaks"][ours.name] = leaks(ours, job, streams, say)


def _streamed(candidate: Candidate) -> Streamed:
    texts, warm = prompts((WARM + WAVES) * STREAMS), WARM * STREAMS
    with _at_work(candidate) as job:
        wire = candidate.wires[TASK]
        bodies = [wire.body(text) for text in texts]
        asyncio.run(load(job.port, wire.path, bodies[:warm], STREAMS, NEW))
        return asyncio.run(load(job.port, wire.path, bodies[warm:], STREAMS, NEW))


def _answered(candidate: Candidate) -> float:
    bodies = [native(text) for text in prompts(4 * STREAMS)]
    with _at_work(candidate) as job:
        path = candidate.wires[TASK].path
        asyncio.run(whole(job.port, path, bodies[:STREAMS], STREAMS, NEW))
        return asyncio.run(whole(job.port, path, bodies[STREAMS:], STREAMS, NEW))


def _at_work(candidate: Candidate) -> AbstractContextManager[Job]:
    """The candidate's server, answering."""
    return running(candidate, TASK, directory(), "generation")
