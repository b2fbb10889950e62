"""An ASGI application, driven in process: requests go in, and what it has sent so far can be taken at any time.

A disconnect reaches it as ASGI's own http.disconnect (ASGI HTTP specification, 2.4); what does not listen for that
is cancelled. It runs on an event loop in a thread of its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

import orjson

from handler.batch import log_defect
from handler.errors import LoadError
from handler.generation.several import all_of

Event: TypeAlias = MutableMapping[str, Any]
Send: TypeAlias = Callable[[Event], Awaitable[None]]
Asgi: TypeAlias = Callable[[Event, Callable[[], Awaitable[Event]], Send], Coroutine[Any, Any, None]]
LISTENS_SECONDS = 0.5  # that a disconnected request may take to end by itself


@dataclass(frozen=True)
class Ask:
    """One request for the application, or several as one."""

    method: str
    path: str
    body: bytes
    # Where there are any, they are asked at once instead: the answer is a JSON list of theirs, or that of the
    # first which is no 200, with its place as `part`.
    parts: tuple[Ask, ...] = ()


def together(asks: Sequence[Ask]) -> Ask:
    """Several requests, none for a stream, as one."""
    return Ask("POST", "", b"", tuple(asks))


@dataclass(frozen=True)
class News:
    """What the application has said since it was last asked."""

    status: int | None
    content_type: str
    body: bytes
    streams: bool
    done: bool
    failed: bool


class Exchange:
    """What the application has said to one request. Written by its thread, read by the round's, under one lock."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.content_type = ""
        self.pieces: list[bytes] = []  # not yet taken
        self.done = False  # nothing more will come
        self.failed = False  # it ended before it had answered
        self.eager = True  # whether its news cannot wait: until its first text is out
        self.accepted = False  # the engine has it, and has nothing against it
        self.gone = asyncio.Event()  # the client has left
        self.task: asyncio.Task[None] | None = None

    @property
    def streams(self) -> bool:
        """Whether its answer goes out piece by piece: a stream of events, and no error."""
        return self.status == 200 and self.content_type.startswith("text/event-stream")

    @property
    def has_news(self) -> bool:
        """Whether the round has something to send."""
        return self.done or (self.streams and bool(self.pieces))

    def take(self) -> News | None:
        """What has come since the last time, if there is something to send."""
        if not self.has_news:
            return None
        taken, self.pieces = b"".join(self.pieces), []
        return News(self.status, self.content_type, taken, self.streams, self.done, self.failed)

    def accept(self) -> None:
        """The engine has all of it."""
        self.accepted = True


# Tells the exchange whose task, or whose task's task, this is.
ACCEPTED: ContextVar[Callable[[], None]] = ContextVar("ACCEPTED")


def note_accepted() -> None:
    """An engine says so of the request that it is asked to generate for."""
    ACCEPTED.get()()


class Application:
    """Runs the application.

    Args:
        make: makes the application, on its loop.
        dead: tells whether its engine is gone for good.
    """

    def __init__(self, make: Callable[[], Awaitable[Asgi]], dead: Callable[[], bool] = lambda: False) -> None:
        self.dead = dead
        self._make = make
        self.lock = threading.Lock()  # of every exchange
        self.urgent = threading.Event()  # some exchange has news that cannot wait
        self.fresh = threading.Event()  # some exchange has news
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lifespan: asyncio.Queue[Event] = asyncio.Queue()

    def start(self) -> None:
        """Starts the loop, makes the application and starts it. Raises LoadError."""
        threading.Thread(target=self._loop.run_forever, name="engine", daemon=True).start()
        started = asyncio.run_coroutine_threadsafe(self._start(), self._loop)
        try:
            started.result()  # startupTimeout bounds it
        except Exception as error:
            raise LoadError(f"the engine did not start: {error}") from error

    def begin(self, ask: Ask) -> Exchange:
        """Hands a request over."""
        exchange = Exchange()
        self._loop.call_soon_threadsafe(self._begin, ask, exchange)
        return exchange

    def cancel(self, exchange: Exchange) -> None:
        """Tells the application that the client is gone."""
        self._loop.call_soon_threadsafe(self._cancel, exchange)

    def _begin(self, ask: Ask, exchange: Exchange) -> None:
        exchange.task = self._loop.create_task(self._run(ask, exchange))
        self._tasks.add(exchange.task)
        exchange.task.add_done_callback(self._tasks.discard)

    def _cancel(self, exchange: Exchange) -> None:
        exchange.gone.set()
        if exchange.task is not None:
            self._loop.call_later(LISTENS_SECONDS, exchange.task.cancel)

    async def _run(self, ask: Ask, exchange: Exchange) -> None:
        async def send(event: Event) -> None:
            with self.lock:
                if event["type"] == "http.response.start":
                    exchange.status = event["status"]
                    headers = {name.lower(): value for name, value in event.get("headers", ())}
                    exchange.content_type = headers.get(b"content-type", b"").decode("latin-1")
                elif event["type"] == "http.response.body":
                    if body := event.get("body"):
                        exchange.pieces.append(body)
                    exchange.done = not event.get("more_body")
            if exchange.has_news:
                self.fresh.set()
                if exchange.done or exchange.eager:
                    self.urgent.set()

        try:
            if ask.parts:
                await _answer_parts(self._app, ask.parts, exchange, send)
            else:
                ACCEPTED.set(exchange.accept)
                await _drive(self._app, ask, exchange.gone, send)
        except asyncio.CancelledError:
            pass
        except Exception as err:
            log_defect(err)
        finally:
            with self.lock:
                exchange.failed = not exchange.done
                exchange.done = True
            self.fresh.set()
            self.urgent.set()

    async def _start(self) -> None:
        """Makes it, and goes through ASGI's lifespan (specification, Lifespan), which it may not know."""
        self._app = await self._make()
        started = self._loop.create_future()
        await self._lifespan.put({"type": "lifespan.startup"})

        async def send(event: Event) -> None:
            if event["type"] == "lifespan.startup.complete":
                started.set_result(None)
            elif event["type"] == "lifespan.startup.failed":
                started.set_exception(RuntimeError(event.get("message") or "it failed"))

        async def run() -> None:
            try:
                await self._app({"type": "lifespan", "asgi": {"version": "3.0"}}, self._lifespan.get, send)
            except Exception:
                if not started.done():
                    started.set_result(None)

        self._tasks.add(self._loop.create_task(run()))
        await started


async def _drive(app: Asgi, ask: Ask, gone: asyncio.Event, send: Send) -> None:
    """Hands one request to an application."""
    unread = [{"type": "http.request", "body": ask.body, "more_body": False}]

    async def receive() -> Event:
        if unread:
            return unread.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    await app(_scope(ask), receive, send)


@dataclass
class _PartFailed(Exception):
    status: int
    document: dict[str, Any]


async def _answer_parts(app: Asgi, parts: Sequence[Ask], exchange: Exchange, send: Send) -> None:
    """Asks for all of them, as `Ask.parts` says. It is accepted once each is."""
    waiting = set(range(len(parts)))

    async def answer(place: int) -> bytes:
        def accept() -> None:
            waiting.discard(place)
            if not waiting:
                exchange.accept()

        ACCEPTED.set(accept)
        status, body = await _whole(app, parts[place], exchange.gone)
        if status != 200:
            raise _PartFailed(status, {**orjson.loads(body), "part": place})
        return body

    try:
        status, body = 200, b"[" + b",".join(await all_of([answer(place) for place in waiting])) + b"]"
    except _PartFailed as failed:
        status, body = failed.status, orjson.dumps(failed.document)
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _whole(app: Asgi, ask: Ask, gone: asyncio.Event) -> tuple[int, bytes]:
    """An application's status and body."""
    said: list[Event] = []

    async def send(event: Event) -> None:
        said.append(event)

    await _drive(app, ask, gone, send)
    return said[0]["status"], b"".join(event.get("body", b"") for event in said[1:])


def _scope(ask: Ask) -> Event:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(ask.body)).encode())]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": ask.method,
        "scheme": "http",
        "path": ask.path,
        "raw_path": ask.path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 80),
    }
