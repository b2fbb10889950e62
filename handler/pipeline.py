"""The batch wing: one batch of requests through one task.

rows -wire.read-> messages -protocol-> calls -task-> requests -task-> results -protocol-> replies -wire-> rows
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import orjson
import torch

from handler import batch, devices, golden, provenance, wire
from handler.batch import Deadline, Slot, distinct, each
from handler.config import ModelConfig, is_own
from handler.draining import Drain
from handler.errors import HandlerError, LoadError, ServerFault
from handler.lanes import Lanes
from handler.measures import Measures, one_write
from handler.memory import Memory, fingerprint
from handler.protocols import table
from handler.protocols.native import NATIVE
from handler.protocols.open_inference import metadata
from handler.protocols.protocol import About, Done, Model, Protocol, check
from handler.protocols.table import Spoken
from handler.provenance import Provenance
from handler.request import Call, Request, TextItem
from handler.tasks import base as tasks
from handler.tasks.base import Task
from handler.tensors import WRITERS, Tensors
from handler.text_encoder import Tokens
from handler.wire import Message, Reply

logger = logging.getLogger(__name__)

UNHURRIED = 3600  # s for a batch that no client waits for
# How long a batch that was not full lets the next one gather: a share of its own time, and seconds at most. On
# two cores a model of 96 dimensions did 1.00, 1.05, 1.07, 1.11, 1.13, 1.10 and 1.03 times the texts/s behind the
# gateway, from 2, 3, 4, 8, 16, 32 and 64 connections.
GATHER_SHARE = 0.05
GATHER_SECONDS = 0.005
ENCODED = 1_000_000  # characters that are tokenized in one call, which no deadline interrupts: about a second's


@dataclass(frozen=True)
class Requests:
    """What preprocess hands to inference."""

    slots: list[Slot[Asked]]
    deadline: Deadline
    measures: Measures
    protocols: Sequence[Protocol]  # of each slot
    ids: Sequence[str]  # the clients' own
    carriers: Sequence[int]  # of the rows, those that may be answered in chunks


@dataclass(frozen=True)
class Asked:
    """A valid request, and how it was asked."""

    spoken: Spoken
    call: Call
    request: Request


@dataclass(frozen=True)
class Answered:
    """A request's results, and how it was asked."""

    spoken: Spoken
    done: Done


@dataclass(frozen=True)
class Answers:
    """What inference hands to postprocess."""

    slots: list[Slot[Answered]]
    measures: Measures
    protocols: Sequence[Protocol]
    ids: Sequence[str]
    carriers: Sequence[int]


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
        provenance: Provenance,
    ) -> None:
        self.config = config
        self.batch_tokens = config.handler.max_batch_tokens or devices.BATCH_TOKENS[device.type]
        self.launch_tokens = devices.LAUNCH_TOKENS[device.type]
        self.measures_launch = device.type == "cpu" and not is_own(config.handler.task)
        self.lanes = Lanes(device, threads, devices.lanes(device, threads, config.handler.lanes))
        self.task = task
        self.memory = memory
        self.provenance = provenance
        self.model = Model(
            model_name,
            provenance.version,
            task.field,
            task.beside,
            task.inputs,
            task.outputs,
            config.handler.max_body_bytes,
            config.handler.max_items,
            config.handler.served_model_names or (),
        )
        self.drain = Drain()

    def preprocess(self, rows: Sequence[Mapping[str, Any]], context: Any) -> Requests:
        """Rows to requests."""
        deadline, measures = Deadline.after(self.config.deadline_seconds), Measures(requests=len(rows))
        with measures.step("parse"):
            return self._requests(wire.read(rows, context), deadline, measures)

    def inference(self, requests: Requests) -> Answers:
        """Requests to results; equal items of the whole batch are computed once, remembered ones not at all."""
        valid = [slot for slot in requests.slots if isinstance(slot, Asked)]
        items, places = distinct([item for asked in valid for item in asked.request.items])
        outputs = self._outputs(items, requests) if items else []
        cursor = iter(places)
        with requests.measures.step("decode"):
            answered = each(
                requests.slots,
                lambda asked: self._decode(
                    asked, [outputs[next(cursor)] for _ in asked.request.items], requests.deadline
                ),
            )
        return Answers(answered, requests.measures, requests.protocols, requests.ids, requests.carriers)

    def postprocess(self, answers: Answers, context: Any, send: wire.Send) -> list[bytes]:
        """Results and errors to bodies; `send` sends a piece of a large one ahead, or the answers of a batch."""
        with answers.measures.step("write"):
            limit = self.config.handler.max_response_bytes
            shapes = [protocol.error for protocol in answers.protocols]
            bodies = wire.write(self._replies(answers), context, limit, send, shapes)
            may_gather = 1 < len(bodies) < self.config.server.batchSize
            ahead = may_gather and wire.send_ahead(bodies, context, send, answers.carriers)
        sent = time.monotonic()
        with one_write():
            if any(answers.ids):
                _log(answers, context)
            answers.measures.emit(context.metrics)
        if not ahead:
            return bodies
        moment = min(GATHER_SHARE * answers.measures.milliseconds / 1000, GATHER_SECONDS)
        time.sleep(max(0.0, sent + moment - time.monotonic()))
        return [b""] * len(bodies)

    def answer(self, messages: Sequence[Message]) -> Sequence[Slot[Mapping[str, Any] | Tensors]]:
        """Messages to native documents, as one batch that may take its time: the way without the wire."""
        slots = self._unhurried(messages).slots
        about = About(self.model.name, 0, self.model.version)
        return each(slots, lambda one: self.task.answer(one.done.request, one.done.results, about))

    def replies(self, messages: Iterable[Message]) -> Iterator[Reply]:
        """Each message's reply in JSON, in order, as many at once as a worker is handed."""
        waiting = iter(messages)
        while chunk := list(islice(waiting, self.config.server.batchSize)):
            answers = self._unhurried(chunk)
            for slot, protocol in zip(self._replies(answers), answers.protocols, strict=True):
                yield wire.error_reply(slot, protocol.error) if isinstance(slot, HandlerError) else slot

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
        tensors = metadata(self.model)
        return {
            "task": handler.task,
            "input": self.task.field,
            "inputs": tensors["inputs"],
            "outputs": tensors["outputs"],
            "protocols": [protocol.name for protocol in table.PROTOCOLS if protocol.speaks(self.model)],
            "limits": limits,
            "sha256": self.provenance.digests,
            **self.task.describe(),
        }

    def is_describe(self, rows: Sequence[Mapping[str, Any]], context: Any) -> bool:
        """Whether these rows are the management API's question."""
        return wire.is_describe(rows, context)

    def warm_up(self) -> None:
        """Runs each kind of batch once, so that the first client does not pay for what is done once.

        One row and several, spread over the cores and in lanes (torch.compile makes a program for each), and as
        many tokens as ever go through at once: long texts and short ones, all of a length and not, for which a GPU
        loads other kernels. On an H200 the first batch of 298 short texts took 2.3 s after a warm-up without one.

        Raises:
            LoadError: the model does not run.
        """
        longest = min(512, self.task.max_tokens)
        short, few, long = (TextItem("warm " * words, True) for words in (1, min(16, longest), longest))
        self._run([[short], [long], [short] * 2, [short, long], [*[short] * 2, *[long] * 2]])
        if self.measures_launch:
            self.measure()
        for item in (few, long):
            full = max(2, self.batch_tokens // self._tokens(item))
            self._run([[item] * full, [*[item] * (full - 1), TextItem(item.text.removesuffix("warm "), True)]])

    def _run(self, batches: Sequence[Sequence[TextItem]]) -> None:
        """Computes them for nobody. Raises LoadError."""
        for items in batches:
            for output in self._compute(items, Deadline.after(UNHURRIED), Measures()):
                if isinstance(output, HandlerError):
                    raise LoadError(f"the model does not run: {output}")

    def measure(self) -> None:
        """Finds what a forward costs by itself here, beside tokens: so much padding is worth one less."""
        texts = (TextItem("warm", True), TextItem("warm " * min(64, self.task.max_tokens), True))
        count = max(1, devices.MEASURED_TOKENS // self._tokens(texts[1]))
        encoded = batch.together([texts[0], *[texts[1]] * count], self.task.encode)
        rows = [row for slot in encoded if not isinstance(slot, HandlerError) for row in slot]
        sizes = len(rows[0]), sum(map(len, rows[1:]))
        if sizes[1] < 2 * sizes[0]:  # texts of so few tokens tell nothing
            return
        short = self.lanes.one(lambda: _fastest(lambda: self._forward(rows[:1])))
        long = self.lanes.one(lambda: _fastest(lambda: self._forward(rows[1:])))
        self.launch_tokens = devices.launch_tokens((sizes[0], short), (sizes[1], long))
        if self.config.handler.max_batch_tokens is None:
            self.batch_tokens = max(self.batch_tokens, devices.LAUNCHES * self.launch_tokens)
        logger.info("a forward costs %d tokens by itself, and takes %d", self.launch_tokens, self.batch_tokens)

    def _tokens(self, item: TextItem) -> int:
        """How many an item counts as, at most; an error is found when it is run."""
        [encoded] = batch.together([item], self.task.encode)
        return 1 if isinstance(encoded, HandlerError) else max(len(row) for row in encoded)

    def _requests(self, messages: Sequence[Slot[Message]], deadline: Deadline, measures: Measures) -> Requests:
        spoken = each(messages, lambda message: table.find(message, self.model))
        protocols = [NATIVE if isinstance(one, HandlerError) else one.protocol for one in spoken]
        ids = [getattr(message, "id", "") for message in messages]
        carriers = [index for index, message in enumerate(messages) if getattr(message, "takes_chunks", False)]
        return Requests(each(spoken, self._parse), deadline, measures, protocols, ids, carriers)

    def _unhurried(self, messages: Sequence[Message]) -> Answers:
        measures = Measures(requests=len(messages))
        return self.inference(self._requests(messages, Deadline.after(UNHURRIED), measures))

    def _parse(self, spoken: Spoken) -> Asked:
        self.drain.check()
        message, protocol = spoken.message, spoken.protocol
        check(message, self.model.max_body_bytes)
        call = protocol.read(message, spoken.document, self.model)
        if protocol.describes:
            return Asked(spoken, call, Request((), True, None))
        if self.task.media_types and protocol.negotiates:
            call = replace(call, media_type=wire.negotiate(message.accept, self.task.media_types))
        return Asked(spoken, call, self.task.parse(call))

    def _replies(self, answers: Answers) -> list[Slot[Reply]]:
        about = About(self.model.name, answers.measures.milliseconds, self.model.version)
        for slot, name in zip(answers.slots, answers.ids, strict=True):
            if isinstance(slot, ServerFault):
                logger.warning("request %s: %d %s", name or "-", slot.status, slot.type)

        def reply(one: Answered) -> Reply:
            return _write(one.spoken.protocol.write(self.task, one.done, about), one.done.call.media_type)

        replies = zip(each(answers.slots, reply), answers.protocols, strict=True)
        return [protocol.own(slot) if isinstance(slot, HandlerError) else slot for slot, protocol in replies]

    def _outputs(self, items: Sequence[TextItem], requests: Requests) -> Sequence[Slot[tuple[Any, ...]]]:
        deadline, measures = requests.deadline, requests.measures
        return self.memory.complete(items, lambda missing: self._compute(missing, deadline, measures), measures)

    def _compute(
        self, items: Sequence[TextItem], deadline: Deadline, measures: Measures
    ) -> list[Slot[tuple[Any, ...]]]:
        """The outputs of each item's rows, or the error in their place."""
        with measures.step("encode"):
            encoded = batch.in_chunks(items, self.task.encode, _characters, ENCODED, deadline)
        rows = [row for slot in encoded if not isinstance(slot, HandlerError) for row in slot]
        lengths = [len(row) for row in rows]
        micro_batches = batch.plan(lengths, self.batch_tokens, self.launch_tokens, self.lanes.count)
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

    def _decode(self, asked: Asked, outputs: Sequence[Slot[tuple[Any, ...]]], deadline: Deadline) -> Answered:
        request, computed = asked.request, []
        for index, output in enumerate(outputs):
            if isinstance(output, HandlerError):
                raise output if request.single else _at(index // request.items_per_input, asked.call.field, output)
            computed.append(output)
        if deadline.passed():
            raise deadline.error()
        if asked.spoken.protocol.describes:
            return Answered(asked.spoken, Done(asked.call, request, ()))
        return Answered(asked.spoken, Done(asked.call, request, self.task.decode(request, computed)))


def build(
    config: ModelConfig, directory: Path, model_name: str, device: torch.device, threads: int
) -> BatchPipeline:
    """Loads a task's model, warms it up, and holds its golden answers. Raises LoadError."""
    devices.bound_kernels()
    task = tasks.build(config.handler, directory, device)
    budget = config.handler.cache_bytes
    memory = Memory(budget, fingerprint(directory, config.handler) if budget else b"")
    origin = provenance.read(directory.parent)
    pipeline = BatchPipeline(config, task, model_name, device, threads, memory=memory, provenance=origin)
    if config.handler.warm_up:
        pipeline.warm_up()
    if proven := golden.check(directory.parent / "golden", config.handler, pipeline.answer):
        logger.info("%d golden answers hold", proven)
    return pipeline


def _fastest(work: Callable[[], object]) -> float:
    """The least seconds it takes, of at most twenty times, begun within 0.2 s, after a first one.

    Of this thread, without those for which others had its core: workers start at the same time.
    """
    work()
    times: list[float] = []
    while len(times) < 20 and sum(times) < 0.2:
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
    return min(times)


def _log(answers: Answers, context: Any) -> None:
    """One line for a batch whose clients have said who they are: who got which status."""
    statuses = (context.get_response_status(index)[0] for index in range(len(answers.ids)))
    told = " ".join(f"{name or '-'}:{status}" for name, status in zip(answers.ids, statuses, strict=True))
    logger.info("answered in %.1f ms: %s", answers.measures.milliseconds, told)


def _write(answer: Any, media_type: str) -> Reply:
    """A protocol's answer as a reply. NumPy's float32 is written at its own shortest length."""
    if isinstance(answer, Reply):
        return answer
    if isinstance(answer, Tensors):
        return WRITERS[media_type](answer)
    return Reply(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY))


def _characters(item: TextItem) -> int:
    return len(item.text) + len(item.pair or "")


def _all_or_error(outputs: Sequence[Slot[Any]]) -> tuple[Any, ...]:
    """An item's outputs, one for each of its rows. Raises the first error among them."""
    for output in outputs:
        if isinstance(output, HandlerError):
            raise output
    return tuple(outputs)


def _at(index: int, name: str, error: HandlerError) -> HandlerError:
    """The same error, saying which of the request's items it is about."""
    return type(error)(f"{name}[{index}]: {error}")
