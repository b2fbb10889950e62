"""Frozen dataclasses between protocols and tasks, and the checks that many tasks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import orjson

from handler.errors import InvalidRequest, TooLarge
from handler.rules import Rule, check
from handler.wire import JSON

MOST_PROBLEMS = 5  # that one answer names


class FormText(str):
    """A parameter from a form, which has nothing but text: it may stand for a number, true, false or null."""


@dataclass(frozen=True)
class TokenIds:
    """One input that its client has tokenized; special tokens included, without padding."""

    ids: tuple[int, ...]
    types: tuple[int, ...] | None = None  # token types, as many


@dataclass(frozen=True)
class Column:
    """A tensor of the model, as metadata tells of it. Its first dimension is a request's inputs."""

    name: str
    datatype: str  # of the Open Inference Protocol
    shape: tuple[int, ...]  # -1: any


@dataclass(frozen=True)
class Call:
    """What a protocol found in a message; nothing of it has been judged yet."""

    field: str  # how the protocol calls the inputs, for messages
    inputs: Sequence[object]
    single: bool  # one input was sent by itself, and is answered by itself
    parameters: Mapping[str, object]
    media_type: str = JSON  # that the answer is wanted in
    number_bytes: int | None = None  # of a number in binary; None: as the model has it
    wanted: Any = None  # what else the protocol has to know when it writes the answer


@dataclass(frozen=True)
class TextItem:
    """One text to encode, or the tokens of one; equal items are encoded once."""

    text: str
    truncate: bool  # cut to the model's limit, rather than refuse
    pair: str | None = None  # the second text, where the model reads two
    ids: tuple[int, ...] | None = field(default=None, kw_only=True)  # in place of all texts
    types: tuple[int, ...] | None = field(default=None, kw_only=True)  # of the ids


@dataclass(frozen=True)
class Request:
    """A valid request."""

    items: tuple[TextItem, ...]
    single: bool
    parameters: Any  # the task's own frozen dataclass
    items_per_input: int = 1
    media_type: str = JSON  # of the answer


@dataclass(frozen=True)
class Limits:
    """What one request may hold."""

    items: int
    text_bytes: int
    pairs_bytes: int = 0  # of all pairs of texts together, where the task makes pairs


@dataclass(frozen=True)
class Vocabulary:
    """What tokens a model reads."""

    size: int
    types: int  # 0: it has no token types
    most: int  # tokens of one input


def several(call: Call) -> Call:
    """The call, with a list under the name of one input as that many inputs: clients send prompts so."""
    if call.single and isinstance(call.inputs[0], list):
        return replace(call, inputs=call.inputs[0], single=False)
    return call


def read_text_request(
    call: Call, schema: type[Any], limits: Limits, vocabulary: Vocabulary | None = None
) -> Request:
    """A call for texts, or for what is tokenized already, as a request.

    Args:
        call: what was asked.
        schema: the task's parameters: a dataclass whose fields were made by `rules.key`, with a `truncation`.
        limits: what it may hold.
        vocabulary: what tokens may be sent in place of texts; None: none.

    Raises:
        InvalidRequest: a parameter is wrong (the first few are named), an input is no text (its index is named),
            or there is none.
        TooLarge: too many inputs, or one that is too long.
    """
    parameters = read_parameters(call, schema)
    if vocabulary is not None and is_tokenized(call):
        items = read_tokens(call, limits, vocabulary)
    else:
        items = tuple(TextItem(text, parameters.truncation) for text in read_texts(call, limits))
    return Request(items, call.single, parameters, media_type=call.media_type)


def is_tokenized(call: Call) -> bool:
    """Whether a client sent tokens in place of texts."""
    return bool(call.inputs) and isinstance(call.inputs[0], TokenIds)


def read_tokens(call: Call, limits: Limits, vocabulary: Vocabulary) -> tuple[TextItem, ...]:
    """A call's tokens.

    Raises:
        InvalidRequest: an id is not the model's (the input's index is named), or there is none.
        TooLarge: too many inputs, or one that is longer than the model reads: nothing is cut.
    """
    _count(call, limits)
    return tuple(_read_ids(ids, _names(call)[index], vocabulary) for index, ids in enumerate(call.inputs))


def _read_ids(found: object, where: str, vocabulary: Vocabulary) -> TextItem:
    if not isinstance(found, TokenIds) or not found.ids:
        raise InvalidRequest(f"{where}: has no tokens")
    if len(found.ids) > vocabulary.most:
        raise TooLarge(f"{where}: {len(found.ids)} tokens; the limit is {vocabulary.most}")
    if not 0 <= min(found.ids) <= max(found.ids) < vocabulary.size:
        highest = vocabulary.size - 1
        raise InvalidRequest(f"{where}: expected ids from 0 to {highest}, of this model's own tokenizer")
    if found.types is not None and not 0 <= min(found.types) <= max(found.types) < vocabulary.types:
        kinds = f"from 0 to {vocabulary.types - 1}" if vocabulary.types else "none: the model has no token types"
        raise InvalidRequest(f"{where}: token_type_ids: expected {kinds}")
    return TextItem("", False, ids=found.ids, types=found.types)


def read_parameters(call: Call, schema: type[Any]) -> Any:
    """A call's parameters as that dataclass. Raises InvalidRequest, which names the first few that are wrong."""
    rules = {field.name: field.metadata["rule"] for field in fields(schema)}
    values = {name: _settled(value, rules.get(name)) for name, value in call.parameters.items()}
    if problems := check(values, schema, quote=False, most=MOST_PROBLEMS):
        raise InvalidRequest("; ".join(map(str, problems)))
    return schema(**values)


def _settled(value: object, rule: Rule | None) -> object:
    """A form's parameter as its rule wants it: as it stands where a text is wanted, else what it stands for."""
    if not isinstance(value, FormText) or rule is None:
        return value
    text = str(value)  # the plain type again: orjson and marshal take no other
    if rule.accepts(text):
        return text
    try:
        meant: object = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    return text if isinstance(meant, (list, dict, str)) else meant


def read_texts(call: Call, limits: Limits) -> list[str]:
    """A call's texts.

    Raises:
        InvalidRequest: an input is no text (its index is named), or there is none.
        TooLarge: too many inputs, or one that is too long.
    """
    _count(call, limits)
    return [read_text(text, name, limits) for text, name in zip(call.inputs, _names(call), strict=True)]


def _count(call: Call, limits: Limits) -> None:
    if not call.inputs:
        raise InvalidRequest(f"{call.field}: expected a list of at least one string")
    if len(call.inputs) > limits.items:
        raise TooLarge(f"{call.field}: {len(call.inputs)} items; the limit is {limits.items}")


def _names(call: Call) -> list[str]:
    """How messages call each input."""
    return [call.field] if call.single else [f"{call.field}[{index}]" for index in range(len(call.inputs))]


def pair_up(request: Request, pairs: Sequence[TextItem], limits: Limits) -> Request:
    """The request with pairs of texts for its texts, as many for each.

    One text is repeated in many pairs, so a small body may ask for much to be tokenized: megabytes for each
    request of a batch, in one call that no deadline interrupts. Together they are bound as a body is.

    Raises:
        TooLarge: the pairs together are over the limit.
    """
    size = sum(len(item.text.encode()) + len((item.pair or "").encode()) for item in pairs)
    if size > limits.pairs_bytes:
        raise TooLarge(f"the {len(pairs)} pairs of texts have {size} bytes; the limit is {limits.pairs_bytes}")
    return replace(request, items=tuple(pairs), items_per_input=len(pairs) // len(request.items))


def read_text(text: object, where: str, limits: Limits) -> str:
    """A text, if it is one; `where` is what messages call it. Raises InvalidRequest or TooLarge."""
    if isinstance(text, TokenIds):
        raise InvalidRequest(f"{where}: expected a string, not tokens")
    if not isinstance(text, str):
        raise InvalidRequest(f"{where}: expected a string")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as err:  # a lone surrogate, where TorchServe has parsed the JSON itself
        raise InvalidRequest(f"{where}: expected a string of valid Unicode") from err
    if size > limits.text_bytes:
        raise TooLarge(f"{where}: {size} bytes; the limit is {limits.text_bytes}")
    return text
