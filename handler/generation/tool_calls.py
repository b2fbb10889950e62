"""A model's calls of tools, read from what it says. What is no whole call is text.

transformers' application fails on a call that was cut off or is no JSON: a whole answer becomes 500, a stream
breaks off while the engine goes on for nobody.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

FAILURES = (ValueError, LookupError, TypeError, AttributeError)  # of what takes values for what they should be


def forgive(tokenizer: Any) -> None:
    """Has a tokenizer read a whole answer, or give it back as text."""
    stock = tokenizer.parse_response

    @functools.wraps(stock)
    def parse_response(ids: Any, *arguments: Any, **options: Any) -> Any:
        try:
            parsed = stock(ids, *arguments, **options)
            _check(parsed.get("tool_calls") or ())
        except FAILURES:
            return {"content": tokenizer.decode(ids, skip_special_tokens=True)}
        return parsed

    tokenizer.parse_response = parse_response


class Forgiving:
    """A stream's parser (transformers' ResponseParser), or what was said where it fails, and all that follows."""

    def __init__(self, parser: Any) -> None:
        self._parser = parser
        self._held = ""  # said since the last event that a client sees
        self._failed = False
        self.initial_events: list[dict[str, Any]] = parser.initial_events

    def feed(self, text: str) -> list[dict[str, Any]]:
        """The events of some more text."""
        if self._failed:
            return text_of(text)
        self._held += text
        try:
            events: list[dict[str, Any]] = self._parser.feed(text)
            _check(_calls(events))
        except FAILURES:
            self._failed = True
            return text_of(self._held)
        seen = [event["type"] == "region_close" or not event.get("dirty", True) for event in events]
        if any(seen):
            self._held = "" if seen[-1] else text
        return events

    def finalize(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The message, which nobody reads, and the last events."""
        if self._failed:
            return {}, []
        try:
            message, events = self._parser.finalize()
            _check(_calls(events))
        except FAILURES:
            return {}, text_of(self._held)
        return message, events


class Once:
    """A stream's parser that tells of a first call only (`parallel_tool_calls: false`), as vLLM does."""

    def __init__(self, parser: Any) -> None:
        self._parser = parser
        self._called = False
        self.initial_events: list[dict[str, Any]] = parser.initial_events

    def feed(self, text: str) -> list[dict[str, Any]]:
        """The events of some more text."""
        return list(self._less(self._parser.feed(text)))

    def finalize(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The message, which nobody reads, and the last events."""
        message, events = self._parser.finalize()
        return message, list(self._less(events))

    def _less(self, events: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
        for event in events:
            if not (_is_call(event) and self._called):
                yield event
            self._called = self._called or _is_call(event)


def _is_call(event: dict[str, Any]) -> bool:
    return event["type"] == "region_close" and event.get("field") == "tool_calls"


def _calls(events: Iterable[dict[str, Any]]) -> Iterable[Any]:
    return (event.get("value") for event in events if _is_call(event))


def _check(calls: Iterable[Any]) -> None:
    """Raises one of FAILURES where the application would (transformers.cli.serving.utils._normalize_tool_call)."""
    for call in calls:
        call["function"]["name"], call["function"]["arguments"]


def text_of(text: str) -> list[dict[str, Any]]:
    """The events of text that is no call."""
    return [{"type": "region_chunk", "field": "content", "text": text}] if text else []
