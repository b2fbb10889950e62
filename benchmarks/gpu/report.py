"""What a run found, as JSON for programs and as Markdown for people; written anew after every measurement."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.figures import spread
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.settings import PUBLISHED, PUBLISHED_MODEL, Settings


@dataclass(frozen=True)
class Correctness:
    """The server's vectors against transformers in float32 on the CPU."""

    model: str
    dtype: str
    texts: int
    tokens: int
    max_difference: float
    min_cosine: float
    separation: (
        float  # the least that two different texts' vectors differ by, so that a difference means something
    )
    bound: str
    passed: bool


@dataclass(frozen=True)
class BareSpeed:
    """The model without a server."""

    model: str
    dtype: str
    length: str
    mean_tokens: float  # of a text
    budget: int
    tokens_per_second: float
    with_tokenizer: float
    by_budget: Mapping[int, float]


@dataclass(frozen=True)
class ServedSpeed:
    """The model behind TorchServe, over HTTP."""

    model: str
    dtype: str
    length: str
    workers: int
    tokens_per_second: float
    texts_per_second: float
    of_bare: float  # share of the bare model's rate with its tokenizer
    requests: int
    errors: int
    error: str
    median_ms: float
    p99_ms: float
    shares: Mapping[str, float]  # of the workers' time: the handler's steps, and waiting for the frontend


@dataclass(frozen=True)
class Latency:
    """One text on one connection."""

    model: str
    dtype: str
    mean_tokens: float
    median_ms: float
    p90_ms: float
    p99_ms: float
    bare_median_ms: float
    requests: int
    errors: int
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Greedy:
    """Answers of transformers' engine beside `generate`, greedy."""

    dtype: str
    tokens: int  # of an answer
    connections: int
    prompts: int
    equal: int  # of them, token for token


@dataclass(frozen=True)
class Streams:
    """Sixteen clients that read streams."""

    server: str
    dtype: str
    round: int
    tokens_per_second: float
    first_ms: float  # to the first text, median


@dataclass(frozen=True)
class Leaks:
    """Streams of which one in three was left midway."""

    streams: int
    samples: Mapping[str, Sequence[int]]  # process -> bytes, after equally many streams each
    growth: Mapping[str, Mapping[str, float]]  # process -> bytes, allowed
    held: Mapping[str, float]  # the worker's own gauges, when nobody asks any more
    gpu_before: int  # bytes
    gpu_after: int

    @property
    def passed(self) -> bool:
        """Whether the worker did not grow, and its engine holds nothing."""
        grown = self.growth["worker"]
        return grown["bytes"] <= grown["allowed"] and self.held["HandlerCacheUsed"] == 0


@dataclass
class Generated:
    """What was found of text generation."""

    parameters: int = 0
    greedy: list[Greedy] = field(default_factory=list)
    streams: list[Streams] = field(default_factory=list)
    leaks: list[Leaks] = field(default_factory=list)

    def note(self, found: Greedy | Streams | Leaks | int) -> None:
        """One more thing."""
        match found:
            case Greedy():
                self.greedy.append(found)
            case Streams():
                self.streams.append(found)
            case Leaks():
                self.leaks.append(found)
            case parameters:
                self.parameters = parameters

    @property
    def passed(self) -> bool:
        """Whether all that was looked at is right; a rate is never wrong."""
        equal = all(each.equal == each.prompts for each in self.greedy)
        return equal and all(each.passed for each in self.leaks)

    def by_server(self) -> dict[str, list[Streams]]:
        """Server -> its rounds, in order; ours is the first."""
        found: dict[str, list[Streams]] = {}
        for each in sorted(self.streams, key=lambda one: (one.round, one.server)):
            found.setdefault(each.server, []).append(each)
        return found


@dataclass
class Report:
    """Filled while a run goes on."""

    machine: Machine
    settings: Settings
    parameters: dict[str, int] = field(default_factory=dict)
    correctness: list[Correctness] = field(default_factory=list)
    bare: list[BareSpeed] = field(default_factory=list)
    served: list[ServedSpeed] = field(default_factory=list)
    latency: list[Latency] = field(default_factory=list)
    generation: Generated = field(default_factory=Generated)
    workers_on: list[str] = field(default_factory=list)  # what the servers said of their workers
    gpu_processes: list[str] = field(default_factory=list)  # nvidia-smi's "pid, memory"; a container may hide them
    left_out: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether something was measured, every vector was right and every request was answered."""
        driven: list[ServedSpeed | Latency] = [*self.served, *self.latency]
        answered = all(each.requests and not each.errors for each in driven)
        right = all(each.passed for each in self.correctness) and self.generation.passed
        return bool(self.correctness or driven or self.generation.greedy) and answered and right

    def document(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {"passed": self.passed, "published_tokens_per_second": PUBLISHED, **finite(asdict(self))}

    def write(self, folder: Path) -> None:
        """gpu.json and gpu.md; a reader never sees half a file."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (
            ("gpu.json", json.dumps(self.document(), indent=1)),
            ("gpu.md", self.markdown()),
        ):
            fresh = folder / f".{name}"
            fresh.write_text(content + "\n")
            os.replace(fresh, folder / name)

    def markdown(self) -> str:
        """The tables."""
        machine, settings = self.machine, self.settings
        where = f"{machine.gpu}, driver {machine.driver}, CUDA {machine.cuda}" if machine.gpu else "no GPU"
        lines = [
            f"# Served on {settings.device}{', models made small' if settings.small else ''}",
            "",
            f"{where}; {machine.processor}, {machine.cores} cores, load {machine.load:.1f}; "
            f"Python {machine.python}, torch {machine.torch}, transformers {machine.transformers}, "
            f"TorchServe {machine.torchserve}, {machine.java}.",
            f"Workers computed on: {', '.join(sorted(set(self.workers_on))) or 'none started'}.",
        ]
        for table in (self._correctness(), self._speed(), self._latency(), self._greedy(), self._streams()):
            rows = list(table)
            lines += ["", *rows] if len(rows) > 2 else []
        lines += ["", *self._leaks()] if self.generation.leaks else []
        lines += ["", *(f"Left out: {reason}" for reason in self.left_out)] if self.left_out else []
        return "\n".join(lines)

    def _correctness(self) -> Iterator[str]:
        yield "| correctness | parameters | dtype | texts | max difference | min cosine | bound | |"
        yield "| --- | ---: | --- | ---: | ---: | ---: | --- | --- |"
        for each in self.correctness:
            yield (
                f"| {each.model} | {self.parameters[each.model] / 1e6:,.1f} M | {each.dtype} | {each.texts} "
                f"| {each.max_difference:.2e} | {each.min_cosine:.6f} | {each.bound} "
                f"| {'passed' if each.passed else 'FAILED'} |"
            )

    def _speed(self) -> Iterator[str]:
        yield "| tokens/s | dtype | texts | workers | served | of bare | of published | where time goes |"
        yield "| --- | --- | --- | ---: | ---: | ---: | ---: | --- |"
        for bare in self.bare:
            texts = f"{bare.length}, {bare.mean_tokens:.0f} tokens"
            start = f"| {bare.model} | {bare.dtype} | {texts} "
            best = f"best of {len(bare.by_budget)} budgets: {bare.budget}"
            yield f"{start}| bare | {bare.tokens_per_second:,.0f} | | {self._published(bare)} | {best} |"
            yield f"{start}| bare, tokenizer | {bare.with_tokenizer:,.0f} | 1 | | |"
            for each in self.served:
                if (each.model, each.length) == (bare.model, bare.length):
                    errors = f"; {each.errors} ERRORS: {each.error}" if each.errors else ""
                    yield (
                        f"{start}| {each.workers} | {each.tokens_per_second:,.0f} | {each.of_bare:.2f} "
                        f"| {self._published(each)} | {_told(each.shares)}{errors} |"
                    )

    def _published(self, each: BareSpeed | ServedSpeed) -> str:
        """Its share of the published height, where that is comparable."""
        comparable = each.model == PUBLISHED_MODEL and not self.settings.small and self.settings.device == "cuda"
        return f"{each.tokens_per_second / PUBLISHED:.2f}" if comparable else ""

    def _latency(self) -> Iterator[str]:
        yield "| one text, one connection | dtype | tokens | median | p90 | p99 | bare | where time goes |"
        yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |"
        for each in self.latency:
            yield (
                f"| {each.model} | {each.dtype} | {each.mean_tokens:.0f} | {each.median_ms:.1f} ms "
                f"| {each.p90_ms:.1f} ms | {each.p99_ms:.1f} ms | {each.bare_median_ms:.1f} ms "
                f"| {_told(each.shares)} |"
            )

    def _greedy(self) -> Iterator[str]:
        yield "| greedy answers equal to `generate`'s | tokens | at once | equal |"
        yield "| --- | ---: | ---: | ---: |"
        for each in self.generation.greedy:
            yield f"| {each.dtype} | {each.tokens} | {each.connections} | {each.equal} of {each.prompts} |"

    def _streams(self) -> Iterator[str]:
        yield "| 16 streams | parameters | dtype | tokens/s | ms to the first text, median | rounds |"
        yield "| --- | ---: | --- | ---: | ---: | ---: |"
        servers = self.generation.by_server()
        for server, rounds in servers.items():
            rates, firsts = [each.tokens_per_second for each in rounds], [each.first_ms for each in rounds]
            yield (
                f"| {server} | {self.generation.parameters / 1e9:.2f} G | {rounds[0].dtype} "
                f"| {spread(rates, 0)} | {spread(firsts, 0)} | {len(rounds)} |"
            )
        if len(servers) == 2:
            pairs = list(zip(*servers.values(), strict=False))
            shares = [ours.tokens_per_second / theirs.tokens_per_second for ours, theirs in pairs]
            later = [ours.first_ms - theirs.first_ms for ours, theirs in pairs]
            yield f"| ours beside it, round by round | | | {spread(shares)} times | {spread(later, 0)} later | |"

    def _leaks(self) -> Iterator[str]:
        for each in self.generation.leaks:
            grown = ", ".join(
                f"{name} {found['bytes'] / 1e6:+.1f} MB of {found['allowed'] / 1e6:.1f} allowed"
                for name, found in each.growth.items()
            )
            gpu = f"{each.gpu_before / 1e6:,.0f} MB before, {each.gpu_after / 1e6:,.0f} MB after"
            yield (
                f"{each.streams:,} streams, one in three left midway: after the first tenth {grown}; "
                f"the GPU's memory {gpu}; the engine's cache is then {each.held['HandlerCacheUsed']:.0%} in use."
            )


def finite(value: Any) -> Any:
    """The same with null for NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _told(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
