"""What SIGINT, SIGTERM and SIGHUP do: until there is something to drain they end it, then they are noted."""

from __future__ import annotations

import signal
import sys
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_at_signals() -> None:
    """The first one is a SystemExit, with 0: what was begun is cleaned up. A process with id 1 has no default."""

    def end(number: int, frame: FrameType | None) -> None:
        for other in STOPS:
            signal.signal(other, signal.SIG_IGN)
        sys.exit(0)

    for number in STOPS:
        signal.signal(number, end)


def note_signals() -> list[int]:
    """A list that the first one is appended to; the second raises KeyboardInterrupt."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    for number in STOPS:
        signal.signal(number, note)
    return received
