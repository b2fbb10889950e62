"""What SIGINT, SIGTERM and SIGHUP do: until there is something to drain they end it, then they are noted."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

TWICE_SECONDS = 0.5  # a launcher may send its one to its child, and again to the group (coreutils' timeout)


def end_at_signals() -> list[int]:
    """A list that the first one is appended to; it is also a SystemExit with 0, which cleans up what was begun.

    Both, because an exception that comes while a library is imported may be swallowed there. A process with id 1
    needs this from its first moment: the kernel does nothing by default for it.
    """
    received: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        if not received:  # a second one must not stop the cleaning up
            received.append(number)
            sys.exit(0)

    _handle(end)
    return received


def note_signals(received: list[int]) -> None:
    """From now on they are appended to the list, but for one's twin; the second is a KeyboardInterrupt too."""
    came = -math.inf

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        before, came = came, time.monotonic()
        if came - before < TWICE_SECONDS:
            return
        received.append(number)
        if len(received) == 2:
            raise KeyboardInterrupt

    _handle(note)


def count_signals(received: list[int]) -> None:
    """From now on they are appended to the list: none stops the cleaning up."""
    _handle(lambda number, frame: received.append(number))


def _handle(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, handler)
