"""vLLM's own OpenAI application and engine. The model runs in a process of vLLM's, whose parent is the worker.

vLLM is optional (requirements-vllm.txt). `handler.vllm` holds its arguments, named as on its command line and
judged by its own parser.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers

from handler import devices
from handler.config import ModelConfig
from handler.errors import LoadError
from handler.generation import vllm_cpu
from handler.generation.application import Application, Asgi, note_accepted
from handler.generation.engine import Engine, Load
from handler.generation.guard import guard
from handler.generation.openai_protocol import CHAT, COMPLETIONS, EMBEDDINGS
from handler.generation.openai_requests import DRAWN
from handler.generation.vllm_arguments import read_arguments
from handler.generation.vllm_formats import judge_whole_formats
from handler.loading import OFFLINE, check_directory

# Read when vLLM is imported: no statistics to its makers, no reader of the hub, no fork of a process with threads.
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
}
# What clients may not ask of it: to reach into the engine, to name files, to be charged to others.
NOT_TAKEN = frozenset(
    {
        "cache_salt",
        "chat_template",
        "ec_transfer_params",
        "kv_transfer_params",
        "media_io_kwargs",
        "mm_payload",
        "mm_processor_kwargs",
        "priority",
        "prompt_embeds",
        "request_id",
        "return_mm_kwargs",
        "return_token_offsets",  # which it passes over in silence
        "routed_experts_prompt_start",
        "session_id",
        "stream_interval",
        "user",
        "vllm_xargs",
        "watermarking",
    }
)
KV_CACHE = "vllm:kv_cache_usage_perc"
# Each ends the engine when it is collected: vLLM's client, and the guard. They live as long as the worker.
HELD: list[object] = []


def build(directory: Path, config: ModelConfig, device: torch.device, name: str) -> Engine:
    """Starts vLLM with the model. Raises LoadError."""
    check_directory(directory)
    os.environ |= {key: value for key, value in ENVIRONMENT.items() if key not in os.environ}
    os.environ.pop("VLLM_API_KEY", None)  # keys are a gateway's; no client could give this one
    devices.bound_kernels()  # of which each number of tokens in a step may have its own: some 200 MB
    if device.type == "cuda":
        _choose_gpus(config, device)
    level = logging.getLogger().level
    try:
        from vllm.entrypoints.launchers.api_server import entry  # noqa: PLC0415  optional, and slow to import
    except ImportError as error:
        raise LoadError(
            f"handler.engine vllm needs vLLM ({error}): pip install --no-deps -r requirements-vllm.txt"
        ) from error
    arguments = read_arguments(config.handler.vllm or {}, directory, config, name)
    _count_whole_prompts()
    judge_whole_formats()
    if device.type == "cpu" and arguments.lora_modules:
        # One place more than there are adapters, which stays empty: requests without one get what has the last
        # place from vLLM's kernels for CPUs, as their index is -1 (vllm/lora/ops/torch_ops/lora_ops.py:31).
        arguments.max_loras = max(arguments.max_loras, len(arguments.lora_modules) + 1)
    cores: AbstractContextManager[None] = nullcontext()
    if device.type == "cpu" and vllm_cpu.in_one_process(arguments):
        cores = vllm_cpu.threads(config.server.maxWorkers, config.handler.threads)
    client: Any = None
    tasks: Collection[str] = ()
    living = entry.build_async_engine_client(arguments)
    # vLLM's processes outlive a parent that is killed, with their memory; also while they are being loaded.
    HELD.extend((guard(), living))

    async def make() -> Asgi:
        nonlocal client, tasks
        with cores:
            engine = client = await living.__aenter__()
        client.add_request = _noting(client.add_request)
        tasks = await engine.get_supported_tasks()
        app = entry.build_app(arguments, tasks, engine.model_config)
        await entry.init_app_state(engine, app.state, arguments, tasks)
        app.state.server = SimpleNamespace(should_exit=False)  # what it stops when the engine has died
        return app  # type: ignore[no-any-return]

    application = Application(make, dead=lambda: client.errored)
    application.start()
    logging.getLogger().setLevel(level)  # raised by what vLLM imports; metrics and the log are lines at INFO
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, **OFFLINE)
    adapters = tuple(module.name for module in arguments.lora_modules or ())
    about = {"engine": "vllm", "dtype": config.handler.dtype}
    drawn = client.model_config.get_diff_sampling_param().keys() & set(DRAWN)
    return Engine(
        application,
        fields=_fields(tasks),
        has_template=bool(tokenizer.chat_template),
        draws=bool(drawn),
        about=about,
        context_tokens=client.model_config.max_model_len,
        load=_load,
        adapters=adapters,
        tells_stop=True,
    )


def _noting(add_request: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """vLLM's, which raises what is wrong with a request (vllm/v1/engine/async_llm.py)."""

    async def add(*arguments: Any, **options: Any) -> Any:
        added = await add_request(*arguments, **options)
        note_accepted()
        return added

    return add


def _choose_gpus(config: ModelConfig, device: torch.device) -> None:
    """Shows vLLM the GPUs that it is to take, which are the first that it sees: deviceIds, or the worker's own."""
    given = config.handler.vllm or {}
    shared = any(given.get(f"{kind}_parallel_size", 1) != 1 for kind in ("tensor", "pipeline", "data"))
    wanted = config.server.deviceIds or ([] if shared else [device.index or 0])
    seen = [number for number in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if number]
    if wanted:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(seen[index] if seen else str(index) for index in wanted)


def _count_whole_prompts() -> None:
    """A prompt that is too long is refused with its length, not with one token more than what fits.

    vLLM stops reading there to spare work (vllm/renderers/params.py:351). It has refused before what has more
    characters than that many tokens can have, and a body has its limit: there is little to spare.
    """
    from vllm.renderers.params import TokenizeParams  # noqa: PLC0415

    stock = TokenizeParams.get_encode_kwargs

    def get_encode_kwargs(self: Any) -> dict[str, Any]:
        asked: dict[str, Any] = stock(self)
        if self.truncate_prompt_tokens is None:
            asked |= {"truncation": False, "max_length": None}
        return asked

    TokenizeParams.get_encode_kwargs = get_encode_kwargs


def _fields(tasks: Collection[str]) -> dict[str, frozenset[str]]:
    """Path -> what vLLM's requests may hold, by what the model can do."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest  # noqa: PLC0415
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest  # noqa: PLC0415
    from vllm.entrypoints.pooling.embed.protocol import EmbeddingCompletionRequest  # noqa: PLC0415

    requests = {
        CHAT: ("generate", ChatCompletionRequest),
        COMPLETIONS: ("generate", CompletionRequest),
        EMBEDDINGS: ("embed", EmbeddingCompletionRequest),
    }
    return {
        path: frozenset(request.model_fields) - NOT_TAKEN
        for path, (task, request) in requests.items()
        if task in tasks
    }


def _load() -> Load:
    """What vLLM counts."""
    from prometheus_client import REGISTRY  # noqa: PLC0415  vLLM brings it

    found = {sample.name: sample.value for metric in REGISTRY.collect() for sample in metric.samples}
    return Load(
        running=int(found.get("vllm:num_requests_running", 0)),
        waiting=int(found.get("vllm:num_requests_waiting", 0)),
        cache_used=found.get(KV_CACHE),
    )
