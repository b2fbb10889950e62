"""A thousand streams, one in three left midway: whether the worker, the engine or Java grows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import requests

from benchmarks.candidates.candidate import Job
from benchmarks.generation.candidates import STREAMS, TASK, OurEngine, chat
from benchmarks.generation.models import prompts
from benchmarks.generation.streams import stream
from benchmarks.http_client import HOST, each_once
from benchmarks.memory import HEAP, find_worker, heap_after_collection, summary
from benchmarks.processes import Failed, resident

TOKENS = 32
LEAVE_EVERY, LEAVE_AFTER = 3, 8  # one in three, after so many events
LOOKS = 20
QUIET_SECONDS = 10


def leaks(candidate: OurEngine, job: Job, streams: int, say: Callable[[str], None]) -> dict[str, Any]:
    """What the processes held after each twentieth of the streams, and what the engine holds at the end."""
    worker = find_worker()
    watched = {"worker": worker.pid, "java": worker.ppid()}
    watched |= {child.name(): child.pid for child in worker.children(recursive=True) if "VLLM" in child.name()}
    samples: dict[str, list[int]] = {name: [] for name in (*watched, HEAP)}
    texts, path = prompts(64), candidate.wires[TASK].path
    for look in range(LOOKS):
        numbers = range(look * streams // LOOKS, (look + 1) * streams // LOOKS)
        asyncio.run(_streams(job.port, path, [texts[number % 64] for number in numbers], numbers.start))
        for name, pid in watched.items():
            samples[name].append(resident(pid))
        if (heap := heap_after_collection(worker.ppid())) is not None:
            samples[HEAP].append(heap)
        if look % 5 == 4:
            told = ", ".join(f"{name} {held[-1] / 1e6:.0f} MB" for name, held in samples.items() if held)
            say(f"[{numbers.stop}/{streams}] {told}")
    samples = {name: held for name, held in samples.items() if held}
    growth = {name: _growth(held, streams) for name, held in samples.items()}
    return {"streams": streams, "samples": samples, "growth": growth, "held": _held(job)}


def _growth(held: list[int], streams: int) -> dict[str, float]:
    found = summary([((look + 1) * streams // LOOKS, held[look]) for look in range(LOOKS)])
    return {"bytes": found["growth_bytes"], "allowed": found["allowed_bytes"]}


async def _streams(port: int, path: str, texts: list[str], start: int) -> None:
    async def read(numbered: tuple[int, str]) -> None:
        number, text = numbered
        leave = LEAVE_AFTER if number % LEAVE_EVERY == 0 else None
        await stream(port, path, chat(text, max_tokens=TOKENS), leave)

    await each_once(read, enumerate(texts, start), STREAMS)


def _held(job: Job) -> dict[str, float]:
    """The worker's own gauges, once nobody asks any more; one request lets it tell them. Raises Failed."""
    end = time.monotonic() + QUIET_SECONDS
    while time.monotonic() < end:
        time.sleep(1.5)
        requests.get(f"http://{HOST}:{job.port}/predictions/bench/1.0/v1/models", timeout=30)
        time.sleep(0.2)
        lines = requests.get(f"http://{HOST}:{job.port + 2}/metrics", timeout=30).text.splitlines()
        found = {}
        for name in ("HandlerLive", "HandlerRunning", "HandlerWaiting", "HandlerCacheUsed"):
            values = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name}{{")]
            found[name] = values[0] if values else -1.0
        if not found["HandlerRunning"] and not found["HandlerWaiting"]:
            return found
    raise Failed(f"the engine still holds {found} after {QUIET_SECONDS} s")
