"""Whether a worker grows: its resident memory while it answers a hundred thousand requests, good and bad."""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import psutil

from benchmarks.candidates.candidate import CLASSIFY, Job, Wire, text_body
from benchmarks.candidates.ours import Ours, build, serving
from benchmarks.environments import ROOT
from benchmarks.figures import Results
from benchmarks.http_client import Reply, ask_all, post
from benchmarks.processes import Failed, resident, running
from benchmarks.texts import text_set

LOOKS = 100  # at the memory, after equally many requests each
CONNECTIONS = 16
LIST_EVERY, LIST_SIZE = 10, 8
BAD_EVERY = 100
BAD = (b"", b"{", b'{"text": 7}', b'{"texts": []}', b'{"text": "a", "wrong": 1}')
SETTLED = 0.1  # of the requests, after which nothing may grow
HEAP = "java's heap after a collection"  # as results call it
GENERATION = re.compile(r"^.*\btotal .*\bused (\d+)K", re.MULTILINE)  # one line, or one for each generation
ALLOWED_SHARE, ALLOWED_BYTES = 0.01, 2_000_000


class Sentiment(Ours):
    """The recipe's own archive."""

    name = "sentiment"
    wires: ClassVar = {CLASSIFY: Wire("/predictions/sentiment", text_body, lambda answer: answer["probabilities"])}

    def prepare(self, job: Job) -> None:
        """Builds it."""
        build(job, str(ROOT / "recipes" / "sentiment"))

    def command(self, job: Job) -> list[str]:
        """What scripts/serve.sh runs."""
        return serving(job, "sentiment.mar")


def measure(requests: int, results: Results, say: Callable[[str], None]) -> None:
    """Sends them, looks at the worker now and then, and notes what came of it."""
    candidate, wire = Sentiment(), Sentiment.wires[CLASSIFY]
    texts, samples, failures = text_set("mixed"), list[tuple[int, int]](), 0
    results.extra["samples"] = samples
    with running(candidate, CLASSIFY, Path(), "memory") as job:
        worker = find_worker()
        step = max(1, requests // LOOKS)
        for sent in range(0, requests, step):
            numbers = range(sent, min(sent + step, requests))
            wire_bytes = [post(wire.path, body(number, texts), job.port) for number in numbers]
            replies = asyncio.run(ask_all(job.port, wire_bytes, CONNECTIONS))
            failures += sum(not as_expected(number, reply) for number, reply in zip(numbers, replies, strict=True))
            samples.append((numbers[-1] + 1, resident(worker.pid)))
            if len(samples) % 10 == 0:
                say(f"[{samples[-1][0]}/{requests}] {samples[-1][1] / 1e6:.1f} MB, {failures} unexpected answers")
    results.candidates["ours"] = {"about": "recipes/sentiment, scripts/serve.sh's server", "repairs": []}
    results.extra |= {"unexpected": failures, **summary(samples)}


def body(number: int, texts: Sequence[str]) -> bytes:
    """Mostly one text; every tenth a list, every hundredth something that has to be refused."""
    if number % BAD_EVERY == 0:
        return BAD[number // BAD_EVERY % len(BAD)]
    if number % LIST_EVERY == 0:
        return json.dumps({"texts": [texts[(number + step) % len(texts)] for step in range(LIST_SIZE)]}).encode()
    return text_body(texts[number % len(texts)])


def as_expected(number: int, reply: Reply) -> bool:
    """Whether good is answered and bad is refused."""
    return 400 <= reply.status < 500 if number % BAD_EVERY == 0 else reply.status == 200


def summary(samples: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Where it stood after the first tenth and at the end, what it grew by in between, and what it may.

    Each end is the median over a tenth of the requests, because one look hits an allocation or misses it.
    """
    total = samples[-1][0]
    after = [(count, rss) for count, rss in samples if count >= SETTLED * total]
    early = statistics.median(rss for count, rss in after if count <= 2 * SETTLED * total)
    late = statistics.median(rss for count, rss in after if count > (1 - SETTLED) * total)
    slope = np.polyfit([count for count, _ in after], [rss for _, rss in after], 1)[0] if len(after) > 1 else 0.0
    return {
        "requests": total,
        "settled_bytes": after[0][1],
        "end_bytes": samples[-1][1],
        "max_bytes": max(rss for _, rss in samples),
        "bytes_a_request": float(slope),
        "growth_bytes": late - early,
        "allowed_bytes": max(ALLOWED_SHARE * early, ALLOWED_BYTES),
    }


def heap_after_collection(pid: int) -> int | None:
    """Bytes that a JVM holds: of its heap, what a collection leaves. None where its runtime has no jcmd."""
    jcmd = Path(psutil.Process(pid).exe()).with_name("jcmd")
    if not jcmd.exists():
        return None
    said = ""
    for order in ("GC.run", "GC.run", "GC.heap_info"):  # what the first finds dead may hold more
        done = subprocess.run([jcmd, str(pid), order], capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed(f"jcmd {order}: {(done.stderr or done.stdout).strip()}")
        said = done.stdout
    return 1024 * sum(map(int, GENERATION.findall(said)))


def find_worker() -> psutil.Process:
    """The Python process that holds the model."""
    return find_workers()[0]


def find_workers() -> Sequence[psutil.Process]:
    """Those that hold models, oldest first. Raises Failed where there are none."""
    children = psutil.Process().children(recursive=True)
    found = [child for child in children if any("model_service_worker" in word for word in child.cmdline())]
    if not found:
        raise Failed("no worker was found")
    return sorted(found, key=lambda worker: worker.create_time())
