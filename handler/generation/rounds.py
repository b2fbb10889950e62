"""The generation wing: each call of `handle` is a round, in which new requests start and each says what it has.

With `continuousBatching` TorchServe's frontend calls the worker with every request that is alive, again and again
(ContinuousBatching.java): a new one with its body, one that goes on with nothing, one whose client has left not at
all. `context.stopping_criteria` says of each answer whether it goes on; a row without news is left out by deleting
it from `context.request_ids`, from which the reply is written (otf_message_handler.py:78).
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch

from handler import wire
from handler.batch import guarded, log_defect
from handler.config import ModelConfig
from handler.draining import Drain
from handler.errors import HandlerError, InternalError, LoadError
from handler.generation.application import Ask, Exchange
from handler.generation.engine import ENGINES, Engine
from handler.generation.routes import COMPLETIONS, EVENT_STREAM, Route, Served, find, openai_error, refusal
from handler.wire import Message, Reply

logger = logging.getLogger(__name__)

WAIT_SECONDS = 0.03  # for news; meanwhile the frontend admits nobody, but a round costs it 5 ms of a core
GATHER_SECONDS = 0.004  # after the first news: an engine's step has a token for everybody, one after the other
TRY_SECONDS = 240  # for the first two tokens
SILENCE_SECONDS = 1.0  # without a round, after which nobody is there any more
LOOK_SECONDS = 0.25
FAILED = b"data: " + orjson.dumps(openai_error(500, "the engine failed")) + b"\n\n"


@dataclass
class Live:
    """A request on its way."""

    exchange: Exchange
    route: Route
    begun: bool = False  # whether a piece of its answer is out


@dataclass(frozen=True)
class Turn:
    """One round's requests."""

    ids: Mapping[int, str]  # row -> request
    whole: Mapping[int, Reply]  # row -> its answer, where no engine is needed for it


class Generation:
    """The three steps, for requests that are answered over many rounds."""

    def __init__(self, config: ModelConfig, engine: Engine, model_name: str) -> None:
        handler = config.handler
        self.config = config
        self.engine = engine
        self.application = engine.application
        self.served = Served(model_name, engine.has_template, handler.max_new_tokens, handler.max_body_bytes)
        self.drain = Drain()
        self.live: dict[str, Live] = {}
        self._last = time.monotonic()
        self._lock = threading.Lock()  # of the live ones: a round against the watch
        threading.Thread(target=self._watch, name="silence", daemon=True).start()

    def preprocess(self, rows: Sequence[Mapping[str, Any]], context: Any) -> Turn:
        """Starts the new requests, and cancels those that are missing."""
        ids = dict(context.request_ids)
        with self._lock:
            self._last = math.inf  # it is no silence while a round goes on
            for gone in self.live.keys() - set(ids.values()):
                self.application.cancel(self.live.pop(gone).exchange)
            new = [index for index in ids if ids[index] not in self.live]
            messages = wire.read(rows, context)
            whole: dict[int, Reply] = {}
            for index in new:
                message = messages[index]
                started = message if isinstance(message, HandlerError) else guarded(self._begin, message)
                if isinstance(started, Live):
                    self.live[ids[index]] = started
                elif isinstance(started, Reply):
                    whole[index] = started
                else:
                    whole[index] = refusal(message if isinstance(message, Message) else None, started)
        return Turn(ids, whole)

    def inference(self, turn: Turn) -> Turn:
        """Waits a moment for news."""
        if self.application.dead():
            logger.error("the engine is gone; the worker ends, and TorchServe starts another")
            os._exit(1)  # inside a round, so that the frontend answers those in flight (WorkerThread.java:303)
        if not turn.whole and self.application.news.wait(WAIT_SECONDS):
            time.sleep(GATHER_SECONDS)
        self.application.news.clear()  # before anybody is asked for news: what comes later wakes the next round
        return turn

    def postprocess(self, turn: Turn, context: Any, send: Callable[..., None] | None = None) -> list[bytes]:
        """What each has to say; a row that has nothing is left out."""
        bodies, criteria = [b""] * len(turn.ids), dict[int, Callable[[bytes], bool | None]]()
        for index, request in turn.ids.items():
            reply, ends = (turn.whole[index], None) if index in turn.whole else self._say_safely(request)
            if reply is None:
                del context.request_ids[index]
                continue
            wire.tell(reply, context, index)
            bodies[index] = reply.body
            criteria[index] = lambda _, ends=ends: ends  # type: ignore[misc]
        context.stopping_criteria = criteria
        self._last = time.monotonic()
        return bodies

    def describe(self) -> dict[str, Any]:
        """What the management API shows."""
        return {"task": self.config.handler.task, **self.engine.about}

    def is_describe(self, rows: Sequence[Mapping[str, Any]], context: Any) -> bool:
        """A request that goes on comes as `?customized=true` does, alone and with nothing, but is known."""
        return context.request_ids.get(0) not in self.live and wire.is_describe(rows, context)

    def _begin(self, message: Message) -> Live | Reply:
        self.drain.check()
        route = find(message, self.served)
        return route if isinstance(route, Reply) else Live(self.application.begin(route.ask), route)

    def _say_safely(self, request: str) -> tuple[Reply | None, bool | None]:
        """No exception leaves a round: TorchServe would fail all that are alive (ContinuousBatching.java)."""
        live = self.live[request]
        try:
            return self._say(request, live)
        except Exception as err:
            log_defect(err)
            self.application.cancel(live.exchange)
            with self._lock:
                self.live.pop(request, None)
            if live.begun:
                return Reply(FAILED, EVENT_STREAM), True
            return wire.error_reply(InternalError()), None

    def _say(self, request: str, live: Live) -> tuple[Reply | None, bool | None]:
        """A request's reply, if it has one, and whether it ends: None for a whole one (which is no stream)."""
        with self.application.lock:
            exchange = live.exchange
            if not exchange.has_news:
                return None, None
            piece, done, failed = exchange.take(), exchange.done, exchange.failed
            status, content_type, streams = exchange.status, exchange.content_type, exchange.streams
        if done:
            with self._lock:
                del self.live[request]
        if status is None or (failed and not live.begun):
            return wire.error_reply(InternalError()), None
        if not streams:
            return live.route.whole(status, piece, content_type), None
        reply = Reply(live.route.piece(piece, done) + (FAILED if failed else b""), EVENT_STREAM)
        if done and not live.begun:  # a stream must not end before it has begun (RestJob.java:148)
            return reply, None
        live.begun = True
        return reply, done

    def _watch(self) -> None:
        """When the last client leaves there is no further round: then silence cancels what still runs."""
        while True:
            time.sleep(LOOK_SECONDS)
            with self._lock:
                if self.live and time.monotonic() - self._last > SILENCE_SECONDS:
                    for live in self.live.values():
                        self.application.cancel(live.exchange)
                    self.live.clear()


def build(config: ModelConfig, directory: Path, model_name: str, device: torch.device, threads: int) -> Generation:
    """Loads the engine that the configuration names, and lets it generate once. Raises LoadError."""
    handler = config.handler
    engine: Engine = importlib.import_module(ENGINES[handler.engine]).build(directory, handler, device, model_name)
    _try(engine, model_name)
    return Generation(config, engine, model_name)


def _try(engine: Engine, model_name: str) -> None:
    """Two tokens, so that the first client does not pay for what is done once. Raises LoadError."""
    body = orjson.dumps({"model": model_name, "prompt": "warm", "max_tokens": 2})
    exchange = engine.application.begin(Ask("POST", f"/{COMPLETIONS}", body))
    end = time.monotonic() + TRY_SECONDS
    while not exchange.done:
        if time.monotonic() > end:
            raise LoadError(f"the engine generated nothing within {TRY_SECONDS} s")
        engine.application.news.wait(0.1)
        engine.application.news.clear()
    if exchange.status != 200:
        raise LoadError(f"the engine does not generate: {exchange.status} {exchange.take()[:200]!r}")
