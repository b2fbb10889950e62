"""From start and end logits to answers, as transformers 4 did it.

transformers 5 has no question-answering pipeline any more. This follows pipelines/question_answering.py of 4.57
(`select_starts_ends`, `decode_spans`, `postprocess`), whose answers are recorded in tests/handler/golden/. What is
no part of the context is never an answer here: there, it was one where the context has fewer spans than were asked
for, and where the tokenizer pads on the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Span:
    """Some tokens of a window."""

    first: int
    last: int
    score: float


@dataclass(frozen=True)
class Spans:
    """What one window has for an answer."""

    best: Sequence[Span]  # the best first
    null_score: float  # that it has none


class Answers:
    """Spans of all windows put together: what reads the same, but for its case, is one answer.

    Args:
        text: the context.
        place: whether it is the tokenizer's first text or its second, 0 or 1.
        align: whether answers are widened to whole words.
    """

    def __init__(self, text: str, place: int, align: bool) -> None:
        self.text = text
        self.place = place
        self.align = align
        self.null_score = 1.0
        self.found: dict[str, dict[str, Any]] = {}

    def add(self, encoding: Any, spans: Spans) -> None:
        """Takes a window's spans; its encoding is a tokenizers.Encoding."""
        self.null_score = min(self.null_score, spans.null_score)
        for span in spans.best:
            start, end = self._characters(encoding, span)
            words = self.text[start:end]
            new = {"answer": words, "score": 0.0, "start": start, "end": end}
            self.found.setdefault(words.lower(), new)["score"] += span.score

    def best(self, count: int, null: bool) -> list[dict[str, Any]]:
        """The best answers, the best first; with `null`, no answer is one of them."""
        answers = list(self.found.values())
        if null:
            answers.append({"answer": "", "score": self.null_score, "start": 0, "end": 0})
        return sorted(answers, key=lambda answer: -answer["score"])[:count]

    def _characters(self, encoding: Any, span: Span) -> tuple[int, int]:
        if self.align:
            words = encoding.token_to_word(span.first), encoding.token_to_word(span.last)
            if None not in words:
                (start, _), (_, end) = (encoding.word_to_chars(word, self.place) for word in words)
                return start, end
        return encoding.offsets[span.first][0], encoding.offsets[span.last][1]


def choose(logits: Floats, context: Mask, null: int, max_length: int, count: int) -> Spans:
    """The best spans of a window.

    Args:
        logits: (tokens, 2), of being an answer's first token and its last.
        context: (tokens,), which tokens may be in an answer.
        null: the token that stands for no answer, which has its share of the probabilities.
        max_length: the most tokens of an answer.
        count: the most spans.
    """
    takes_part = context.copy()
    takes_part[null] = True
    start, end = _softmax(logits, takes_part).T
    scores = _scores(start, end, context, min(max_length, len(context)))
    count = min(count, int(np.count_nonzero(scores >= 0)))
    if not count:
        return Spans((), float(start[null] * end[null]))
    places = np.argpartition(-scores, count - 1, axis=None)[:count]
    places = places[np.argsort(-scores.flat[places], kind="stable")]
    firsts, more = np.unravel_index(places, scores.shape)
    best = [Span(int(i), int(i + n), float(scores[i, n])) for i, n in zip(firsts, more, strict=True)]
    return Spans(best, float(start[null] * end[null]))


def _softmax(logits: Floats, takes_part: Mask) -> Floats:
    """(tokens, 2): each column over the tokens that take part."""
    kept = np.where(takes_part[:, None], logits, np.float32(-np.inf))
    powers = np.exp(kept - kept.max(axis=0))
    return np.asarray(powers / powers.sum(axis=0), np.float32)


def _scores(start: Floats, end: Floats, context: Mask, max_length: int) -> Floats:
    """(tokens, max_length): of the span that begins at i and has n tokens more; -1 where there is none."""
    beyond = (0, max_length - 1)
    ends = sliding_window_view(np.pad(end, beyond), max_length)
    allowed = context[:, None] & sliding_window_view(np.pad(context, beyond), max_length)
    return np.where(allowed, start[:, None] * ends, np.float32(-1))
