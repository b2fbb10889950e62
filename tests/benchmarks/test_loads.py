"""The closed loop's rate, the open loop's arrivals and the knee, without a server."""

from __future__ import annotations

import asyncio
import json
import random

import numpy as np
import pytest

from benchmarks.closed_loop import rate, read
from benchmarks.gateway import spoiled
from benchmarks.generation.streams import stream
from benchmarks.http_client import Reply, ask_all, each_once, post
from benchmarks.open_loop import LADDER, arrivals, find_knee, keeps_up, load
from benchmarks.processes import Failed


def test_arrivals_are_poisson_and_reproducible():
    times = np.array(arrivals(50, 400, seed=3))
    assert list(times) == arrivals(50, 400, seed=3) != arrivals(50, 400, seed=4)
    gaps = np.diff(times)
    assert times.max() < 400 and abs(len(times) / 400 - 50) < 1.5
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as an exponential's are


def test_arrivals_of_another_rate_are_the_same_scaled():
    slow, fast = arrivals(10, 50, seed=1), arrivals(20, 25, seed=1)
    assert np.allclose(np.array(slow) / 2, fast)


@pytest.mark.parametrize("phase", [0.1, 0.45, 0.9])
@pytest.mark.parametrize("lump", [1, 32, 64])
def test_rate_does_not_depend_on_where_a_lump_is_cut(lump, phase):
    starts = phase + np.arange(0, 7.0, lump / 100)
    answers = [start + place * 1e-5 for start in starts if start < 7 for place in range(lump)]
    assert rate(answers, 64) == pytest.approx(100, rel=0.001)


def test_rate_of_a_lump_by_itself_is_unknown():
    assert rate([1.0 + place * 1e-5 for place in range(64)], 64) is None and rate([], 1) is None


def test_no_answer_is_no_rate():
    said = {"requests": 5, "errors": 5, "seconds": 3.0, "times": []}
    with pytest.raises(Failed, match="nothing was answered"):
        read(said, 64)


def replies(latencies, status=200):
    return [Reply(number * 0.01, number * 0.01 + late, status, b"") for number, late in enumerate(latencies)]


def test_so_many_clients_do_each_once():
    begun, most, at_once = [], 0, 0

    async def work(item):
        nonlocal most, at_once
        begun.append(item)
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        at_once -= 1

    asyncio.run(each_once(work, range(50), 7))
    assert sorted(begun) == list(range(50)) and most == 7


def test_an_answer_may_come_in_chunks():
    """As a stream does; one that breaks off is none."""
    answers = iter((b"3\r\nabc\r\n10\r\n" + b"d" * 16 + b"\r\n0\r\n\r\n", b"5\r\nab"))

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + next(answers))
        await writer.drain()
        writer.close()

    async def ask():
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await ask_all(port, [post("/", b"", port)] * 2, 1)

    whole, broken = asyncio.run(ask())
    assert (whole.status, whole.body, broken.status) == (200, b"abc" + b"d" * 16, 0)


def test_keeping_up():
    assert keeps_up(replies([0.02] * 1000), 10)
    assert not keeps_up(replies([0.02] * 1000, status=503), 10)
    assert not keeps_up(replies([0.02 + number * 0.0005 for number in range(1000)]), 10)  # the queue grows
    assert not keeps_up(replies([0.02] * 800 + [5.0] * 200), 10)


def test_the_knee_is_the_highest_rate_that_holds():
    for limit in (25, 47, 100, 1000):
        expected = max(step * 100 for step in LADDER if step * 100 <= max(limit, 30))
        found = find_knee(100, lambda rate, limit=limit: rate <= limit)
        assert found == (pytest.approx(expected) if limit >= 30 else None)


def test_latency_counts_from_the_intended_time_and_errors_have_none():
    found = load([*replies([0.1] * 99), Reply(0, 9, 0, b"reset")], 10)
    assert (found.p50, found.p99) == (pytest.approx(100), pytest.approx(100))
    assert (found.errors, found.requests, found.per_second) == (1, 100, pytest.approx(9.9))


def test_what_is_malformed_is_still_framed_as_http():
    """The gateway has to read each to its end; the same are sent in every run."""
    made = [list(spoiled(200, 1, random.Random(7))) for _ in range(2)]
    assert made[0] == made[1]
    for request in made[0]:
        head, _, body = request.partition(b"\r\n\r\n")
        assert head.startswith(b"POST /") and f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")


@pytest.mark.parametrize("content", ["", "a"])
def test_a_stream_without_text_is_no_fast_one(content):
    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        for delta, reason in (({"content": content}, None), ({}, "length")):
            event = json.dumps({"choices": [{"delta": delta, "finish_reason": reason}]})
            writer.write(f"data: {event}\n\n".encode())
        await writer.drain()
        writer.close()

    async def ask():
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            return await stream(server.sockets[0].getsockname()[1], "/", b"")

    if content:
        assert asyncio.run(ask()) > 0
    else:
        with pytest.raises(Failed, match="without text"):
            asyncio.run(ask())
