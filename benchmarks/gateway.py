"""What the gateway costs, and what becomes of malformed requests that come through it."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.candidates.candidate import CLASSIFY, Job
from benchmarks.closed_loop import closed_loop, url
from benchmarks.figures import Measurement, Results
from benchmarks.http_client import ask_all, post
from benchmarks.memory import Sentiment, find_worker
from benchmarks.processes import running
from benchmarks.texts import text_set

CONNECTIONS = (1, 16, 64)
WARM_UP = 4.0  # s
WIDE = {"requests_per_address": 10_000_000, "requests_per_key": 10_000_000}  # limits would end the run
STEP = 5_000  # malformed requests between two words
PATHS = (  # one of each protocol
    "/predict",
    "/",
    "/invocations",
    "/generate",
    "/predictions/sentiment",
    "/predictions/sentiment/1.0/v1/embeddings",
    "/v1/embeddings",
    "/v1/chat/completions",
    "/v1/models/sentiment:predict",
    "/v2/models/sentiment/infer",
    "/v2/models/sentiment/versions/1.0/infer",
    "/predictions/sentiment/../x",
)
GOOD: tuple[dict[str, Any], ...] = (
    {"text": "a"},
    {"texts": ["a", "b"]},
    {"inputs": "a", "parameters": {"top_k": 1}},
    {"instances": ["a"]},
    {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}]},
    {"inputs": [{"name": "input_ids", "shape": [1, 2], "datatype": "INT64", "data": [101, 102]}]},
    {"model": "sentiment", "input": ["a"]},
    {"model": "sentiment", "messages": [{"role": "user", "content": "a"}]},
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**70,
    1e300,
    "",
    "a" * 300,
    "\u0000",
    "\U0001f600",
    [],
    {},
    [[]],
    [None],
    {"a": {}},
    ["BYTES"],
)


class Behind(Sentiment):
    """The recipe's own archive, with the gateway in front."""

    name = "gateway"

    def prepare(self, job: Job) -> None:
        """And the gateway's configuration."""
        super().prepare(job)
        (job.store / "gateway.yaml").write_text(json.dumps({"limits": WIDE}))

    def command(self, job: Job) -> list[str]:
        """What scripts/serve.sh --gateway runs."""
        return [*super().command(job), "--gateway", str(job.store / "gateway.yaml")]


def measure(rounds: int, seconds: float, malformed: int, results: Results, say: Callable[[str], None]) -> None:
    """The same server with and without, in turns; then what is malformed."""
    candidate, wire = Behind(), Behind.wires[CLASSIFY]
    with running(candidate, CLASSIFY, Path(), "gateway") as job:
        bodies = job.scratch / "bodies.txt"
        bodies.write_text("".join(f"{wire.body(text).decode()}\n" for text in text_set("mixed")))
        ways = {"direct": url(job.port, wire.path), "gateway": url(job.port + 5, wire.path)}
        for where in ways.values():
            closed_loop(where, bodies, 64, WARM_UP)
        for number in range(rounds):
            for connections in CONNECTIONS:
                for name, where in list(ways.items())[:: 1 if number % 2 else -1]:
                    load = closed_loop(where, bodies, connections, seconds)
                    cell = f"mixed@{connections}"
                    results.measurements.append(Measurement(CLASSIFY, name, cell, number, load))
                    say(f"round {number + 1}: {name:8}{connections:3} connections {load.per_second:7.0f}/s")
        results.extra = {"malformed": send_malformed(malformed, job.port + 5, say)}


def send_malformed(count: int, port: int, say: Callable[[str], None]) -> dict[str, object]:
    """So many, and what each status was for how many; whether the worker is still the one that it was."""
    worker, statuses, chance = find_worker().pid, Counter[int](), random.Random(7)
    for sent in range(0, count, STEP):
        requests = list(spoiled(min(STEP, count - sent), port, chance))
        statuses.update(reply.status for reply in asyncio.run(ask_all(port, requests, 32)))
        say(f"[{min(count, sent + STEP)}/{count}] {dict(sorted(statuses.items()))}")
    return {
        "requests": count,
        "statuses": dict(sorted(statuses.items())),
        "same_worker": find_worker().pid == worker,
    }


def spoiled(count: int, port: int, chance: random.Random) -> Iterator[bytes]:
    """Requests of every protocol with something wrong in them; now and then it happens to be right."""
    for _ in range(count):
        document = json.dumps(_wrong(chance.choice(GOOD), chance)).encode()
        kind = chance.randrange(4)
        if kind == 1:  # cut short
            document = document[: chance.randrange(len(document) + 1)]
        elif kind == 2:  # a byte changed
            place = chance.randrange(len(document))
            document = document[:place] + bytes([chance.randrange(256)]) + document[place + 1 :]
        request = post(chance.choice(PATHS), document, port)
        if kind == 3:  # binary tensors that are not there
            length = f"\r\nInference-Header-Content-Length: {chance.choice((0, 1, len(document), 10**9, -1))}\r\n"
            request = request.replace(b"\r\n", length.encode(), 1)
        yield request


def _wrong(document: dict[str, object], chance: random.Random) -> dict[str, object]:
    """One value of it replaced, or one added, on some level."""
    changed = dict(document)
    name = chance.choice([*changed, "extra", "parameters", "id", "outputs"])
    value = changed.get(name)
    if isinstance(value, list) and value and isinstance(value[0], dict) and chance.random() < 0.7:
        changed[name] = [_wrong(value[0], chance), *value[1:]]
    else:
        changed[name] = chance.choice(VALUES)
    return changed
