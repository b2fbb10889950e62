"""Holds answers against what transformers gives for each text alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from benchmarks.candidates.candidate import Numbers, Wire
from benchmarks.http_client import Reply

TOLERANCE = 1e-4  # fp32


class Wrong(Exception):
    """An answer that is not the model's; carries the difference."""

    def __init__(self, difference: float) -> None:
        self.difference = difference
        super().__init__(f"WRONG by {difference:.2g}, where {TOLERANCE:g} is allowed")


def check(wire: Wire, replies: Sequence[Reply], expected: Sequence[np.ndarray]) -> float:
    """The largest difference of all that was answered; what was not answered is counted elsewhere.

    Raises:
        Wrong: it is more than fp32 explains.
    """
    pairs = zip(replies, expected, strict=True)
    worst = max((difference(wire, reply.body, row) for reply, row in pairs if reply.status == 200), default=0.0)
    if worst > TOLERANCE:
        raise Wrong(worst)
    return worst


def difference(wire: Wire, answer: bytes, row: np.ndarray) -> float:
    """The largest difference of one answer's numbers, infinite where they are not numbers or not so many."""
    try:
        numbers: Numbers = wire.numbers(answer)
        told = [
            (float(number), float(right)) for number, right in zip(numbers, row, strict=True) if number is not None
        ]
    except (ValueError, KeyError, IndexError, TypeError):
        return math.inf
    off = [abs(number - right) for number, right in told]
    return max(off) if off and all(map(math.isfinite, off)) else math.inf
