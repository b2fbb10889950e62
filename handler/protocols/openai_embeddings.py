"""OpenAI's `v1/embeddings`, for models that embed texts: numbers as a list, or base64 of little-endian float32.

https://platform.openai.com/docs/api-reference/embeddings/create
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from handler.errors import BadRequest, HandlerError, NotOffered
from handler.protocols import native
from handler.protocols.protocol import About, Done, Model, Protocol, Teller
from handler.request import MOST_PROBLEMS, Call, TokenIds
from handler.rules import TEXT, Rule, check, integer, key, one_of, optional
from handler.wire import Message

EMBEDDING, TOKENS = "embedding", "tokens"  # the columns that an answer is made of


@dataclass(frozen=True)
class Asked:
    """What a request may hold."""

    input: Any = key(Rule("a string, or a list", lambda v: isinstance(v, (str, list))), "texts, or tokens")
    model: str = key(TEXT, "the model's name")
    encoding_format: str | None = key(optional(one_of("float", "base64")), "of the numbers", None)
    dimensions: int | None = key(optional(integer(1)), "of a vector: the model's own only", None)
    user: str | None = key(optional(TEXT), "who asks; it changes nothing", None)


def read(message: Message, document: Any, model: Model) -> Call:
    """A message to a call. Raises BadRequest, or NotOffered for another model."""
    size = next((column.shape[-1] for column in model.outputs if column.name == EMBEDDING), None)
    if size is None:
        raise NotOffered("this model makes no embeddings")
    said = native.read_json(message.body, "input")
    if problems := check(said, Asked, quote=False, most=MOST_PROBLEMS):
        raise BadRequest("; ".join(map(str, problems)))
    asked = Asked(**said)
    if asked.model not in (model.name, *model.also_called):
        raise NotOffered(f"model: only {', '.join((model.name, *model.also_called))} is served here")
    if asked.dimensions not in (None, size):
        raise BadRequest(f"dimensions: this model's vectors have {size}")
    # Lists of tokens in place of texts, or one alone.
    alone = isinstance(asked.input, str) or _is_tokens(asked.input)
    inputs = [asked.input] if alone else asked.input
    return Call("input", list(map(_input, inputs)), False, {}, wanted=asked.encoding_format or "float")


def write(task: Teller, done: Done, about: About) -> Mapping[str, Any]:
    """A list of vectors, in the order of the inputs, and how many tokens were read."""
    columns = task.columns(done.request, done.results)
    vectors = columns[EMBEDDING].astype("<f4")
    if done.call.wanted == "base64":
        vectors = [base64.b64encode(vector.tobytes()).decode() for vector in vectors]
    tokens = int(columns[TOKENS].sum())
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": about.model_name, "usage": usage}


def openai_error(error: HandlerError, message: str) -> Mapping[str, Any]:
    """An error in the protocol's shape."""
    return error_document(error.status, message)


def error_document(status: int, message: str) -> dict[str, Any]:
    """An error in the protocol's shape, of which only the status is known."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _input(value: object) -> object:
    return TokenIds(tuple(value)) if _is_tokens(value) else value


def _is_tokens(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and bool(value) and all(type(one) is int for one in value)


OPENAI_EMBEDDINGS = Protocol("openai-embeddings", read, write, openai_error)
