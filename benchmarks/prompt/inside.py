"""Without a server: whether the answers are diffusers', and what is saved by leaving out what nobody needs."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers.pipelines.flux2.pipeline_flux2 import Flux2Pipeline
from safetensors import safe_open

from benchmarks.processes import Failed, resident
from benchmarks.prompt.models import LENGTH, Shape, directory, prompts
from handler import wings
from handler.layers import LowerLayers
from handler.tensors import SAFETENSORS, Tensors
from handler.wire import JSON, Message

PROMPTS = 6  # that are held against diffusers
_loaded: list[Any] = []  # of this process: one model


def exactness(shape: Shape, say: Callable[[str], None]) -> dict[str, float]:
    """How far answers are from diffusers' own function on the same weights; prompts one at a time.

    Returns:
        float32_computed: the largest difference where padding is computed; 0 is equal to the bit.
        float32_filled: where it is filled in, in parts of the largest value.
        bfloat16: the least cosine of a prompt's numbers with the reference's, padding filled in.
        bfloat16_token: the same of a token's.
        bfloat16_computed: the same of a token's, padding computed.
        diffusers_bfloat16: the same of a token's, of diffusers in bfloat16 with diffusers in float32.
    """
    transformers.logging.disable_progress_bar()
    texts, place = prompts(PROMPTS), directory(shape)
    wanted = {dtype: reference(shape, texts, dtype) for dtype in ("float32", "bfloat16")}
    say("exactness: diffusers has answered")
    answered = {
        (dtype, padding): ours(shape, texts, place, dtype=dtype, padding=padding)
        for dtype in wanted
        for padding in ("compute", "fill")
    }
    exact, filled = answered["float32", "compute"], answered["float32", "fill"]
    pairs = list(zip(exact, wanted["float32"], strict=True))
    shares = [
        (own - right).abs().max() / right.abs().max() for own, right in zip(filled, wanted["float32"], strict=True)
    ]
    found = {
        "float32_computed": max(float((own - right).abs().max()) for own, right in pairs),
        "float32_filled": max(map(float, shares)),
        "bfloat16": least_cosine(answered["bfloat16", "fill"], wanted["bfloat16"], whole=True),
        "bfloat16_token": least_cosine(answered["bfloat16", "fill"], wanted["bfloat16"]),
        "bfloat16_computed": least_cosine(answered["bfloat16", "compute"], wanted["bfloat16"]),
        "diffusers_bfloat16": least_cosine(wanted["bfloat16"], wanted["float32"]),
    }
    say(f"exactness: {found}")
    return found


def least_cosine(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor], *, whole: bool = False) -> float:
    """Of each prompt's tokens with the reference's, or of all its numbers."""
    cosine = torch.nn.functional.cosine_similarity
    least = 1.0
    for one, other in zip(found, wanted, strict=True):
        own, right = (part.double().flatten() if whole else part.double() for part in (one, other))
        least = min(least, float(cosine(own, right, -1).min()))
    return least


def reference(shape: Shape, texts: Sequence[str], dtype: str) -> list[torch.Tensor]:
    """What diffusers makes of each prompt: (length, layers x width)."""
    place = directory(shape)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    whole = transformers.Mistral3ForConditionalGeneration.from_pretrained(place, dtype=dtype).eval()
    with torch.inference_mode():
        return [
            Flux2Pipeline._get_mistral_3_small_prompt_embeds(
                whole, tokenizer, [text], hidden_states_layers=list(shape.layers)
            )[0]
            for text in texts
        ]


def ours(shape: Shape, texts: Sequence[str], model: Path, **settings: Any) -> list[torch.Tensor]:
    """What the handler answers to each prompt, one at a time."""
    with tempfile.TemporaryDirectory(prefix="bench-") as home:
        Path(home, "model").symlink_to(model)
        document = {"handler": {**shape.handler(), **settings, "warm_up": False}}
        worker = wings.load(Path(home), document, "bench")
        messages = [Message(json.dumps({"prompt": text}).encode(), JSON, accept=SAFETENSORS) for text in texts]
        answers = [worker.answer([message])[0] for message in messages]
    found = []
    for answer in answers:
        if not isinstance(answer, Tensors):
            raise Failed(f"the handler answers {answer}")
        found.append(answer.tensors["prompt_embeds"][0])
    return found


def saving(shape: Shape, rounds: int, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """The whole model and the needed part of it, in bfloat16, in a process each; forwards take turns.

    Returns:
        `whole` and `needed`, each with bytes_read, load_seconds, memory_bytes (the most that the process held,
        less what it held before) and forward_seconds, of 512 tokens, one for each round.
    """
    loaders: dict[str, Callable[..., Any]] = {"whole": load_whole, "needed": load_needed}
    found: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        processes = {name: stack.enter_context(get_context("spawn").Pool(1)) for name in loaders}
        for name, process in processes.items():
            found[name] = process.apply(loaders[name], (shape,)) | {"forward_seconds": []}
        for number in range(rounds):
            for name, process in processes.items():
                found[name]["forward_seconds"].append(process.apply(forward, (shape,)))
            took = {name: round(one["forward_seconds"][-1], 2) for name, one in found.items()}
            say(f"[{number + 1}/{rounds}] 512 tokens: {took} s")
        for name, process in processes.items():
            found[name]["memory_bytes"] = process.apply(most_memory) - found[name].pop("memory_before")
    return found


def load_whole(shape: Shape) -> dict[str, Any]:
    """As the seed and diffusers do."""
    place, before, start = directory(shape), most_memory(), time.perf_counter()
    model = transformers.Mistral3ForConditionalGeneration.from_pretrained(place, dtype="bfloat16").eval()
    _loaded.append(
        lambda ids, mask: model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
    )
    with safe_open(place / "model.safetensors", "pt") as opened:
        read = sum(_bytes(opened.get_slice(name)) for name in opened.keys())  # noqa: SIM118 - it is no mapping
    return {"bytes_read": read, "load_seconds": time.perf_counter() - start, "memory_before": before}


def load_needed(shape: Shape) -> dict[str, Any]:
    """As the handler does."""
    place, before, start = directory(shape), most_memory(), time.perf_counter()
    layers = LowerLayers(place, shape.layers, torch.bfloat16, torch.device("cpu"))
    positions = torch.arange(LENGTH).unsqueeze(0)
    _loaded.append(lambda ids, mask: layers.forward(ids, mask, positions))
    return {"bytes_read": layers.bytes_read, "load_seconds": time.perf_counter() - start, "memory_before": before}


def forward(shape: Shape) -> float:
    """Seconds for 512 tokens, none of them padding: work against work."""
    ids = torch.arange(1000, 1000 + LENGTH).unsqueeze(0)
    start = time.perf_counter()
    with torch.inference_mode():
        _loaded[0](ids, torch.ones_like(ids))
    return time.perf_counter() - start


def most_memory() -> int:
    """Bytes: the most that this process has held; getrusage would count what its parent held when it forked."""
    return resident(os.getpid(), "VmHWM")


def _bytes(tensor: Any) -> int:
    size = {"BF16": 2, "F16": 2, "F32": 4}[tensor.get_dtype()]
    return int(math.prod(tensor.get_shape())) * size
