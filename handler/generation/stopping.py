"""Ends a stream where one of some strings is said, as the OpenAI protocol's `stop` has it.

transformers' continuous batching ends a request by its tokens only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


class Until:
    """Stands before a stream's queue (asyncio.Queue), and passes on what is said up to the first of the strings.

    What might be the beginning of one waits for what follows. Thoughts and calls of tools pass as they are.
    """

    def __init__(self, queue: Any, strings: Sequence[str], end: Callable[[], None]) -> None:
        self._queue = queue
        self._strings = strings
        self._end = end  # nobody wants what would follow
        self._held = ""
        self._ended = False

    def put_nowait(self, item: Any) -> None:
        """Some text, a thought, a call, or None at the end."""
        if self._ended:
            return
        if type(item) is str:  # a thought is of a class of its own (ReasoningText)
            self._read(item)
        else:
            self._say(len(self._held))
            self._queue.put_nowait(item)

    def _read(self, text: str) -> None:
        self._held += text
        found = [(self._held.find(one) + len(one), -len(one)) for one in self._strings if one in self._held]
        if not found:
            self._say(len(self._held) - max(map(self._begun, self._strings)))
            return
        end, less = min(found)  # the one that ended first, in whatever pieces the text came
        self._say(end + less)
        self._ended = True
        self._queue.put_nowait(None)
        self._end()

    def _begun(self, string: str) -> int:
        """How much of it the text ends with."""
        longest = min(len(string) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(string[:size])), 0)

    def _say(self, size: int) -> None:
        said, self._held = self._held[:size], self._held[size:]
        if said:
            self._queue.put_nowait(said)
