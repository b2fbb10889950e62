"""The open loop: requests come when they come, at Poisson times, whether or not those before are answered.

Latency counts from the moment when a request was to be sent, so that a server that falls behind cannot hide it.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.figures import Load
from benchmarks.http_client import Reply, ask_at

LADDER = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the rate at 64 connections in a closed loop
ANSWERED = 0.98
SETTLE = 1.0  # s before the end; what was due until then has to be answered at the end
GROWTH, SLACK = 2.0, 0.1  # the last quarter's median latency may be twice the first's, and 0.1 s


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Poisson arrivals, the same for every candidate but for their scale: seed and number make the times."""
    gaps = np.random.default_rng(seed).exponential(size=round(2 * rate * seconds + 100))
    times = np.cumsum(gaps) / rate
    return [float(time) for time in times[times < seconds]]


def open_loop(port: int, requests: Sequence[bytes], rate: float, seconds: float, seed: int) -> list[Reply]:
    """Sends the requests in turn, over as many connections as it takes."""
    times = arrivals(rate, seconds, seed)
    return asyncio.run(ask_at(port, [requests[number % len(requests)] for number in range(len(times))], times))


def keeps_up(replies: Sequence[Reply], seconds: float) -> bool:
    """Whether the queue does not grow: nothing refused, 98 % answered in time, and no slower at the end."""
    if len(replies) < 8 or any(reply.status != 200 for reply in replies):
        return False
    end = replies[0].due + seconds
    early = [reply for reply in replies if reply.due <= end - SETTLE]
    if sum(reply.done <= end for reply in early) < ANSWERED * len(early):
        return False
    quarter = len(replies) // 4
    ends = (replies[:quarter], replies[-quarter:])
    first, last = (statistics.median(reply.latency for reply in part) for part in ends)
    return last <= GROWTH * first + SLACK


def find_knee(closed_rate: float, probe: Callable[[float], bool]) -> float | None:
    """The highest rate of the ladder that a candidate keeps up with, by bisection; None if not even the lowest."""
    low, high = -1, len(LADDER) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if probe(LADDER[middle] * closed_rate):
            low = middle
        else:
            high = middle - 1
    return LADDER[low] * closed_rate if low >= 0 else None


def load(replies: Sequence[Reply], seconds: float) -> Load:
    """What came of it; what was not answered well has no latency and counts as an error."""
    good = [reply.latency * 1e3 for reply in replies if reply.status == 200] or [float("nan")]
    p50, p90, p95, p99 = (float(np.percentile(good, p)) for p in (50, 90, 95, 99))
    errors = sum(reply.status != 200 for reply in replies)
    return Load((len(replies) - errors) / seconds, p50, p90, p95, p99, len(replies), errors)
