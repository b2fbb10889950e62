"""As little HTTP/1.1 as a fair client needs: asyncio streams, keep-alive, every answer kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

HOST = "127.0.0.1"
ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class Reply:
    """What came back for one request.

    Attributes:
        due: when it was to be sent, in seconds of time.perf_counter.
        done: when its answer was read.
        status: of the answer; 0 where there was none.
        body: of the answer, or why there was none.
    """

    due: float
    done: float
    status: int
    body: bytes

    @property
    def latency(self) -> float:
        """Seconds from the moment when it was to be sent."""
        return self.done - self.due


def post(path: str, body: bytes, port: int) -> bytes:
    """One request as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Pool:
    """Connections to one port: an idle one is used again, and where there is none another is opened."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, request: bytes, due: float) -> Reply:
        """Sends one request and reads its answer; never raises."""
        try:
            status, body = await asyncio.wait_for(self._exchange(request), ANSWER_SECONDS)
        except (OSError, EOFError, ValueError, TimeoutError) as err:
            status, body = 0, repr(err).encode()
        return Reply(due, time.perf_counter(), status, body)

    async def _exchange(self, request: bytes) -> tuple[int, bytes]:
        while self.idle:
            reader, writer = self.idle.pop()
            if not reader.at_eof():  # else the server has closed it meanwhile
                break
            writer.close()
        else:
            reader, writer = await asyncio.open_connection(HOST, self.port)
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            if "\r\ntransfer-encoding: chunked" in head:
                body = await _read_chunks(reader)
            else:
                _, _, length = head.partition("\r\ncontent-length:")
                body = await reader.readexactly(int(length.split("\r\n", 1)[0]))
        except BaseException:
            writer.close()
            raise
        status = int(head.split(" ", 2)[1])
        if status >= 400 or "\r\nconnection: close" in head:  # TorchServe resets a connection after an error
            writer.close()
        else:
            self.idle.append((reader, writer))
        return status, body

    def close(self) -> None:
        """Closes what is idle."""
        for _, writer in self.idle:
            writer.close()


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    """A body that comes in chunks, without trailers (RFC 9112, 7.1)."""
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return body


async def each_once(work: Callable[[T], Awaitable[None]], items: Iterable[T], clients: int) -> None:
    """Every item's work once: a closed loop of so many clients, each of which takes the next when it is free."""
    waiting = iter(items)

    async def client() -> None:
        for item in waiting:
            await work(item)

    await asyncio.gather(*(client() for _ in range(clients)))


async def ask_all(port: int, requests: Iterable[bytes], connections: int) -> list[Reply]:
    """Every request once, so many at a time; replies in the order of the requests."""
    pool, replies = Pool(port), dict[int, Reply]()

    async def ask(numbered: tuple[int, bytes]) -> None:
        number, request = numbered
        replies[number] = await pool.ask(request, time.perf_counter())

    await each_once(ask, enumerate(requests), connections)
    pool.close()
    return [replies[number] for number in sorted(replies)]


async def ask_at(port: int, requests: Sequence[bytes], arrivals: Sequence[float]) -> list[Reply]:
    """Each request at its time, in seconds from now, whether or not those before it are answered."""
    pool, start = Pool(port), time.perf_counter()

    async def send(request: bytes, arrival: float) -> Reply:
        await asyncio.sleep(start + arrival - time.perf_counter())
        return await pool.ask(request, start + arrival)

    replies = await asyncio.gather(*map(send, requests, arrivals))
    pool.close()
    return replies
