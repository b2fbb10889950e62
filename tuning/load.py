"""The load: connections that each send a request, read the answer, and send the next.

    python -m tuning.load JOB.json

One process with one thread and as little work a request as can be: it shares the cores with what it measures.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from tuning.choosing import Seen

ROUNDS = 4  # answers that each connection should have at least, however slow they are
PATIENCE = 90.0  # s for one answer


class Void(Exception):
    """An answer was not as it should be, so that a figure would mean nothing."""


class Loop:
    """All connections of one run."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.connections: int = job["connections"]
        self.seconds: float = job["seconds"]
        self.most: float = job["most"]  # s, for each connection to have its answers
        head = (
            f"POST /predictions/{job['model']} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        )
        bodies = [body.encode() for body in job["bodies"]]
        self.requests: list[bytes] = [f"{head}content-length: {len(b)}\r\n\r\n".encode() + b for b in bodies]
        self.answers: list[tuple[float, float]] = []  # when it came, and how long it took
        self.turn = 0
        self.begun = time.perf_counter()
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def next(self) -> bytes:
        """The next request of all."""
        self.turn += 1
        return self.requests[(self.turn - 1) % len(self.requests)]

    def came(self, started: float) -> None:
        """Notes an answer; the last one ends the run."""
        now = time.perf_counter()
        self.answers.append((now, now - started))
        took, few = now - self.begun, len(self.answers) < ROUNDS * self.connections
        if took >= self.seconds and not (few and took < self.most) and not self.over.done():
            self.over.set_result(None)

    def failed(self, why: str) -> None:
        """The first thing that goes wrong ends the run."""
        if not self.over.done():
            self.over.set_exception(Void(why))


class Connection(asyncio.Protocol):
    """One connection; answers have a length, which TorchServe always gives."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.buffer = b""
        self.started = 0.0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends the first request."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        """Sends the next request once an answer is whole."""
        self.buffer += data
        head, end, body = self.buffer.partition(b"\r\n\r\n")
        if not end or self.loop.over.done():
            return
        try:
            status, length = read_head(head)
        except ValueError:
            self.loop.failed("an answer that is not HTTP with a length")
            return
        if len(body) < length:
            return
        if status != 200:
            self.loop.failed(f"status {status}{reason(body)}")
            return
        self.buffer = b""
        self.loop.came(self.started)
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        """The server closes only what it has answered with an error."""
        self.loop.failed("the server closed a connection")

    def _send(self) -> None:
        assert self.transport is not None
        self.started = time.perf_counter()
        self.transport.write(self.loop.next())


def read_head(head: bytes) -> tuple[int, int]:
    """Status and length. Raises ValueError."""
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int("".join(first.split()[1:2])), int(fields.get("content-length", ""))


def reason(body: bytes) -> str:
    """The handler's words, which quote nothing of what was sent; of others only the length could be trusted."""
    try:
        return f": {json.loads(body)['error']['message']}"[:300]
    except (ValueError, KeyError, TypeError):
        return ""


def rate(times: Sequence[float], connections: int) -> float:
    """Answers a second between the mean moments of the first and of the last answers, one a connection each.

    A server that batches answers in lumps; a count over a fixed time would be off by half a lump.
    """
    count = min(connections, len(times) // 2)
    took = fmean(times[-count:]) - fmean(times[:count])
    return (len(times) - count) / took


def figures(answers: Sequence[tuple[float, float]], connections: int) -> Seen:
    """What the answers say, without each connection's first. Raises Void where there are too few."""
    if len(answers) < 2 * connections:
        raise Void(f"only {len(answers)} answers over {connections} connections; --seconds sets how long")
    took = sorted(latency for _, latency in answers[connections:])
    at = [came for came, _ in answers]
    return Seen(rate(at, connections), took[len(took) // 2], took[min(len(took) - 1, int(0.99 * len(took)))])


async def drive(job: dict[str, Any]) -> Seen:
    """One run."""
    running, loop = asyncio.get_running_loop(), Loop(job)
    transports = []
    try:
        for _ in range(loop.connections):
            made, _ = await running.create_connection(lambda: Connection(loop), "127.0.0.1", job["port"])
            transports.append(made)
        async with asyncio.timeout(loop.most + PATIENCE):
            await loop.over
    except TimeoutError:
        raise Void("answers did not come in time") from None
    except OSError as err:
        raise Void(f"the server cannot be reached: {err.strerror}") from err
    finally:
        loop.over.cancel()
        for transport in transports:
            transport.abort()
    return figures(loop.answers, loop.connections)


def main() -> int:
    """One run; what was seen, or why there is nothing to see, as JSON on stdout."""
    job = json.loads(Path(sys.argv[1]).read_text())
    try:
        print(json.dumps(asdict(asyncio.run(drive(job)))))
    except Void as err:
        print(json.dumps({"void": str(err)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
