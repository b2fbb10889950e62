"""Text generation: transformers' engine behind TorchServe, beside transformers' own server on the same device."""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.candidates.candidate import Candidate, Job
from benchmarks.generation.candidates import (
    CACHE_TOKENS,
    NEW,
    TASK,
    OurEngine,
    TransformersServe,
    chat,
)
from benchmarks.generation.leaks import leaks
from benchmarks.generation.models import SIZES, Sizes, make, prompts
from benchmarks.generation.turns import in_turns
from benchmarks.gpu import machine
from benchmarks.gpu.report import Greedy, Leaks, Streams
from benchmarks.gpu.server import served_on
from benchmarks.gpu.settings import Settings
from benchmarks.http_client import ask_all, post
from benchmarks.processes import Failed, served
from handler.devices import BATCH_TOKENS

BILLIONS = Sizes(3072, 8192, 28, 24, 8)  # of Llama 3.2 3B, 3.0 billion parameters with a vocabulary of BERT's
TINY = Sizes(64, 128, 2, 4, 2)
WARM, WAVES = 2, 6  # of streams, before a measurement and in it
ASKED = 16  # prompts whose greedy answers are held against `generate`'s
AT_ONCE = (1, 4, 16)


@dataclass(frozen=True)
class Generation:
    """One run."""

    settings: Settings
    place: Path  # for the models and archives
    tokenizer: Path
    say: Callable[[str], None]
    in_time: Callable[[str], bool]  # whether this may still begin

    def greedy(self) -> Iterator[Greedy]:
        """Whether answers in float32 are those of `generate`, one by one and many at once. Raises Failed."""
        self.say("generation: float32 beside generate")
        small, _ = self._model("small", TINY if self.settings.small else SIZES, torch.float32)
        ours, tokens = self._ours("float32"), 8 if self.settings.small else NEW
        chosen = prompts(ASKED)
        expected = generate(small, self.settings.device, chosen, tokens)
        with ExitStack() as stack:
            job = self._serve(stack, ours, small)
            for connections in AT_ONCE:
                if not self.in_time(f"greedy answers, {connections} at once"):
                    return
                found = answers(job.port, ours.wires[TASK].path, chosen, connections, tokens)
                equal = sum(one == other for one, other in zip(found, expected, strict=True))
                yield Greedy("float32", tokens, connections, len(chosen), equal)

    def streams(self) -> Iterator[Streams | Leaks | int]:
        """The model's parameters, both servers in turns, and then a thousand streams. Raises Failed."""
        settings = self.settings
        if not self.in_time("generation beside transformers serve"):
            return
        self.say("generation: making the large model")
        large, parameters = self._model(
            "large", TINY if settings.small else BILLIONS, getattr(torch, settings.dtype)
        )
        yield parameters
        ours = self._ours(settings.dtype)
        device = {"cuda": "cuda:0"}.get(settings.device, settings.device)
        theirs = TransformersServe(large, settings.dtype, device, BATCH_TOKENS[settings.device])
        rounds = 1 if settings.small else settings.rounds
        if theirs.environment:
            theirs.environment.ensure()
        with ExitStack() as stack:
            self.say("generation: starting TorchServe and transformers serve")
            jobs: list[tuple[Candidate, Job]] = [
                (each, self._serve(stack, each, large)) for each in (ours, theirs)
            ]
            for number, each, figures in in_turns(jobs, rounds, WARM, WAVES):
                rate, first = figures.tokens_per_second, 1e3 * statistics.median(figures.first)
                self.say(f"  [{number + 1}/{rounds}] {each.name}: {rate:.0f} tokens/s, first {first:.0f} ms")
                yield Streams(each.name, settings.dtype, number, rate, first)
        if not self.in_time("streams of which a third is left"):
            return
        with ExitStack() as stack:
            job = self._serve(stack, ours, large)
            before = machine.gpu_memory()
            found = leaks(ours, job, 40 if settings.small else settings.streams, self.say)
            yield Leaks(**found, gpu_before=before, gpu_after=machine.gpu_memory())

    def _model(self, name: str, sizes: Sizes, dtype: torch.dtype) -> tuple[Path, int]:
        place = self.place / f"generation-{name}"
        parameters = make(place, self.tokenizer, sizes, dtype, self.settings.device)
        if self.settings.device == "cuda":
            torch.cuda.empty_cache()
        return place, parameters

    def _ours(self, dtype: str) -> OurEngine:
        handler = {"cache_tokens": CACHE_TOKENS, "dtype": dtype}
        more = (f"deviceType={self.settings.device_type}", *self.settings.overrides)
        return OurEngine("transformers", handler, more)

    def _serve(self, stack: ExitStack, candidate: Candidate, model: Path) -> Job:
        """Starts it, and holds ours to the device that was asked for."""
        store = self.place / f"store-{model.name}"
        store.mkdir(exist_ok=True)
        candidate.prepare(Job(TASK, model, 0, store, store))
        job = stack.enter_context(served(candidate, TASK, model, store))
        if isinstance(candidate, OurEngine):
            said = served_on(job.scratch / "output.log", TASK, 1)
            if not said or not said[0].startswith(self.settings.device):
                raise Failed(f"a worker on {self.settings.device} was expected, it said {said}")
        return job


def answers(port: int, path: str, chosen: Sequence[str], connections: int, tokens: int) -> list[str]:
    """What a server answers to each, greedily. Raises Failed."""
    wanted = [post(path, chat(prompt, stream=False, max_tokens=tokens), port) for prompt in chosen]
    replies = asyncio.run(ask_all(port, wanted, connections))
    if wrong := [reply for reply in replies if reply.status != 200]:
        raise Failed(f"answered {wrong[0].status}: {wrong[0].body[:200]!r}")
    return [json.loads(reply.body)["choices"][0]["message"]["content"] for reply in replies]


def generate(place: Path, device: str, chosen: Sequence[str], tokens: int) -> list[str]:
    """What `generate` makes of each, greedily and alone."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(place)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(place).to(device).eval()
    found = []
    for prompt in chosen:
        messages = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        asked = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"].to(device)
        with torch.inference_mode():
            ids = model.generate(asked, max_new_tokens=tokens, do_sample=False)[0]
        found.append(tokenizer.decode(ids[asked.shape[1] :], skip_special_tokens=True))
    return found
