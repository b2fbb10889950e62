"""Who takes part: both engines behind TorchServe and behind their own servers, and the seed's service."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.candidates.candidate import PYTHON, Candidate, Job, Wire
from benchmarks.candidates.ours import Ours, pack, serving
from benchmarks.environments import PEERS, Environment
from benchmarks.generation.models import CONTEXT, PLACE
from benchmarks.http_client import HOST

TASK = "text-generation"
NEW = 64  # tokens of an answer
STREAMS = 16  # at once
CACHE_TOKENS = 32_768
BATCH_TOKENS = 512
TRANSFORMERS = {"cache_tokens": CACHE_TOKENS, "max_batch_tokens": BATCH_TOKENS}
CACHE_BYTES = 1 << 29
VLLM = {"enforce_eager": True, "kv_cache_memory_bytes": CACHE_BYTES, "max_model_len": CONTEXT, "max_num_seqs": 64}


def chat(prompt: str, **more: Any) -> bytes:
    """A stream of the OpenAI protocol, greedy."""
    asked = {"model": "bench", "messages": [{"role": "user", "content": prompt}], "max_tokens": NEW}
    return json.dumps({**asked, "temperature": 0, "stream": True, **more}).encode()


def native(prompt: str) -> bytes:
    """A whole answer of the native route, which is also the seed's."""
    return json.dumps({"prompt": prompt, "max_new_tokens": NEW}).encode()


class OurEngine(Ours):
    """One engine behind TorchServe."""

    wires: ClassVar = {TASK: Wire("/predictions/bench/1.0/v1/chat/completions", chat, lambda answer: ())}

    def __init__(self, engine: str, handler: Mapping[str, Any], more: Sequence[str] = ()) -> None:
        self.name = f"ours, {engine}"  # type: ignore[misc]
        self.about = f"this project with engine {engine}, scripts/serve.sh's configuration"  # type: ignore[misc]
        self.engine, self.handler, self.more = engine, {"task": TASK, "engine": engine, **handler}, more

    def prepare(self, job: Job) -> None:
        """Builds the archive; the weights stay where they are."""
        pack(job, self.engine, self.handler, self.more)

    def command(self, job: Job) -> list[str]:
        """What scripts/serve.sh runs."""
        return serving(job, f"bench={self.engine}")


class OurNative(OurEngine):
    """The same by the native route."""

    wires: ClassVar = {TASK: Wire("/predictions/bench", native, lambda answer: ())}


class TransformersServe(Candidate):
    """`transformers serve` with continuous batching."""

    name = "transformers serve"
    # It needs accelerate, which the handler does not; a machine with a GPU may have it.
    environment = None if find_spec("accelerate") else Environment("serving")

    def __init__(
        self, model: Path = PLACE, dtype: str = "float32", device: str = "cpu", batch_tokens: int = BATCH_TOKENS
    ) -> None:
        self.about = (  # type: ignore[misc]
            f"transformers serve --continuous-batching, {CACHE_TOKENS} tokens of cache, {batch_tokens} a step"
        )
        self.dtype, self.device, self.batch_tokens = dtype, device, batch_tokens
        # Its model is called by its path.
        body = partial(chat, model=str(model))
        self.wires = {TASK: Wire("/v1/chat/completions", body, lambda answer: ())}  # type: ignore[misc]

    def command(self, job: Job) -> list[str]:
        """Its own command line."""
        line = [self.python, "-m", "transformers.cli.transformers", "serve", str(job.model)]
        line += ["--continuous-batching", "--dtype", self.dtype, "--device", self.device]
        line += ["--host", HOST, "--port", str(job.port)]
        line += ["--cb-block-size", "256", "--cb-num-blocks", str(CACHE_TOKENS // 256)]
        return [*line, "--cb-max-batch-tokens", str(self.batch_tokens)]


class VllmServe(Candidate):
    """vLLM's own server."""

    name = "vllm serve"
    about = "vLLM's API server with the same arguments"
    environment = None
    wires: ClassVar = {TASK: Wire("/v1/chat/completions", chat, lambda answer: ())}

    def command(self, job: Job) -> list[str]:
        """Its own command line; `vllm serve` itself looks for a package of another name on a CPU."""
        line = [PYTHON, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", str(job.model)]
        line += ["--served-model-name", "bench", "--dtype", "float32", "--host", HOST, "--port", str(job.port)]
        for name, value in VLLM.items():
            line += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        return [*line, "--disable-uvicorn-access-log"]

    def variables(self, job: Job) -> dict[str, str]:
        """As the handler sets it."""
        return {
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
            "VLLM_LOGGING_LEVEL": "WARNING",
        }


class SeedGenerate(Candidate):
    """peers/generate_fastapi.py."""

    name = "seed"
    about = "the seed's FastAPI service as described: one `generate` a request, in a thread of the pool, uvicorn"
    environment = None
    wires: ClassVar = {TASK: Wire("/generate", native, lambda answer: ())}

    def command(self, job: Job) -> list[str]:
        """Its own command line."""
        line = [PYTHON, "-m", "uvicorn", "generate_fastapi:app", "--app-dir", str(PEERS)]
        return [*line, "--host", HOST, "--port", str(job.port)]

    def variables(self, job: Job) -> dict[str, str]:
        """What it loads."""
        return {"BENCH_MODEL": str(job.model)}


def transformers_engine() -> OurEngine:
    """As `transformers serve` is set."""
    return OurEngine("transformers", TRANSFORMERS)


def vllm_engine(cache_bytes: int = CACHE_BYTES) -> OurEngine:
    """As vLLM's server is set."""
    return OurEngine("vllm", {"vllm": {**VLLM, "kv_cache_memory_bytes": cache_bytes}})


def native_route() -> OurEngine:
    """As `transformers serve` is set, by the native route."""
    return OurNative("transformers", TRANSFORMERS)
