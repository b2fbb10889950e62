"""Sixteen clients that read streams, and when each stream's first text came."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from benchmarks.http_client import HOST, Pool, each_once, post
from benchmarks.processes import Failed

TIMEOUT = 300  # s for one answer
LIMIT = 1 << 20  # bytes of one line


@dataclass(frozen=True)
class Streamed:
    """A load's figures."""

    tokens_per_second: float
    first: list[float]  # s to the first text of each stream


async def load(port: int, path: str, bodies: Sequence[bytes], connections: int, tokens: int) -> Streamed:
    """All bodies once, so many at a time. Raises Failed where an answer is not whole."""
    first = list[float]()

    async def read(body: bytes) -> None:
        first.append(await stream(port, path, body))

    return Streamed(tokens * await _rate(read, bodies, connections), first)


async def stream(port: int, path: str, body: bytes, leave_after: int | None = None) -> float:
    """Reads one to its end, or leaves after so many events; seconds to the first text. Raises Failed."""
    reader, writer = await asyncio.open_connection(HOST, port, limit=LIMIT)
    try:
        started, first, events, ended = time.perf_counter(), 0.0, 0, False
        writer.write(post(path, body, port))
        while line := await reader.readline():
            if line.startswith(b"HTTP/1.1") and b" 200 " not in line:
                raise Failed(f"answered {line.decode().strip()}")
            if line.startswith(b"data: {"):
                events += 1
                if not first and has_text(line):
                    first = time.perf_counter() - started
                ended = ended or b'"finish_reason":"length"' in line or b'"finish_reason": "length"' in line
                if events == leave_after:
                    return first
            elif ended and line == b"0\r\n":
                break
        if not ended:
            raise Failed("a stream ended before its end")
        if not first:
            raise Failed("a stream ended without text")
        return first
    finally:
        writer.close()


def has_text(line: bytes) -> bool:
    """Whether an event has new text: the first of a chat has only its role."""
    choices = json.loads(line.removeprefix(b"data: "))["choices"]
    return any(choice["delta"].get("content") for choice in choices)


async def whole(port: int, path: str, bodies: Sequence[bytes], connections: int, tokens: int) -> float:
    """Tokens a second of whole answers. Raises Failed where one is not as long as it should be."""
    pool = Pool(port)

    async def read(body: bytes) -> None:
        reply = await pool.ask(post(path, body, port), time.perf_counter())
        if reply.status != 200 or json.loads(reply.body).get("output_token_count") != tokens:
            raise Failed(f"answered {reply.status}, {reply.body.decode(errors='replace')}"[:200])

    try:
        return tokens * await _rate(read, bodies, connections)
    finally:
        pool.close()


async def _rate(read: Callable[[bytes], Awaitable[None]], bodies: Sequence[bytes], connections: int) -> float:
    """Answers a second."""
    started = time.perf_counter()
    async with asyncio.timeout(TIMEOUT):
        await each_once(read, bodies, connections)
    return len(bodies) / (time.perf_counter() - started)
