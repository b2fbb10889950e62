"""The ceiling: the model alone in one process, no server; and the bare call, one text at a time."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.figures import Load
from benchmarks.models import Call

NAME = "ceiling"
BUDGETS = (256, 512, 1024, 2048, 4096, 8192)  # tokens of one batch, padding included
TOKENS_A_WORD = 1.3  # for cutting batches only; the tokenizer's own work is part of the call


@dataclass(frozen=True)
class Layout:
    """How the texts go through the model: in batches of so many tokens, and on how many threads."""

    budget: int
    streams: int
    threads: int


def best_layout(call: Call, texts: Sequence[str]) -> tuple[Layout, dict[str, float]]:
    """The fastest layout, and what each that was tried came to in texts a second.

    Every budget on all cores in one stream, and with a stream a core.
    """
    cores, tried = len(os.sched_getaffinity(0)), dict[Layout, float]()
    for budget in BUDGETS:
        for layout in (Layout(budget, 1, cores), Layout(budget, cores, 1)):
            tried[layout] = throughput(call, texts, layout, 0)
    best = max(tried, key=tried.__getitem__)
    return best, {str(layout): round(rate, 1) for layout, rate in tried.items()}


def throughput(call: Call, texts: Sequence[str], layout: Layout, seconds: float) -> float:
    """Texts a second over whole passes, as many as take so long, and at least one."""
    threads = (layout.threads,)
    batches = list(cut(texts, layout.budget))
    with ThreadPoolExecutor(layout.streams, initializer=torch.set_num_threads, initargs=threads) as streams:
        list(streams.map(call, batches[: layout.streams]))  # the first call of a thread is slow
        passes, start = 0, time.perf_counter()
        while not passes or time.perf_counter() - start < seconds:
            list(streams.map(call, batches))
            passes += 1
        return passes * len(texts) / (time.perf_counter() - start)


def cut(texts: Sequence[str], budget: int) -> Iterator[list[str]]:
    """Batches of texts of like length, the longest first, each within the budget."""
    batch: list[str] = []
    for text in sorted(texts, key=lambda text: -text.count(" ")):
        longest = TOKENS_A_WORD * ((batch or [text])[0].count(" ") + 1) + 2
        if batch and longest * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(text)
    yield batch


def bare_calls(call: Call, texts: Sequence[str], seconds: float) -> Load:
    """One text after another, for so long: what one connection would get of a server that costs nothing."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    times: list[float] = []
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        before = time.perf_counter()
        call([texts[len(times) % len(texts)]])
        times.append((time.perf_counter() - before) * 1e3)
    p90, p95, p99 = (float(np.percentile(times, p)) for p in (90, 95, 99))
    return Load(1e3 / statistics.fmean(times), statistics.median(times), p90, p95, p99, len(times), 0)


def set_loads(call: Call, sets: Mapping[str, Sequence[str]], layout: Layout, seconds: float) -> dict[str, Load]:
    """Cell -> the model's own rate; there is no latency to speak of."""
    nothing = float("nan")
    found = {
        f"{name}@64": Load(
            throughput(call, texts, layout, seconds), nothing, nothing, nothing, nothing, len(texts), 0
        )
        for name, texts in sets.items()
    }
    return found | {"mixed@1": bare_calls(call, sets["mixed"], seconds)}
