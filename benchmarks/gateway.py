"""What the gateway costs, and what becomes of malformed requests that come through it."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

from requests import get

from benchmarks.candidates.candidate import CLASSIFY, EMBED, Job, text_body
from benchmarks.candidates.ours import Ours, build, serving
from benchmarks.closed_loop import closed_loop, url
from benchmarks.environments import ROOT
from benchmarks.figures import Measurement, Results
from benchmarks.http_client import HOST, ask_all, post
from benchmarks.memory import Sentiment, find_workers
from benchmarks.models import model_for
from benchmarks.processes import START_SECONDS, Failed, running
from benchmarks.texts import text_set

CONNECTIONS = (1, 16, 64)
MODELS = {"bench": "MiniLM", "sentiment": "sentiment"}  # an archive's name -> what the page calls it
WARM_UP = 4.0  # s
STEP = 5_000  # malformed requests between two words
PATHS = (  # one of each protocol
    "/predict",
    "/",
    "/invocations",
    "/generate",
    "/generate-stream",
    "/predictions/sentiment",
    "/predictions/sentiment/1.0/v1/embeddings",
    "/predictions/tiny-chat",
    "/predictions/tiny-chat/1.0/v1/chat/completions",
    "/v1/embeddings",
    "/v1/completions",
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
    {"model": "meaning", "input": ["a"]},
    {"prompt": "a", "max_new_tokens": 2, "temperature": 0.5},
    {"model": "tiny-chat", "prompt": "a", "max_tokens": 2, "stop": ["b"]},
    {"model": "tiny-chat", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2, "stream": True},
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


class Behind(Ours):
    """A gateway in front of the benchmarks' model and of a recipe's that is so small that the way to it counts."""

    name = "gateway"

    def prepare(self, job: Job) -> None:
        """Builds both."""
        super().prepare(job)
        Sentiment().prepare(job)

    def command(self, job: Job) -> list[str]:
        """What scripts/serve.sh --gateway runs."""
        return behind_gateway(job, "bench.mar", "sentiment.mar")


class OfEveryKind(Sentiment):
    """A gateway in front of a classifier, an embedder and a chat model."""

    name = "gateway of every kind"

    def prepare(self, job: Job) -> None:
        """The embedder is the classifier without its head."""
        super().prepare(job)
        build(job, str(ROOT / "recipes" / "tiny-chat"))
        model = ("--model", str(ROOT / "recipes" / "sentiment" / "model"), "--model-name", "meaning")
        build(job, *model, "--version", "1.0", "--task", EMBED)

    def command(self, job: Job) -> list[str]:
        """What scripts/serve.sh --gateway runs, with three archives."""
        return behind_gateway(job, "sentiment.mar", "meaning.mar", "tiny-chat.mar")


def behind_gateway(job: Job, *models: str) -> list[str]:
    """The server's command line. On loopback without keys nothing limits who asks, so no limit ends the run."""
    return [*serving(job, *models), "--gateway"]


def measure(rounds: int, seconds: float, requests: int, results: Results, say: Callable[[str], None]) -> None:
    """The same server with and without, in turns; then what is malformed."""
    with running(Behind(), CLASSIFY, model_for(CLASSIFY), "gateway") as job:
        bodies = job.scratch / "bodies.txt"
        bodies.write_text("".join(f"{text_body(text).decode()}\n" for text in text_set("mixed")))
        ways = {"direct": job.port, "gateway": job.port + 5}
        for model in MODELS:
            for port in ways.values():
                closed_loop(url(port, f"/predictions/{model}"), bodies, 64, WARM_UP)
        for number in range(rounds):
            for connections, (model, name) in product(CONNECTIONS, MODELS.items()):
                for way, port in list(ways.items())[:: 1 if number % 2 else -1]:
                    load = closed_loop(url(port, f"/predictions/{model}"), bodies, connections, seconds)
                    results.measurements.append(Measurement(CLASSIFY, way, f"{name}@{connections}", number, load))
                    said = f"{name:10}{connections:3} connections, {way:8}{load.per_second:7.0f}/s"
                    say(f"round {number + 1}: {said}")
    with running(OfEveryKind(), CLASSIFY, Path(), "gateway-malformed") as job:
        wait_until_ready(job.port + 5)
        results.extra = {"malformed": send_malformed(requests, job.port + 5, say)}


def wait_until_ready(port: int) -> None:
    """Until every model is: `running` has asked for one of them only."""
    end_at = time.monotonic() + START_SECONDS
    while time.monotonic() < end_at:
        if get(f"http://{HOST}:{port}/health", timeout=30).ok:
            return
        time.sleep(0.25)
    raise Failed("a model was not ready in time")


def send_malformed(count: int, port: int, say: Callable[[str], None]) -> dict[str, object]:
    """So many, and what each status was for how many; whether the workers are still those that they were."""
    workers, statuses, chance = find_workers(), Counter[int](), random.Random(7)
    for sent in range(0, count, STEP):
        wrong = list(spoiled(min(STEP, count - sent), port, chance))
        statuses.update(reply.status for reply in asyncio.run(ask_all(port, wrong, 32)))
        say(f"[{min(count, sent + STEP)}/{count}] {dict(sorted(statuses.items()))}")
    return {
        "requests": count,
        "statuses": dict(sorted(statuses.items())),
        "same_workers": find_workers() == workers,
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
