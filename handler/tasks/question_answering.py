"""question-answering: the part of a context that answers a question."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import transformers

from handler.batch import Slot
from handler.config import HandlerConfig
from handler.errors import InvalidRequest, LoadError, TooLarge
from handler.loading import load
from handler.protocols.protocol import About
from handler.request import Call, Column, Limits, Request, TextItem, read_parameters, read_texts
from handler.rules import BOOLEAN, Rule, integer, key, optional
from handler.spans import Answers, choose
from handler.tasks.base import document, require_finite, text_inputs
from handler.text_encoder import Rows, TextEncoder, Tokens

MOST_TOKENS = 384  # of a window, and
MOST_SHARED = 128  # of those that windows share, where the recipe says nothing: as in transformers 4
MOST_ANSWER = 512  # tokens: every pair of a first and a last one has a number in memory
QUESTION_SHARE = 4  # a window's part that a question may fill, so that windows move on by more than a few tokens


@dataclass(frozen=True)
class Parameters:
    """What a request may ask for."""

    context: str | None = key(Rule("a string", lambda v: isinstance(v, str)), "what all are answered from", None)
    contexts: list[str] | None = key(Rule("a list", lambda v: isinstance(v, list)), "one for each question", None)
    top_k: int | None = key(optional(integer(1, 100)), "also list the k best answers", None)
    max_answer_len: int = key(integer(1, MOST_ANSWER), "the most tokens of an answer", 15)
    handle_impossible_answer: bool = key(BOOLEAN, "let there be no answer", False)
    align_to_words: bool = key(BOOLEAN, "answer with whole words", True)


@dataclass(frozen=True)
class Window:
    """One row's logits."""

    tokens: Tokens
    logits: npt.NDArray[np.float32]  # (tokens, 2), of being an answer's first and last


Found: TypeAlias = list[dict[str, Any]]  # answers, the best first


class QuestionAnswering:
    """An extractive reader. A long context is read in windows, whose answers are put together."""

    field = "question"
    beside = "context"
    media_types = ()
    inputs = text_inputs("question", Column("context", "BYTES", (1,)), Column("contexts", "BYTES", (-1,)))
    outputs = (
        Column("answer", "BYTES", (-1,)),
        Column("score", "FP32", (-1,)),
        Column("start", "INT64", (-1,)),
        Column("end", "INT64", (-1,)),
        Column("answers", "BYTES", (-1,)),
    )

    def __init__(self, config: HandlerConfig, encoder: TextEncoder) -> None:
        tokenizer = encoder.loaded.tokenizer
        self.config = config
        self.encoder = encoder
        self.max_tokens = encoder.loaded.max_tokens
        self.limits = Limits(config.max_items, config.max_text_bytes)
        self.max_question = self.max_tokens // QUESTION_SHARE
        self.context_first = tokenizer.padding_side == "left"  # as in transformers 4
        self.context_place = 0 if self.context_first else 1
        self.null_id = tokenizer.cls_token_id
        room = self.max_tokens - self.max_question - tokenizer.num_special_tokens_to_add(pair=True)
        if encoder.stride is not None and encoder.stride >= room:
            raise LoadError(
                f"handler.stride is {encoder.stride}, but a window has room for {room} tokens of context"
            )

    def parse(self, call: Call) -> Request:
        """Questions, with the context of all or with the contexts of each."""
        parameters = read_parameters(call, Parameters)
        questions = _read_filled(call, self.limits)
        contexts = _read_filled(_contexts(call, parameters), self.limits)
        if parameters.context is not None:
            contexts *= len(questions)
        if len(contexts) != len(questions):
            raise InvalidRequest(f"contexts: expected as many as {call.field}")
        size = sum(len(text.encode()) for text in (*questions, *contexts))
        if size > self.config.max_body_bytes:  # one context for many questions is short to send and long to read
            limit = self.config.max_body_bytes
            raise TooLarge(f"{call.field}: {size} bytes, each with its context; the limit is {limit}")
        pairs = zip(questions, contexts, strict=True)
        return Request(tuple(self._item(*pair) for pair in pairs), call.single, parameters)

    def encode(self, items: Sequence[TextItem]) -> list[Slot[Rows]]:
        """Pairs to windows; where the question is too long for windows, all has to fit in one."""
        sizes = self._question_sizes(items)
        items = [
            replace(item, truncate=size <= self.max_question) for item, size in zip(items, sizes, strict=True)
        ]
        slots = self.encoder.encode(items)
        return [
            self._too_long(size) if isinstance(slot, TooLarge) else slot
            for slot, size in zip(slots, sizes, strict=True)
        ]

    def forward(self, rows: Sequence[Tokens]) -> Sequence[Window]:
        """Tokens to logits."""
        output, _ = self.encoder.forward(rows)
        logits = torch.stack([output.start_logits, output.end_logits], dim=-1)
        return [Window(*pair) for pair in zip(rows, self.encoder.unpad(rows, logits), strict=True)]

    def decode(self, request: Request, outputs: Sequence[tuple[Window, ...]]) -> Sequence[Found]:
        """Logits to the best answers to each question."""
        require_finite([window.logits for windows in outputs for window in windows])
        return [self._answers(request, index, windows) for index, windows in enumerate(outputs)]

    def answer(self, request: Request, results: Sequence[Found], about: About) -> dict[str, Any]:
        """The best answer to one question; a list of them, with the model and the time, for a list."""
        return document(request, self.predictions(request, results), about)

    def predictions(self, request: Request, results: Sequence[Found]) -> Sequence[dict[str, Any]]:
        """The best answer to each question, with the best few if they were asked for."""
        listed = request.parameters.top_k or self.config.top_k
        return [{**found[0], "answers": found} if listed else found[0] for found in results]

    def pipeline(self, request: Request, results: Sequence[Found], asked: Collection[str]) -> Any:
        """As transformers 4: an answer, or a list of several; for one question, or for each of more than one."""
        each = [found[0] if len(found) == 1 else found for found in results]
        return each[0] if len(each) == 1 else each

    def columns(self, request: Request, results: Sequence[Found]) -> dict[str, Any]:
        """The best answer to each question, and all that were asked for."""
        best = [found[0] for found in results]
        return {
            "answer": [answer["answer"] for answer in best],
            "score": np.array([answer["score"] for answer in best], np.float32),
            "start": np.array([answer["start"] for answer in best], np.int64),
            "end": np.array([answer["end"] for answer in best], np.int64),
            "answers": list(results),
        }

    def describe(self) -> dict[str, Any]:
        """How long contexts are read."""
        return {"stride": self.encoder.stride, "max_question_tokens": self.max_question}

    def _item(self, question: str, context: str) -> TextItem:
        """The pair in the model's order."""
        if self.context_first:
            return TextItem(context, True, question)
        return TextItem(question, True, context)

    def _question_sizes(self, items: Sequence[TextItem]) -> list[int]:
        """Each question's tokens; none where there is no pair, as in warming up."""
        questions = [(item.pair if self.context_first else item.text) if item.pair else "" for item in items]
        encoded = self.encoder.loaded.tokenizer(questions, add_special_tokens=False, verbose=False)
        return [len(ids) for ids in encoded["input_ids"]]

    def _too_long(self, size: int) -> TooLarge:
        windows = f"the limit is {self.max_question} where it and the context have more than {self.max_tokens}"
        return TooLarge(f"the question has {size} tokens; {windows}")

    def _answers(self, request: Request, index: int, windows: Sequence[Window]) -> Found:
        item, parameters = request.items[index], request.parameters
        text = (item.text if self.context_first else item.pair) or ""
        answers = Answers(text, self.context_place, parameters.align_to_words)
        top_k = parameters.top_k or self.config.top_k or 1
        # Some spans end up as the same words, so more are looked at than asked for, as in transformers 4.
        count = 2 * top_k + 10 if parameters.align_to_words else top_k
        for window in windows:
            context = np.array(window.tokens.encoding.sequence_ids) == self.context_place
            null = window.tokens.ids.index(self.null_id) if self.null_id in window.tokens.ids else 0
            spans = choose(window.logits, context, null, parameters.max_answer_len, count)
            answers.add(window.tokens.encoding, spans)
        found = answers.best(top_k, parameters.handle_impossible_answer)
        if not found:
            where = "context" if parameters.contexts is None else f"contexts[{index}]"
            raise InvalidRequest(f"{where}: has no tokens")
        return found


def _read_filled(call: Call, limits: Limits) -> list[str]:
    """A call's texts, none of which may be empty: transformers 4 refused them too."""
    texts = read_texts(call, limits)
    if "" in texts:
        where = call.field if call.single else f"{call.field}[{texts.index('')}]"
        raise InvalidRequest(f"{where}: is empty")
    return texts


def _contexts(call: Call, parameters: Parameters) -> Call:
    """The contexts as a call of their own, so that they are judged as all texts are."""
    if parameters.context is not None and parameters.contexts is not None:
        raise InvalidRequest("context: expected either context or contexts, not both")
    if parameters.context is not None:
        return Call("context", (parameters.context,), True, {})
    if parameters.contexts is None or call.single:
        more = "" if call.single else ", or contexts, a list"
        raise InvalidRequest(f"context: is missing; expected context, a string{more}")
    return Call("contexts", parameters.contexts, False, {})


def build(config: HandlerConfig, directory: Path, device: torch.device) -> QuestionAnswering:
    """Loads the reader. Raises LoadError."""
    loaded = load(directory, config, transformers.AutoModelForQuestionAnswering, device)
    if config.max_tokens is None:
        loaded = replace(loaded, max_tokens=min(loaded.max_tokens, MOST_TOKENS))
    stride = min(loaded.max_tokens // 2, MOST_SHARED) if config.stride is None else config.stride
    cut = "only_first" if loaded.tokenizer.padding_side == "left" else "only_second"
    return QuestionAnswering(config, TextEncoder(loaded, cut, stride))
