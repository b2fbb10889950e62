"""What a task is: parse, encode, forward, decode, answer."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from handler.batch import Slot
from handler.config import TASKS, HandlerConfig
from handler.errors import NonFiniteOutput
from handler.protocols.protocol import About, Teller
from handler.request import Call, Column, Request, TextItem, Vocabulary
from handler.text_encoder import Rows, Tokens


class Task(Teller, Protocol):
    """One model, and what is done with it. No step touches a request that is not its own."""

    field: str  # how a request calls one input; a list of them has an s more
    beside: str  # what each input may have of its own, as a question its context; "": nothing
    inputs: Sequence[Column]  # as metadata tells of them
    outputs: Sequence[Column]  # of `columns`; none where they are known only when they are there
    max_tokens: int
    media_types: Sequence[str]  # that answers may be written in; none: JSON, whatever is accepted

    def parse(self, call: Call) -> Request:
        """Judges a call; raises InvalidRequest or TooLarge."""

    def encode(self, items: Sequence[TextItem]) -> list[Slot[Rows]]:
        """Items to tokens, or the error in their place. A long item may become several rows."""

    def forward(self, rows: Sequence[Tokens]) -> Sequence[Any]:
        """One micro-batch through the model: an output for each row, on the CPU."""

    def decode(self, request: Request, outputs: Sequence[tuple[Any, ...]]) -> Sequence[Any]:
        """One request's outputs, those of all its rows for each item, to its results; raises NonFiniteOutput."""

    def describe(self) -> dict[str, Any]:
        """What the management API shows of the model."""


def require_finite(outputs: Sequence[npt.NDArray[np.float32] | torch.Tensor]) -> None:
    """Raises NonFiniteOutput where one request's outputs hold a NaN or an infinity: JSON has neither."""
    if not all((torch if isinstance(output, torch.Tensor) else np).isfinite(output).all() for output in outputs):
        raise NonFiniteOutput("the model answered NaN or infinity")


def text_inputs(field: str, *more: Column, tokens: Vocabulary | None = None) -> tuple[Column, ...]:
    """The columns of a task that reads texts, or, with `tokens`, those of that vocabulary in their place."""
    names: tuple[str, ...] = ()
    if tokens is not None:
        names = ("input_ids", "attention_mask", *(("token_type_ids",) if tokens.types else ()))
    return (Column(field, "BYTES", (-1,)), *more, *(Column(name, "INT64", (-1, -1)) for name in names))


def unlisted(request: Request, values: Sequence[Any]) -> Any:
    """The only value for one input, a list for a list."""
    return values[0] if request.single else list(values)


def document(request: Request, predictions: Sequence[Any], about: About) -> dict[str, Any]:
    """One prediction for one input; a list of them, with the model and the time, for a list."""
    if request.single:
        return dict(predictions[0])
    return {
        "predictions": list(predictions),
        "model_name": about.model_name,
        "inference_time_ms": about.inference_time_ms,
    }


def build(config: HandlerConfig, directory: Path, device: torch.device) -> Task:
    """The task that the configuration names, with its model loaded. Raises LoadError."""
    room = TASKS.get(config.task, "handler.tasks.own")
    task: Task = importlib.import_module(room).build(config, directory, device)
    return task
