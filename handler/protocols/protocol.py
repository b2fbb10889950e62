"""What a protocol is: message -> call, results -> document, error -> document."""

from __future__ import annotations

import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handler.errors import (
    BadRequest,
    ClientFault,
    HandlerError,
    InvalidRequest,
    NotOffered,
    TooLarge,
    UnsupportedMediaType,
)
from handler.request import Call, Column, Request
from handler.wire import FORMS, Message, Shape, plain_error

EMBEDDING = "embedding"  # the column of a model that makes one vector for each text


@dataclass(frozen=True)
class About:
    """What an answer may say of its making."""

    model_name: str
    inference_time_ms: float
    model_version: str = "1.0"


@dataclass(frozen=True)
class Model:
    """What protocols have to know of a model."""

    name: str
    version: str
    field: str  # how a request calls one input; a list of them has an s more
    beside: str  # what each input may have of its own, as a question its context; "": nothing
    inputs: Sequence[Column]
    outputs: Sequence[Column]
    max_body_bytes: int
    max_items: int  # of one request
    also_called: Collection[str] = ()  # where a protocol has the model's name in the body

    @property
    def names(self) -> tuple[str, str]:
        """How a request calls its inputs."""
        return self.field, self.field + "s"

    @property
    def embeds(self) -> bool:
        """Whether it makes one vector for each text."""
        return any(column.name == EMBEDDING for column in self.outputs)


class Teller(typing.Protocol):
    """How a task tells its results: the part of a task that protocols see."""

    def answer(self, request: Request, results: Sequence[Any], about: About) -> Any:
        """The native document, or tensors."""

    def predictions(self, request: Request, results: Sequence[Any]) -> Sequence[Any]:
        """What JSON can say of each input's result."""

    def pipeline(self, request: Request, results: Sequence[Any], asked: Collection[str]) -> Any:
        """What transformers' pipeline answers, where there is one; `asked` names the request's parameters."""

    def columns(self, request: Request, results: Sequence[Any]) -> Mapping[str, Any]:
        """Tensors by name: a NumPy array of a number for each input, or a list of what JSON can say."""


@dataclass(frozen=True)
class Done:
    """A call, and what came of it."""

    call: Call
    request: Request
    results: Sequence[Any]


@dataclass(frozen=True)
class Protocol:
    """One way of asking; `write` gives a document for JSON, tensors, or a whole reply."""

    name: str
    read: Callable[[Message, Any, Model], Call]  # the second: the JSON document, where that was what told
    write: Callable[[Teller, Done, About], Any]
    error: Shape = plain_error
    invalid: type[ClientFault] = InvalidRequest  # what a wrong field is in its terms, and so with which status
    describes: bool = False  # whether it asks about the model, which runs nothing
    negotiates: bool = False  # whether `Accept` may ask for tensors as something else than JSON
    speaks: Callable[[Model], bool] = lambda model: True  # whether it has words for what a model answers

    def own(self, error: HandlerError) -> HandlerError:
        """The error as the protocol has it."""
        return self.invalid(str(error)) if isinstance(error, InvalidRequest) else error


def check(message: Message, max_bytes: int) -> None:
    """What no protocol reads. Raises BadRequest, NotOffered, TooLarge or UnsupportedMediaType."""
    if message.explain:
        raise NotOffered("this model gives no explanations; send the request to /predictions")
    size = len(message.body) + sum(map(len, message.fields.values()))
    if size > max_bytes:
        raise TooLarge(f"the body has {size} bytes; the limit is {max_bytes}")
    if message.encoding.lower() not in ("", "identity"):
        raise UnsupportedMediaType("content-encoding: only identity is read")
    if not message.fields and not message.body and message.content_type.lower().startswith(FORMS):
        raise BadRequest("the form has no fields; JSON is sent as content-type: application/json")
