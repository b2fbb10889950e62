"""What generation took: told to TorchServe's metrics, and one log line a request, which never has its text."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from handler.batch import log_defect
from handler.generation.engine import Load
from handler.generation.openai_protocol import Usage
from handler.measures import Value, tell

logger = logging.getLogger(__name__)

GAUGE_SECONDS = 1.0  # between two looks at the engine


def log(request: str, how: str, **said: object) -> None:
    """The one line."""
    about = "".join(f" {name}={value}" for name, value in said.items() if value is not None)
    logger.info("request %s: %s%s", request, how, about)


@dataclass
class Timed:
    """One request's moments, in seconds of the monotonic clock."""

    id: str = ""  # the client's own
    begun: float = field(default_factory=time.monotonic)
    first: float | None = None  # when its first text went out; None for what is no stream
    ended: float = 0.0

    def end(self, request: str, how: str, usage: Usage, cache: Any) -> None:
        """Logs the request and tells TorchServe. `cache` is `context.metrics`; `how` is a status, or "left"."""
        self.ended = time.monotonic()
        log(
            request,
            how,
            id=self.id or None,
            seconds=f"{self.ended - self.begun:.3f}",
            first_text=self.first and f"{self.first - self.begun:.3f}",
            tokens_in=usage.prompt_tokens,
            tokens_out=usage.new_tokens,
            finish=usage.finish_reason,
        )
        _tell(cache, self._values(usage))

    def _values(self, usage: Usage) -> Iterator[Value]:
        yield "HandlerRequests", "counter", 1, ()
        yield "HandlerAnswerSeconds", "histogram", self.ended - self.begun, ()
        yield "HandlerPromptTokens", "counter", usage.prompt_tokens or 0, ()
        yield "HandlerNewTokens", "counter", usage.new_tokens or 0, ()
        if self.first is not None:
            yield "HandlerFirstTokenSeconds", "histogram", self.first - self.begun, ()
            if usage.new_tokens and usage.new_tokens > 1:
                yield "HandlerTokenSeconds", "histogram", (self.ended - self.first) / (usage.new_tokens - 1), ()


class Gauges:
    """What the engine has to do, told about once a second."""

    def __init__(self) -> None:
        self._told = 0.0
        self.at_rest = False  # whether it was told that nothing is to do

    def are_due(self) -> bool:
        """Whether it is time again."""
        return time.monotonic() - self._told >= GAUGE_SECONDS

    def tell(self, look: Callable[[], Load], live: int, cache: Any) -> None:
        """Looks at the engine and tells TorchServe. `live` are the requests that rounds are held for."""
        self._told = time.monotonic()
        _tell(cache, self._values(look, live))

    def _values(self, look: Callable[[], Load], live: int) -> Iterator[Value]:
        load = look()
        self.at_rest = not (live or load.running or load.waiting)
        yield "HandlerLive", "gauge", live, ()
        yield "HandlerRunning", "gauge", load.running, ()
        yield "HandlerWaiting", "gauge", load.waiting, ()
        if load.cache_used is not None:
            yield "HandlerCacheUsed", "gauge", load.cache_used, ()


def _tell(cache: Any, values: Iterator[Value]) -> None:
    """A figure that cannot be had is no reason to fail a round."""
    try:
        tell(cache, values)
    except Exception as err:
        log_defect(err)
