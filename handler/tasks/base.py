"""What a task is: parse, encode, forward, decode, answer."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from handler.batch import Slot
from handler.config import TASKS, HandlerConfig
from handler.errors import NonFiniteOutput
from handler.request import Call, Request, TextItem
from handler.tensors import Tensors
from handler.text_encoder import Rows, Tokens


@dataclass(frozen=True)
class About:
    """What an answer may say of its making."""

    model_name: str
    inference_time_ms: float


class Task(Protocol):
    """One model, and what is done with it. No step touches a request that is not its own."""

    field: str  # how a request calls one input; a list of them has an s more
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

    def answer(self, request: Request, results: Sequence[Any], about: About) -> dict[str, Any] | Tensors:
        """The native protocol's document."""

    def describe(self) -> dict[str, Any]:
        """What the management API shows of the model."""


def require_finite(outputs: Sequence[npt.NDArray[np.float32] | torch.Tensor]) -> None:
    """Raises NonFiniteOutput where one request's outputs hold a NaN or an infinity: JSON has neither."""
    if not all((torch if isinstance(output, torch.Tensor) else np).isfinite(output).all() for output in outputs):
        raise NonFiniteOutput("the model answered NaN or infinity")


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
