"""What ends a run without a recommendation."""

from __future__ import annotations


class CannotTune(Exception):
    """Nothing can be recommended; the message says why."""
