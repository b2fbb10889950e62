"""Answers that keep to a format: JSON, JSON of a schema, a regular expression, or one of some choices.

llguidance says at each token which may come next. It needs no table of a format beforehand, so that a new one
costs milliseconds; what a schema or an expression of a client may cost at most is bounded.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import torch

from handler.generation.openai_requests import is_nothing
from handler.generation.tool_choice import Choice

logger = logging.getLogger(__name__)

FIELDS = ("response_format", "structured_outputs")  # the OpenAI protocol's, and vLLM's beside it
# As JSON is written, in a line or with a line for each item. Where there may be any space at all between any two
# of its parts, as by default, a weak model writes nothing else once it has begun to.
SPACING = {"whitespace_flexible": False, "item_separator": r",( |\n[ \t]{0,24})?", "key_separator": ": ?"}
# Of llguidance's work, a fifth of its own: `(a{1000}){1000}` took 2.2 s with that, and is refused after 0.1 s now.
FUEL = 200_000
MOST_CHOICES = 1000
# Of all lists of a schema together: each is a rule of a grammar's, and a `maxItems` of ten million took 7 GB.
MOST_ITEMS = 20_000
UNFOLLOWED = "the format takes too much work to be kept to any further"
# How a tokenizer's pieces are to be read is guessed from its file; with this it is seen that the guess is right.
SAMPLE = '{"a": ["x y", -1.5e3, true], "\u00fc": "\u65e5\u672c\\n"}'


class Unkept(ValueError):
    """A format that no answer can be kept to; the message is for the client."""


class Formats:
    """Reads the formats that requests ask for, for one model.

    Args:
        tokens: the model's, as llguidance has them (LLTokenizer).
        vocabulary: tokens that the model gives scores of.
    """

    def __init__(self, tokens: Any, vocabulary: int) -> None:
        import llguidance  # noqa: PLC0415  `find` has looked for it

        self._llguidance = llguidance
        self._tokens = tokens
        self._vocabulary = vocabulary
        self._limits = llguidance.LLParserLimits(initial_lexer_fuel=FUEL, verbose_errors=False)

    def read(self, body: Mapping[str, Any]) -> Format | None:
        """What a request's answer has to look like; None: as it likes. Raises Unkept."""
        given = {field: body[field] for field in FIELDS if body.get(field) is not None}
        asked = [field for field, value in given.items() if not is_nothing(field, value)]
        if not asked:
            return None
        if len(asked) > 1:
            raise Unkept(f"expected one of {' and '.join(asked)}")
        [field] = asked
        return self._format(field, GRAMMARS[field](self._llguidance.LLMatcher, given[field]))

    def of_calls(self, choice: Choice) -> Format:
        """What an answer has to look like that calls what it is to call. Raises Unkept."""
        _judge(*choice.functions.values())
        inline = {
            name: f"%json {json.dumps({**schema, 'x-guidance': SPACING})}"
            for name, schema in choice.functions.items()
        }
        return self._format("tools", choice.grammar(inline))

    def _format(self, field: str, grammar: str) -> Format:
        """Raises Unkept."""
        matcher = self._llguidance.LLMatcher(self._tokens, grammar, log_level=0, limits=self._limits)
        read = Format(matcher, self._vocabulary)
        if read.allowed(()) is None:
            why = " ".join(matcher.get_error().split()) or "no answer does"
            raise Unkept(f"{field}: this format cannot be kept to: {why}")
        return read


class Format:
    """That of one answer, which it follows."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._followed = 0  # tokens of the answer
        self.lost = False  # whether it turned out to be too much to follow

    def __deepcopy__(self, memo: Any) -> Format:
        """Itself: the engine goes on with a copy of a request that it has put off."""
        return self

    def allowed(self, said: Sequence[int]) -> torch.Tensor | None:
        """Which tokens may come next: (vocabulary) bool; None where none can be told any more.

        Args:
            said: all tokens of the answer so far.
        """
        self._matcher.consume_tokens(said[self._followed :])
        self._followed = len(said)
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self.lost = self._matcher.is_error() or not bits.any()
        if self.lost:
            return None
        return torch.from_numpy(np.unpackbits(bits, count=self._vocabulary, bitorder="little").view(np.bool_))


def find(tokenizer: Any, vocabulary: int, ends: Sequence[int]) -> Formats | None:
    """Formats for a model; None where its answers cannot be kept to any, and a warning says why.

    Args:
        tokenizer: the model's.
        vocabulary: tokens that it gives scores of.
        ends: tokens that end an answer.
    """
    try:
        import llguidance.hf  # noqa: PLC0415  other engines, and other tasks, do without
    except ImportError as error:
        logger.warning("answers cannot be kept to a format: %s", error)
        return None
    try:
        tokens = llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=[*ends])
        read = tokens.decode_bytes(tokenizer(SAMPLE, add_special_tokens=False)["input_ids"])
    except ValueError as error:
        logger.warning("this model's answers cannot be kept to a format: %s", error)
        return None
    if read.strip() != SAMPLE.encode():
        logger.warning("this model's answers cannot be kept to a format: its tokens are not bytes of a text")
        return None
    return Formats(tokens, vocabulary)


def _of_response(matcher: Any, asked: Any) -> str:
    """The grammar of a `response_format`."""
    kind = asked.get("type")
    if kind == "json_object":
        return _of_schema(matcher, {"type": "object"})
    if kind != "json_schema":
        raise Unkept("response_format: expected a type of text, json_object or json_schema")
    named = asked.get("json_schema")
    if not isinstance(named, dict) or "schema" not in named:
        raise Unkept("response_format.json_schema: expected an object with a schema")
    return _of_schema(matcher, named["schema"])


def _of_structured(matcher: Any, asked: Any) -> str:
    """The grammar of `structured_outputs`."""
    kinds = [kind for kind, value in asked.items() if value is not None]
    if len(kinds) != 1 or kinds[0] not in STRUCTURED:
        raise Unkept(f"structured_outputs: expected one of {', '.join(STRUCTURED)}")
    return STRUCTURED[kinds[0]](matcher, asked[kinds[0]])


def _of_schema(matcher: Any, schema: Any) -> str:
    """The grammar of a JSON schema, which may be a string that has one."""
    if isinstance(schema, str):
        try:
            schema = orjson.loads(schema)
        except orjson.JSONDecodeError:
            raise Unkept("the schema is no JSON") from None
    _judge(schema)
    try:
        grammar: str = matcher.grammar_from_json_schema(schema, overrides=SPACING)
    except ValueError as error:
        raise Unkept(f"the schema: {error}") from None
    return grammar


def _judge(*schemas: Any) -> None:
    """Raises Unkept."""
    if not all(isinstance(schema, dict) for schema in schemas):
        raise Unkept("the schema: expected an object")
    if _items(schemas) > MOST_ITEMS:
        raise Unkept(f"the schema: expected minItems and maxItems of at most {MOST_ITEMS} together")


def _items(schema: Any) -> float:
    """All bounds of lists in a schema, added up."""
    total, left = 0.0, [schema]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            bounds = (part.get("minItems"), part.get("maxItems"))
            total += sum(bound for bound in bounds if isinstance(bound, int | float))
            left.extend(part.values())
        elif isinstance(part, (list, tuple)):
            left.extend(part)
    return total


def _of_regex(matcher: Any, pattern: Any) -> str:
    if not isinstance(pattern, str):
        raise Unkept("structured_outputs.regex: expected a string")
    grammar: str = matcher.grammar_from_regex(pattern)
    return grammar


def _of_choices(matcher: Any, choices: Any) -> str:
    fits = isinstance(choices, list) and all(isinstance(one, str) and one for one in choices)
    if not (fits and 0 < len(choices) <= MOST_CHOICES):
        raise Unkept(f"structured_outputs.choice: expected a list of at most {MOST_CHOICES} strings")
    return f"start: {' | '.join(json.dumps(one, ensure_ascii=False) for one in choices)}"


def _of_any_object(matcher: Any, wanted: Any) -> str:
    if wanted is not True:
        raise Unkept("structured_outputs.json_object: expected true")
    return _of_schema(matcher, {"type": "object"})


Grammar = Callable[[Any, Any], str]  # llguidance's LLMatcher, and what is asked for
GRAMMARS: Mapping[str, Grammar] = {"response_format": _of_response, "structured_outputs": _of_structured}
STRUCTURED: Mapping[str, Grammar] = {
    "json": _of_schema,
    "regex": _of_regex,
    "choice": _of_choices,
    "json_object": _of_any_object,
}
