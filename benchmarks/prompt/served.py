"""Over HTTP: prompts a second, the way of a large answer, and the memory that large answers take."""

from __future__ import annotations

import http.client
import json
import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, ClassVar

import psutil
import torch

from benchmarks.candidates.candidate import Candidate, Job, Wire
from benchmarks.candidates.ours import Ours, pack, serving
from benchmarks.environments import PEERS
from benchmarks.http_client import HOST
from benchmarks.memory import find_worker
from benchmarks.processes import Failed, resident, running
from benchmarks.prompt.models import DEEP, TASK, WIDE, Shape, directory, fills_an_answer, prompts
from client import InferenceClient

SAFETENSORS = "application/x-safetensors"
TIMEOUT = 600  # s for one answer
CONNECTIONS = 16
AT_ONCE = 8


def body(prompt: str) -> bytes:
    """{"prompt": …}."""
    return json.dumps({"prompt": prompt}).encode()


def compact(prompt: str) -> bytes:
    """The same, for the prompt's own tokens only."""
    return json.dumps({"prompt": prompt, "compact": True}).encode()


class OurPrompts(Ours):
    """An archive with recipes/flux2-prompt's settings."""

    name = "ours"
    about = (
        "this project: recipes/flux2-prompt's settings, the archive's defaults, scripts/serve.sh's configuration"
    )
    wires: ClassVar = {TASK: Wire("/predictions/bench", body, lambda answer: (), SAFETENSORS)}

    def __init__(self, shape: Shape, **settings: Any) -> None:
        self.handler = shape.handler(**settings)

    def prepare(self, job: Job) -> None:
        """Builds the archive; the weights stay where they are."""
        pack(job, "bench", self.handler)

    def command(self, job: Job) -> list[str]:
        """What scripts/serve.sh runs."""
        return serving(job, "bench=bench")


class SeedPrompts(Candidate):
    """peers/prompt_fastapi.py."""

    name = "seed"
    about = "the seed's FastAPI service as described: the whole model, padding computed, JSON lists, uvicorn"
    wires: ClassVar = {TASK: Wire("/predict", body, lambda answer: ())}

    def __init__(self, shape: Shape) -> None:
        self.handler = shape.handler()

    def command(self, job: Job) -> list[str]:
        """Its own command line."""
        line = [self.python, "-m", "uvicorn", "prompt_fastapi:app", "--app-dir", str(PEERS)]
        return [*line, "--host", HOST, "--port", str(job.port)]

    def variables(self, job: Job) -> dict[str, str]:
        """What it is set to."""
        layers = ",".join(map(str, self.handler["layers"]))
        return {
            "BENCH_MODEL": str(job.model),
            "BENCH_LAYERS": layers,
            "BENCH_SYSTEM": self.handler["system_message"],
        }


def at_work(candidate: Candidate, shape: Shape) -> AbstractContextManager[Job]:
    """The candidate's server with this model, answering."""
    return running(candidate, TASK, directory(shape), "prompt")


def throughput(rounds: int, say: Callable[[str], None]) -> dict[str, list[float]]:
    """Prompts a second at 16 connections, each way in every round; whole answers are read, and not looked at."""
    ways: dict[str, tuple[Candidate, Callable[[str], bytes], int]] = {
        "seed": (SeedPrompts(DEEP), body, 2 * CONNECTIONS),
        "ours": (OurPrompts(DEEP), body, 8 * CONNECTIONS),
        "ours, compact": (OurPrompts(DEEP), compact, 8 * CONNECTIONS),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        names = list(ways)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            candidate, make, count = ways[name]
            with at_work(candidate, DEEP) as job:
                bodies = [make(prompt) for prompt in prompts(count)]
                closed_loop(candidate, job, bodies[:CONNECTIONS])  # warm
                found[name].append(closed_loop(candidate, job, bodies))
            say(f"[{number + 1}/{rounds}] {name}: {found[name][-1]:.2f} prompts/s")
    return found


def closed_loop(candidate: Candidate, job: Job, bodies: Sequence[bytes]) -> float:
    """Answers a second, of all bodies once, by 16 connections that are kept busy. Raises Failed."""
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    for each in bodies:
        waiting.put(each)
    wire = candidate.wires[TASK]

    def work() -> None:
        connection = http.client.HTTPConnection(HOST, job.port, timeout=TIMEOUT)
        headers = {"Content-Type": "application/json", "Accept": wire.accept}
        while not waiting.empty():
            try:
                connection.request("POST", wire.path, waiting.get_nowait(), headers)
            except queue.Empty:
                break
            reply = connection.getresponse()
            if len(reply.read()) < 1000 or reply.status != 200:
                raise Failed(f"{candidate.name} answered {reply.status}")
        connection.close()

    start = time.perf_counter()
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        for done in [threads.submit(work) for _ in range(CONNECTIONS)]:
            done.result()
    return len(bodies) / (time.perf_counter() - start)


def large(rounds: int, say: Callable[[str], None]) -> dict[str, list[float]]:
    """Seconds from the last layer's output to the client's tensor, for an answer of 15.7 MB, alone.

    Ours is asked for what it remembers, so that no layer is run: the whole time from the request on counts. The
    seed says how long it computed, and that is taken off.
    """
    found: dict[str, list[float]] = {"ours": [], "seed": []}
    prompt = fills_an_answer()
    with ExitStack() as stack:
        ours = stack.enter_context(at_work(OurPrompts(WIDE, cache_bytes=2 * WIDE.answer_bytes), WIDE))
        seed = stack.enter_context(at_work(SeedPrompts(WIDE), WIDE))
        client = stack.enter_context(InferenceClient(f"http://{HOST}:{ours.port}", timeout=TIMEOUT))
        client.encode_prompt("bench", prompt)
        for number in range(rounds):
            for _ in range(5):
                start = time.perf_counter()
                tensor = client.encode_prompt("bench", prompt).prompt_embeds
                found["ours"].append(time.perf_counter() - start)
            if tensor.nbytes != WIDE.answer_bytes:
                raise Failed(f"the answer has {tensor.nbytes} bytes, not {WIDE.answer_bytes}")
            found["seed"].append(by_lists(seed.port, prompt))
            say(f"[{number + 1}/{rounds}] 15.7 MB: ours {found['ours'][-1]:.3f} s, seed {found['seed'][-1]:.1f} s")
    return found


def by_lists(port: int, prompt: str) -> float:
    """Seconds of the seed's answer beyond its computing, as far as a tensor of the same kind."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection(HOST, port, timeout=TIMEOUT)
    connection.request("POST", "/predict", body(prompt), {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    tensor = torch.tensor(answer["prompt_embeds"], dtype=torch.bfloat16)
    took = time.perf_counter() - start
    connection.close()
    if tensor.nbytes != WIDE.answer_bytes:
        raise Failed(f"the seed's answer has {tensor.nbytes} bytes, not {WIDE.answer_bytes}")
    return took - float(answer["time_ms"]) / 1000


def in_flight(rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Bytes of worker and frontend, at rest and at most, with eight answers of 15.7 MB asked for at once."""
    candidate, texts = OurPrompts(WIDE), [fills_an_answer(number) for number in range(AT_ONCE)]
    with at_work(candidate, WIDE) as job, ThreadPoolExecutor(AT_ONCE) as threads:
        processes = {"worker": find_worker(), "server": find_server()}
        url = f"http://{HOST}:{job.port}"

        def ask(text: str) -> float:
            with InferenceClient(url, timeout=TIMEOUT) as client:
                start = time.perf_counter()
                client.encode_prompt("bench", text)
                return time.perf_counter() - start

        ask(texts[0])
        found: dict[str, Any] = {name: {"rest": resident(one.pid), "most": []} for name, one in processes.items()}
        found["seconds"] = []
        for number in range(rounds):
            for one in processes.values():
                Path(f"/proc/{one.pid}/clear_refs").write_text("5")  # begins VmHWM anew (proc_pid_clear_refs(5))
            found["seconds"].append(max(threads.map(ask, texts)))
            for name, one in processes.items():
                found[name]["most"].append(resident(one.pid, "VmHWM"))
            most = {name: round(found[name]["most"][-1] / 1e6) for name in processes}
            say(f"[{number + 1}/{rounds}] eight at once: {found['seconds'][-1]:.1f} s, at most {most} MB")
    return found


def find_server() -> psutil.Process:
    """TorchServe's frontend."""
    for process in psutil.Process().children(recursive=True):
        if process.name() == "java":
            return process
    raise Failed("no frontend was found")
