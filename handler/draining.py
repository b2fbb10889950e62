"""A worker that has been told to refuses what comes, so that the server can be stopped without loss."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from handler.errors import ShuttingDown


class Drain:
    """Whether the worker has been told to refuse. SIGUSR1 tells it; serving/drain.py sends that."""

    def __init__(self) -> None:
        self.told = False
        if threading.current_thread() is threading.main_thread():  # signals can be caught nowhere else
            signal.signal(signal.SIGUSR1, self._tell)

    def check(self) -> None:
        """Raises ShuttingDown once the worker has been told."""
        if self.told:
            raise ShuttingDown("the server is shutting down; send the request to another, or again later")

    def _tell(self, number: int, frame: FrameType | None) -> None:
        self.told = True
