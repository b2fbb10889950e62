"""Progress of waiting for workers, on standard error."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self


class Meter:
    """Shows how many workers are ready: one line that changes on a terminal, else a line for each change."""

    def __init__(self, name: str) -> None:
        """Meter the workers of a model; nothing is shown before the first call."""
        self._name = name
        self._rewrites = sys.stderr.isatty()
        self._shown = False

    def __call__(self, ready: int, wanted: int) -> None:
        """Show the number of ready workers and of those wanted."""
        line = f"{self._name}: {ready} of {wanted} workers ready"
        print(f"\r\033[K{line}" if self._rewrites else line, end="" if self._rewrites else "\n", file=sys.stderr)
        sys.stderr.flush()
        self._shown = True

    def __enter__(self) -> Self:
        """Return the meter itself; leaving the block ends its line."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the line."""
        if self._shown and self._rewrites:
            print(file=sys.stderr)
