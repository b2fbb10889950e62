"""The batch wing: one batch of requests through one task.

rows -wire.read-> messages -protocol-> requests -task-> results -protocol-> replies -wire.write-> rows
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch

from handler import batch, devices, golden, wire
from handler.batch import Deadline, Slot, distinct, each
from handler.config import ModelConfig
from handler.draining import Drain
from handler.errors import HandlerError, LoadError
from handler.lanes import Lanes
from handler.measures import Measures
from handler.memory import Memory, fingerprint
from handler.protocols import native
from handler.request import Request, TextItem
from handler.tasks import base as tasks
from handler.tasks.base import About, Task
from handler.tensors import WRITERS, Tensors
from handler.text_encoder import Tokens
from handler.wire import Message, Reply

logger = logging.getLogger(__name__)

UNHURRIED = 3600  # s for a batch that no client waits for


@dataclass(frozen=True)
class Requests:
    """What preprocess hands to inference."""

    slots: list[Slot[Request]]
    deadline: Deadline
    measures: Measures


@dataclass(frozen=True)
class Answered:
    """A request and its results."""

    request: Request
    results: Sequence[Any]


@dataclass(frozen=True)
class Answers:
    """What inference hands to postprocess."""

    slots: list[Slot[Answered]]
    measures: Measures


class BatchPipeline:
    """The three steps of TorchServe's handler, for tasks that answer a batch at once."""

    def __init__(
        self,
        config: ModelConfig,
        task: Task,
        model_name: str,
        device: torch.device,
        threads: int,
        *,
        memory: Memory,
    ) -> None:
        self.config = config
        self.batch_tokens = config.handler.max_batch_tokens or devices.BATCH_TOKENS[device.type]
        self.launch_tokens = devices.LAUNCH_TOKENS[device.type]
        self.lanes = Lanes(device, threads, config.handler.lanes or devices.lanes(device, threads))
        self.task = task
        self.model_name = model_name
        self.memory = memory
        self.drain = Drain()

    def preprocess(self, rows: Sequence[Mapping[str, Any]], context: Any) -> Requests:
        """Rows to requests."""
        deadline, measures = Deadline.after(self.config.deadline_seconds), Measures(requests=len(rows))
        with measures.step("parse"):
            slots = each(wire.read(rows, context), self._parse)
        return Requests(slots, deadline, measures)

    def inference(self, requests: Requests) -> Answers:
        """Requests to results; equal items of the whole batch are computed once, remembered ones not at all."""
        valid = [slot for slot in requests.slots if isinstance(slot, Request)]
        items, places = distinct([item for request in valid for item in request.items])
        outputs = self._outputs(items, requests) if items else []
        cursor = iter(places)
        with requests.measures.step("decode"):
            answered = each(
                requests.slots,
                lambda request: self._decode(
                    request, [outputs[next(cursor)] for _ in request.items], requests.deadline
                ),
            )
        return Answers(answered, requests.measures)

    def postprocess(self, answers: Answers, context: Any, send: Callable[..., None]) -> list[bytes]:
        """Results and errors to bodies; `send` sends a piece of a large one ahead."""
        about = About(self.model_name, answers.measures.milliseconds)
        with answers.measures.step("write"):
            replies: list[Slot[Reply]] = each(
                answers.slots,
                lambda done: _write(self.task.answer(done.request, done.results, about), done.request.media_type),
            )
            bodies = wire.write(replies, context, self.config.handler.max_response_bytes, send)
        answers.measures.emit(context.metrics)
        return bodies

    def answer(self, messages: Sequence[Message]) -> Sequence[Slot[Mapping[str, Any] | Tensors]]:
        """Messages to documents, as one batch that may take its time: the way without the wire."""
        measures = Measures(requests=len(messages))
        requests = Requests(each(messages, self._parse), Deadline.after(UNHURRIED), measures)
        about = About(self.model_name, measures.milliseconds)
        return each(
            self.inference(requests).slots, lambda done: self.task.answer(done.request, done.results, about)
        )

    def replies(self, messages: Iterable[Message]) -> Iterator[Reply]:
        """Each message's reply in JSON, in order, as many at once as a worker is handed."""
        waiting = iter(messages)
        while chunk := list(islice(waiting, self.config.server.batchSize)):
            for slot in self.answer(chunk):
                yield wire.error_reply(slot) if isinstance(slot, HandlerError) else _write(slot, wire.JSON)

    def describe(self) -> dict[str, Any]:
        """What `GET /models/NAME?customized=true` shows beside TorchServe's own."""
        handler = self.config.handler
        limits = {
            "max_tokens": self.task.max_tokens,
            "max_items": handler.max_items,
            "max_text_bytes": handler.max_text_bytes,
            "max_body_bytes": handler.max_body_bytes,
            "cache_bytes": handler.cache_bytes,
        }
        return {"task": handler.task, "input": self.task.field, "limits": limits, **self.task.describe()}

    def is_describe(self, rows: Sequence[Mapping[str, Any]], context: Any) -> bool:
        """Whether these rows are the management API's question."""
        return wire.is_describe(rows, context)

    def warm_up(self) -> None:
        """Runs each kind of batch once, so that the first client does not pay for what is done once.

        One row and several, spread over the cores and in lanes (torch.compile makes a program for each), and as
        many tokens as ever go through at once.

        Raises:
            LoadError: the model does not run.
        """
        short, long = TextItem("warm", True), TextItem("warm " * min(512, self.task.max_tokens), True)
        full = max(2, self.batch_tokens // self._tokens(long))
        for items in ([short], [long], [short] * 2, [short, long], [*[short] * 2, *[long] * 2], [long] * full):
            for output in self._compute(items, Deadline.after(UNHURRIED), Measures()):
                if isinstance(output, HandlerError):
                    raise LoadError(f"the model does not run: {output}")

    def _tokens(self, item: TextItem) -> int:
        """How many an item counts as, at most; an error is found when it is run."""
        [encoded] = batch.together([item], self.task.encode)
        return 1 if isinstance(encoded, HandlerError) else max(len(row) for row in encoded)

    def _parse(self, message: Message) -> Request:
        self.drain.check()
        call = native.read(message, self.task.field, self.config.handler.max_body_bytes)
        if self.task.media_types:
            call = replace(call, media_type=wire.negotiate(message.accept, self.task.media_types))
        return self.task.parse(call)

    def _outputs(self, items: Sequence[TextItem], requests: Requests) -> Sequence[Slot[tuple[Any, ...]]]:
        deadline, measures = requests.deadline, requests.measures
        return self.memory.complete(items, lambda missing: self._compute(missing, deadline, measures), measures)

    def _compute(
        self, items: Sequence[TextItem], deadline: Deadline, measures: Measures
    ) -> list[Slot[tuple[Any, ...]]]:
        """The outputs of each item's rows, or the error in their place."""
        with measures.step("encode"):
            encoded = batch.together(items, self.task.encode)
        rows = [row for slot in encoded if not isinstance(slot, HandlerError) for row in slot]
        lengths = [len(row) for row in rows]
        micro_batches = batch.plan(lengths, self.batch_tokens, self.launch_tokens)
        measures.count(micro_batches, lengths)
        with measures.step("forward"):
            outputs = batch.run(
                micro_batches, lambda chosen: self._forward([rows[i] for i in chosen]), deadline, self.lanes.run
            )
        cursor = count()
        return each(encoded, lambda item: _all_or_error([outputs[next(cursor)] for _ in item]))

    def _forward(self, rows: Sequence[Tokens]) -> Sequence[Any]:
        with devices.failures():
            return self.task.forward(rows)

    def _decode(self, request: Request, outputs: Sequence[Slot[tuple[Any, ...]]], deadline: Deadline) -> Answered:
        computed = []
        for index, output in enumerate(outputs):
            if isinstance(output, HandlerError):
                raise output if request.single else _at(index // request.items_per_input, self.task.field, output)
            computed.append(output)
        if deadline.passed():
            raise deadline.error()
        return Answered(request, self.task.decode(request, computed))


def build(
    config: ModelConfig, directory: Path, model_name: str, device: torch.device, threads: int
) -> BatchPipeline:
    """Loads a task's model, warms it up, and holds its golden answers. Raises LoadError."""
    devices.bound_kernels()
    task = tasks.build(config.handler, directory, device)
    budget = config.handler.cache_bytes
    memory = Memory(budget, fingerprint(directory, config.handler) if budget else b"")
    pipeline = BatchPipeline(config, task, model_name, device, threads, memory=memory)
    if config.handler.warm_up:
        pipeline.warm_up()
    if proven := golden.check(directory.parent / "golden", config.handler, pipeline.answer):
        logger.info("%d golden answers hold", proven)
    return pipeline


def _write(answer: Mapping[str, Any] | Tensors, media_type: str) -> Reply:
    return WRITERS[media_type](answer) if isinstance(answer, Tensors) else native.write(answer)


def _all_or_error(outputs: Sequence[Slot[Any]]) -> tuple[Any, ...]:
    """An item's outputs, one for each of its rows. Raises the first error among them."""
    for output in outputs:
        if isinstance(output, HandlerError):
            raise output
    return tuple(outputs)


def _at(index: int, name: str, error: HandlerError) -> HandlerError:
    """The same error, saying which of the request's items it is about."""
    return type(error)(f"{name}s[{index}]: {error}")
