"""The generation wing: each call of `handle` is a round, in which new requests start and each says what it has.

With `continuousBatching` TorchServe's frontend calls the worker with every request that is alive, again and again
(ContinuousBatching.java): a new one with its body, one that goes on with nothing, one whose client has left not at
all. `context.stopping_criteria` says of each answer whether it goes on; a row without news is left out by deleting
it from `context.request_ids`, from which the reply is written (otf_message_handler.py:78).

The frontend looks whether a client is still there only when its answer goes on with something
(ContinuousBatching.java:105), so one that has long been silent is answered with line feeds, which mean nothing in
JSON (RFC 8259, 2) nor between events (HTML, 9.2.6).
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import orjson
import torch

from handler import provenance, wire
from handler.batch import guarded, log_defect
from handler.config import ModelConfig
from handler.draining import Drain
from handler.errors import HandlerError, InternalError, InvalidRequest, LoadError, TooLarge
from handler.generation import frontend
from handler.generation.application import Ask, Exchange, News
from handler.generation.engine import ENGINES, Engine
from handler.generation.measures import Gauges, Timed, log
from handler.generation.openai_protocol import COMPLETIONS, EMBEDDINGS, refused
from handler.generation.openai_requests import Limits
from handler.generation.route import EVENT_STREAM, Route, Served
from handler.generation.routes import find, refusal
from handler.wire import JSON, Message, Reply

logger = logging.getLogger(__name__)

# A round costs some 5 ms of a core, most of it the frontend's, and while it waits the frontend admits nobody.
PATIENCE_SECONDS = 0.05  # in which streams that are under way gather their text
FOLLOW_SECONDS, FOLLOW_ROUNDS = 0.012, 3  # after an answer has ended: its client may have the next request
STEP_SECONDS = 0.05  # that it then waits for the engine's next step
GATHER_SECONDS = 0.004  # after it: a step of the engine has a token for everybody
WARM_UP_SECONDS = 240  # for the first two tokens
LOOK_SECONDS, SILENCE_LOOKS = 0.25, 4  # at whether a round has come, and how many without mean that none will
MOST_LOOKS = 20  # the same where the frontend is busy: on a machine whose cores are taken it may be long in coming
SIGN, SIGN_SECONDS = b"\n\n", 0.75  # of life, and how long a request may be without
AHEAD = 8  # as many answers as rounds may hold, that wait for one before them in a file

# What a row is answered with, and whether it ends what has begun: None where it is all of the answer.
Answer: TypeAlias = tuple[Reply, bool | None]
Said: TypeAlias = tuple[Reply | None, bool | None]  # the same, or nothing


@dataclass
class Live:
    """A request on its way."""

    exchange: Exchange
    route: Route
    begun: bool = False  # whether a piece of its answer is out, and its status
    # Over gRPC whoever is still there is taken for gone (GRPCJob.java:272).
    over_http: bool = True
    heard: float = field(default_factory=time.monotonic)  # when it was last answered with something
    timed: Timed = field(default_factory=Timed)

    def whole(self, reply: Reply) -> Answer:
        """What ends it; all but its body counts for nothing where it has begun."""
        if not self.begun:
            return reply, None
        return (Reply(self.route.failed(), EVENT_STREAM) if self.route.streams else reply), True

    def refuse(self, error: HandlerError) -> Answer:
        """As `whole`, in the shape of its protocol."""
        return self.whole(self.route.refuse(error))


@dataclass(frozen=True)
class Turn:
    """One round's requests."""

    ids: Mapping[int, str]  # row -> request
    said: Mapping[int, Said]  # row -> its answer, where no engine is needed for it


class Generation:
    """The three steps, for requests that are answered over many rounds."""

    def __init__(self, config: ModelConfig, engine: Engine, model_name: str, version: str) -> None:
        handler = config.handler
        self.config = config
        self.engine = engine
        self.application = engine.application
        also_called = tuple(handler.served_model_names or ())
        limits = Limits(handler.max_new_tokens, config.server.batchSize, handler.max_items)
        self.served = Served(model_name, engine, limits, handler.max_body_bytes, also_called, version)
        self.drain = Drain()
        self.gauges = Gauges()
        self.metrics: Any = None  # context.metrics, of the last round
        self.live: dict[str, Live] = {}
        self._lost: dict[str, Live] = {}  # let go of in a silence, which may have been a slow frontend
        self._follow = 0  # rounds that are to be short: an answer has ended
        # Looks without a round. Not seconds: of a process that does not get to run, the watch is part.
        self._silent = 0.0
        # Whether the frontend has to come back: it forgets none but those that were answered with something.
        self._owed = False
        self._lock = threading.Lock()  # of the live ones: a round against the watch
        threading.Thread(target=self._watch, name="silence", daemon=True).start()

    def preprocess(self, rows: Sequence[Mapping[str, Any]], context: Any) -> Turn:
        """Starts the new requests, and cancels those that are missing."""
        ids = dict(context.request_ids)
        with self._lock:
            self._silent = -math.inf  # it is no silence while a round goes on
            self.metrics = context.metrics
            for gone in self.live.keys() - set(ids.values()):
                self._let_go(gone)
            new = [index for index in ids if ids[index] not in self.live]
            said: dict[int, Said] = {}
            for index, message in zip(new, wire.read(rows, context, new), strict=True):
                if not rows[index] and (lost := self._lost.get(ids[index])):
                    said[index] = lost.refuse(InternalError())
                    continue
                started = message if isinstance(message, HandlerError) else guarded(self._begin, message)
                if isinstance(started, Live):
                    self.live[ids[index]] = started
                    continue
                if isinstance(started, HandlerError):
                    started = refusal(message if isinstance(message, Message) else None, started)
                said[index] = started, None
                log(ids[index], str(started.status), id=getattr(message, "id", "") or None)
            self._lost.clear()
        return Turn(ids, said)

    def inference(self, turn: Turn) -> Turn:
        """Waits for what is urgent: a first text, an end. Others gather theirs meanwhile."""
        self._end_with_the_engine()  # inside a round: the frontend answers those in flight (WorkerThread.java:303)
        if not turn.said and self._is_woken():
            time.sleep(GATHER_SECONDS)
        self.application.urgent.clear()  # before anybody is asked for news: what comes later wakes the next round
        self._follow = max(0, self._follow - 1)
        return turn

    def postprocess(self, turn: Turn, context: Any, send: Callable[..., None] | None = None) -> list[bytes]:
        """What each has to say; a row that has nothing is left out."""
        bodies, criteria = [b""] * len(turn.ids), dict[int, Callable[[bytes], bool | None]]()
        owed = False
        for index, request in turn.ids.items():
            reply, ends = turn.said[index] if index in turn.said else self._say_safely(request)
            if reply is None:
                owed = True
                del context.request_ids[index]
                continue
            reply = wire.tell(reply, context, index)
            bodies[index] = reply.body
            criteria[index] = lambda _, ends=ends: ends  # type: ignore[misc]
        context.stopping_criteria = criteria
        if self.gauges.are_due():
            self.gauges.tell(self.engine.load, len(self.live), context.metrics)
        self._owed, self._silent = owed, 0
        return bodies

    def replies(self, messages: Iterable[Message]) -> Iterator[Reply]:
        """Each message's whole reply, in order, while as many are on their way as rounds may hold."""
        waiting, begun = iter(messages), deque[Live | Reply]()
        self._silent = -math.inf  # there are no rounds, and no silence
        while True:
            live = sum(isinstance(one, Live) and not one.exchange.done for one in begun)
            room = min(self.config.server.batchSize - live, AHEAD * self.config.server.batchSize - len(begun))
            for message in islice(waiting, room):
                started = guarded(self._begin, message)
                begun.append(refusal(message, started) if isinstance(started, HandlerError) else started)
            if not begun:
                return
            if isinstance(begun[0], Reply) or begun[0].exchange.done:
                yield self._whole(begun.popleft())
                continue
            if self.application.dead():
                raise LoadError("the engine is gone")
            self.application.urgent.wait(LOOK_SECONDS)
            self.application.urgent.clear()

    def describe(self) -> dict[str, Any]:
        """What the management API shows."""
        about = {**self.engine.about, "context_tokens": self.engine.context_tokens}
        return {"task": self.config.handler.task, **about}

    def is_describe(self, rows: Sequence[Mapping[str, Any]], context: Any) -> bool:
        """A request that goes on comes as `?customized=true` does, alone and with nothing, but is known."""
        return context.request_ids.get(0) not in self.live and wire.is_describe(rows, context)

    def _is_woken(self) -> bool:
        """Waits for news; False where there is none in all that time."""
        if self.application.urgent.wait(FOLLOW_SECONDS if self._follow else PATIENCE_SECONDS):
            return True
        if self._follow or not any(live.begun and live.route.streams for live in self.live.values()):
            return False
        # Streams go by the engine's steps: a round that falls between two of them costs as much.
        self.application.fresh.clear()
        return self.application.fresh.wait(STEP_SECONDS)

    def _begin(self, message: Message) -> Live | Reply:
        self.drain.check()
        route = find(message, self.served)
        if isinstance(route, Reply):
            return route
        over_http = message.transport == wire.HTTP
        return Live(self.application.begin(route.ask), route, over_http=over_http, timed=Timed(message.id))

    def _say_safely(self, request: str) -> Said:
        """No exception leaves a round: TorchServe would fail all that are alive (ContinuousBatching.java)."""
        live = self.live[request]
        try:
            return self._say(request, live)
        except Exception as err:
            log_defect(err)
            with self._lock:
                if request in self.live:
                    self._let_go(request, "failed")
            return live.refuse(InternalError())

    def _say(self, request: str, live: Live) -> Said:
        """A request's reply, if it has one."""
        with self.application.lock:
            news = live.exchange.take()
        if news is None:
            return self._sign_of_life(live), False
        reply, ends = self._bounded(live, *self._reply(live, news))
        if live.timed.first is None and news.streams and live.route.usage.begun:
            live.timed.first = time.monotonic()
            live.exchange.eager = False
        if ends is not False:
            self._follow = FOLLOW_ROUNDS
            with self._lock:
                del self.live[request]
            if not news.done:
                self.application.cancel(live.exchange)
            how = "failed" if news.failed else str(reply.status)
            live.timed.end(request, how, live.route.usage, self.metrics)
        elif not reply.body:
            return None, None
        live.begun, live.heard = True, time.monotonic()
        return reply, ends

    def _sign_of_life(self, live: Live) -> Reply | None:
        """Where it is time for one. It is the end of refusals, so the engine has to have accepted the request."""
        due = time.monotonic() - live.heard >= SIGN_SECONDS
        if not (due and live.over_http and live.exchange.accepted):
            return None
        live.begun, live.heard = True, time.monotonic()
        return Reply(SIGN, EVENT_STREAM if live.route.streams else JSON)

    def _reply(self, live: Live, news: News) -> Answer:
        if news.status is None or (news.failed and not (news.streams and live.begun)):
            return live.refuse(InternalError())
        if not news.streams:
            return live.whole(live.route.whole(news.status, news.body, news.content_type))
        if not live.begun and (error := refused(news.body)):
            return live.route.whole(*error, JSON), None
        told = live.route.piece(news.body, news.done and not news.failed)
        reply = Reply(told + (live.route.failed() if news.failed else b""), EVENT_STREAM)
        # A stream must not end before it has begun (RestJob.java:148).
        return reply, None if news.done and not live.begun else news.done

    def _bounded(self, live: Live, reply: Reply, ends: bool | None) -> Answer:
        """An answer that is too large kills the worker (CodecUtils.java:26), so it becomes its request's error."""
        limit = self.config.handler.max_response_bytes
        if len(reply.body) <= limit:
            return reply, ends
        return live.refuse(TooLarge(f"the answer has {len(reply.body)} bytes; the limit is {limit}"))

    def _let_go(self, request: str, how: str = "left") -> None:
        """Cancels a request. The lock is held."""
        live = self.live.pop(request)
        self.application.cancel(live.exchange)
        live.timed.end(request, how, live.route.usage, self.metrics)

    def _whole(self, begun: Live | Reply) -> Reply:
        """The reply to a request that is done; the way without rounds."""
        if isinstance(begun, Reply):
            return begun
        with self.application.lock:
            news = begun.exchange.take()
        if news is None or news.streams:
            return wire.error_reply(InvalidRequest("stream: there is nobody to stream to"))
        try:
            return self._reply(begun, news)[0]
        except Exception as err:
            log_defect(err)
            return begun.route.refuse(InternalError())

    def _watch(self) -> None:
        """When the last client leaves there is no further round: then silence cancels what still runs.

        And an engine that dies meanwhile is noticed before somebody asks, and gauges do not stay where they were.
        """
        while True:
            time.sleep(LOOK_SECONDS)
            with self._lock:
                self._silent += 1
                if self._owed or self._silent < SILENCE_LOOKS:
                    continue
                if self.live and self._silent < MOST_LOOKS and frontend.may_have_a_round():
                    continue
                self._lost |= self.live
                for gone in tuple(self.live):
                    self._let_go(gone)
                self._end_with_the_engine()
                if self.metrics is not None and self.gauges.are_due() and not self.gauges.at_rest:
                    self.gauges.tell(self.engine.load, len(self.live), self.metrics)

    def _end_with_the_engine(self) -> None:
        if self.application.dead():
            logger.error("the engine is gone; the worker ends, and TorchServe starts another")
            os._exit(1)


def build(config: ModelConfig, directory: Path, model_name: str, device: torch.device, threads: int) -> Generation:
    """Loads the engine that the configuration names, and warms it up. Raises LoadError."""
    handler = config.handler
    engine: Engine = importlib.import_module(ENGINES[handler.engine]).build(directory, config, device, model_name)
    if handler.warm_up:
        _warm_up(engine, model_name)
    return Generation(config, engine, model_name, provenance.read(directory.parent).version)


def _warm_up(engine: Engine, model_name: str) -> None:
    """Two tokens, so that the first client does not pay for what is done once. Raises LoadError."""
    path, ask = (
        (COMPLETIONS, {"prompt": "warm", "max_tokens": 2})
        if COMPLETIONS in engine.fields
        else (EMBEDDINGS, {"input": "warm"})
    )
    body = orjson.dumps({"model": model_name, **ask})
    exchange = engine.application.begin(Ask("POST", f"/{path}", body))
    end = time.monotonic() + WARM_UP_SECONDS
    while not exchange.done:
        if time.monotonic() > end:
            raise LoadError(f"the engine generated nothing within {WARM_UP_SECONDS} s")
        engine.application.urgent.wait(0.1)
        engine.application.urgent.clear()
    with engine.application.lock:
        news = exchange.take()
    if news is None or news.status != 200:
        said = news and (news.status, news.body[:200])
        raise LoadError(f"the engine does not generate: {said}")
