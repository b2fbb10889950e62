"""Servers that are all up have their streams in turns: what the machine does meanwhile befalls all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence

from benchmarks.candidates.candidate import Candidate, Job
from benchmarks.generation.candidates import NEW, STREAMS, TASK
from benchmarks.generation.models import prompts
from benchmarks.generation.streams import Streamed, load

REST_SECONDS = 2.0  # between two turns: vLLM's processes look out for work in a loop, for a second


def in_turns(
    served: Sequence[tuple[Candidate, Job]], turns: int, warm: int, waves: int
) -> Iterator[tuple[int, Candidate, Streamed]]:
    """Each turn's number, whose it was and its figures; every second one goes backwards. Raises Failed.

    Args:
        served: who takes part, and where each answers.
        turns: how often each is measured.
        warm: waves of streams before the first turn: Java compiles what it runs often.
        waves: of a turn; its prompts are the same for everybody.
    """
    texts = prompts((warm + turns * waves) * STREAMS)
    for candidate, job in served:
        _stream(candidate, job, texts[: warm * STREAMS])
    for number in range(turns):
        start = (warm + number * waves) * STREAMS
        for candidate, job in served if number % 2 == 0 else reversed(served):
            yield number, candidate, _stream(candidate, job, texts[start : start + waves * STREAMS])


def _stream(candidate: Candidate, job: Job, texts: Sequence[str]) -> Streamed:
    time.sleep(REST_SECONDS)
    wire = candidate.wires[TASK]
    return asyncio.run(load(job.port, wire.path, [wire.body(text) for text in texts], STREAMS, NEW))
