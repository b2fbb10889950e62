"""A recipe's own logic: `task: my_module:MyTask`, a class that turns a list of texts into as many results.

    class MyTask:
        field = "prompt"  # how a request calls one text; "text" if left out

        def __init__(self, directory, options, device):
            ...  # model/ of the archive, the recipe's options, a torch.device

        def run(self, texts):  # equal texts of a batch come once; lanes call it side by side
            return [{"score": 0.5} for text in texts]  # a mapping each: what JSON can say, or tensors

It gets what every task has: slots, so that one text's failure is that request's alone; batches, in which `run`
sees the texts of many requests; the deadline, the limits, the cache and the errors. A HandlerError that `run`
raises for a text, such as `handler.errors.InvalidRequest`, is what its request gets.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from handler.batch import Slot
from handler.config import HandlerConfig
from handler.errors import LoadError, NonFiniteOutput
from handler.protocols.protocol import About
from handler.request import Call, Limits, Request, TextItem, read_parameters, read_texts, several
from handler.tasks.base import document, text_inputs
from handler.tensors import WRITERS, Tensors, column, columns, plain
from handler.text_encoder import Rows, Tokens


@dataclass(frozen=True)
class Parameters:
    """What a request may ask for: nothing, as `run` is given texts only."""


@dataclass(frozen=True)
class Text(Tokens):
    """One text, which counts as many tokens as its task says."""

    text: str
    size: int

    def __len__(self) -> int:
        return self.size


class OwnTask:
    """Somebody's class, as the pipeline uses tasks."""

    beside = ""
    media_types = tuple(WRITERS)
    outputs = ()  # only `run` knows

    def __init__(self, config: HandlerConfig, task: Any) -> None:
        self.task = task
        self.name = config.task
        self.field: str = getattr(task, "field", "text")
        self.inputs = text_inputs(self.field)
        self.max_tokens = config.max_tokens or 1
        self.limits = Limits(config.max_items, config.max_text_bytes)

    def parse(self, call: Call) -> Request:
        """Texts; one name may also hold a list of them."""
        call = several(call)
        items = tuple(TextItem(text, True) for text in read_texts(call, self.limits))
        return Request(items, call.single, read_parameters(call, Parameters), media_type=call.media_type)

    def encode(self, items: Sequence[TextItem]) -> list[Slot[Rows]]:
        """Each text with its size: `length(text)` where the class has it, else 1."""
        length = getattr(self.task, "length", None)
        if not callable(length):  # it may be something of the class's own
            length = _one
        return [(Text([], None, None, item.text, max(1, length(item.text))),) for item in items]

    def forward(self, rows: Sequence[Text]) -> Sequence[Mapping[str, Any]]:
        """What the class makes of them."""
        with torch.inference_mode():
            results = list(self.task.run([row.text for row in rows]))
        if len(results) != len(rows):
            raise ValueError(f"{self.name}.run gave {len(results)} results for {len(rows)} texts")
        return [{name: _on_cpu(value) for name, value in result.items()} for result in results]

    def decode(self, request: Request, outputs: Sequence[tuple[Mapping[str, Any]]]) -> Sequence[Mapping[str, Any]]:
        """The results, if their numbers are numbers."""
        results = [result for (result,) in outputs]
        if not _finite(results):
            raise NonFiniteOutput("the model answered NaN or infinity")
        return results

    def answer(
        self, request: Request, results: Sequence[Mapping[str, Any]], about: About
    ) -> dict[str, Any] | Tensors:
        """Tensors, if there are any; else one document for one text, a list of them for a list."""
        names = [name for name, value in results[0].items() if isinstance(value, torch.Tensor)]
        if not names:
            return document(request, results, about)
        beside = [name for name in results[0] if name not in names]
        return Tensors(
            {name: [result[name] for result in results] for name in names},
            {
                **{name: [result[name] for result in results] for name in beside},
                "time_ms": about.inference_time_ms,
            },
        )

    def predictions(self, request: Request, results: Sequence[Mapping[str, Any]]) -> Sequence[dict[str, Any]]:
        """Each result, tensors as JSON has numbers."""
        return [{name: plain(value) for name, value in result.items()} for result in results]

    def pipeline(self, request: Request, results: Sequence[Mapping[str, Any]], asked: Collection[str]) -> None:
        """There is none."""

    def columns(self, request: Request, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What the results hold, name by name."""
        answer = self.answer(replace(request, single=False), results, About("", 0))
        if isinstance(answer, Tensors):
            return columns(answer)
        return {name: column([result.get(name) for result in results]) for name in results[0]}

    def describe(self) -> dict[str, Any]:
        """What the class says of itself."""
        return dict(self.task.describe()) if hasattr(self.task, "describe") else {}


def _one(text: str) -> int:
    return 1


def _finite(value: Any) -> bool:
    """Whether no number in it is NaN or an infinity, however deep."""
    if isinstance(value, (float, np.floating)):
        return math.isfinite(value)
    if isinstance(value, torch.Tensor):
        return bool(torch.isfinite(value).all())
    if isinstance(value, np.ndarray):
        return value.dtype.kind not in "fc" or bool(np.isfinite(value).all())
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    return not isinstance(value, (list, tuple)) or all(map(_finite, value))


def _on_cpu(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, np.generic):  # one number, as orjson and `column` know it
        return value.item()
    return value.detach().cpu() if isinstance(value, torch.Tensor) else value


def build(config: HandlerConfig, directory: Path, device: torch.device) -> OwnTask:
    """Loads the recipe's class. Raises LoadError."""
    module, _, name = config.task.partition(":")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise LoadError(f"handler.task: {config.task}: {error}") from error
    return OwnTask(config, kind(directory, dict(config.options or {}), device))
