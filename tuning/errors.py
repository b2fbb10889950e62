"""What ends a run without a recommendation."""

from __future__ import annotations

from archiver.errors import Refused


class CannotTune(Refused):
    """Nothing can be recommended; the message says why."""
