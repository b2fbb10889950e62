"""OpenAI's `v1/embeddings`, for models that embed texts: numbers as a list, or base64 of little-endian float32.

And `v1/models`, by which its clients ask for the names that `model` may have, or `v1/models/NAME` for one of them.
https://platform.openai.com/docs/api-reference/embeddings/create
https://platform.openai.com/docs/api-reference/models/retrieve
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from handler.errors import BadRequest, HandlerError, NotOffered
from handler.protocols import native
from handler.protocols.protocol import EMBEDDING, About, Done, Model, Protocol, Teller
from handler.request import MOST_PROBLEMS, Call, TokenIds
from handler.rules import TEXT, Rule, check, integer, key, one_of, optional
from handler.wire import Message

MODELS = "v1/models"
TOKENS = "tokens"  # the column that usage is counted by


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
    size = _size(model)
    said = native.read_json(message.body, "input")
    if problems := check(said, Asked, quote=False, most=MOST_PROBLEMS):
        raise BadRequest("; ".join(map(str, problems)))
    asked = Asked(**said)
    if asked.model not in (names := _names(model)):
        raise NotOffered(f"model: only {', '.join(names)} is served here")
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


def read_models(message: Message, document: Any, model: Model) -> Call:
    """What `v1/models` answers. Raises NotOffered."""
    _size(model)
    return Call("", (), True, {}, wanted=models_document(message.path, _names(model)))


def models_document(path: str, names: Iterable[str]) -> dict[str, Any]:
    """The names that `model` may have, or the one in the path, in the protocol's shape. Raises NotOffered."""
    about = {"object": "model", "created": int(time.time()), "owned_by": "torchserve"}
    models = {name: {"id": name, **about} for name in names}
    wanted = path.strip("/").removeprefix(MODELS).strip("/")
    if not wanted:
        return {"object": "list", "data": [*models.values()]}
    if wanted not in models:
        raise NotOffered(f"model: only {', '.join(models)} is served here")
    return models[wanted]


def openai_error(error: HandlerError, message: str) -> Mapping[str, Any]:
    """An error in the protocol's shape."""
    return error_document(error.status, message)


def error_document(status: int, message: str) -> dict[str, Any]:
    """An error in the protocol's shape, of which only the status is known."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _size(model: Model) -> int:
    """Of its vectors. Raises NotOffered."""
    for column in model.outputs:
        if column.name == EMBEDDING:
            return column.shape[-1]
    raise NotOffered("this model makes no embeddings")


def _names(model: Model) -> tuple[str, ...]:
    return (model.name, *model.also_called)


def _input(value: object) -> object:
    return TokenIds(tuple(value)) if _is_tokens(value) else value


def _is_tokens(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and bool(value) and all(type(one) is int for one in value)


OPENAI_EMBEDDINGS = Protocol(
    "openai-embeddings", read, write, openai_error, BadRequest, speaks=lambda model: model.embeds
)
OPENAI_MODELS = Protocol(
    "openai models", read_models, lambda task, done, about: done.call.wanted, openai_error, describes=True
)
