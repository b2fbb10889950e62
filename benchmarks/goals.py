"""What was aimed at, and whether a run got there."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.candidates.candidate import TASKS
from benchmarks.figures import Results, ratios, spread
from benchmarks.memory import HEAP

AT_64 = "mixed@64"
TIMES_OURS = (  # against whom at 64 connections, and how many times
    ("fastapi-batched", 2.0), ("torchserve-seed", 2.5), ("triton", 2.0), ("litserve", 2.0), ("infinity", 2.0),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """One goal: its words, its bound, what each round came to."""

    words: str
    bound: float
    at_least: bool
    values: list[float]
    unit: str = ""

    @property
    def measured(self) -> float:
        """The median."""
        return statistics.median(self.values)

    @property
    def verdict(self) -> str:
        """Met, or by how much it is missed."""
        if not self.values:
            return "not measured"
        if self.measured >= self.bound if self.at_least else self.measured <= self.bound:
            return "met"
        return f"missed by {abs(self.measured - self.bound):.2f}{self.unit}"

    def row(self) -> list[str]:
        """For a table."""
        sign = "≥" if self.at_least else "≤"
        return [self.words, f"{sign} {self.bound:g}{self.unit}", spread(self.values, 2), self.verdict]


def encoder(results: Results) -> Iterator[Outcome]:
    """Both tasks; what was not measured is told as that, unless it does not take part at all."""
    for task in TASKS:
        if results.standing(task, "ours") is None:
            continue
        ours = results.values(task, "ours", AT_64)
        share = ratios(ours, results.values(task, "ceiling", AT_64))
        yield Outcome(f"{task}: 64 connections, mixed, over the ceiling", 0.9, True, share)
        for name, times in TIMES_OURS:
            if results.standing(task, name) is not None:
                yield Outcome(
                    f"{task}: 64 connections, mixed, over {name}",
                    times,
                    True,
                    ratios(ours, results.values(task, name, AT_64)),
                )
        alone = results.values(task, "ours", "mixed@1", "p50")
        bare = results.values(task, "ceiling", "mixed@1", "p50")
        more = [alone[number] - bare[number] for number in sorted(alone) if number in bare]
        yield Outcome(f"{task}: one connection, median over the bare call's", 4, False, more, " ms")
        late = ratios(results.values(task, "ours", "open@80%", "p99"), alone)
        yield Outcome(f"{task}: p99 at 80 % of the knee over one connection's median", 4, False, late)


def overhead(results: Results) -> Iterator[Outcome]:
    """Against what a user gets who sets nothing."""
    ours, stock = (results.values("nothing", name, "empty@64") for name in ("ours", "stock"))
    yield Outcome(
        "a handler that does nothing, 64 connections, over stock TorchServe", 3, True, ratios(ours, stock)
    )


def gateway(results: Results) -> Iterator[Outcome]:
    """Against the same server without it."""
    for model in ("MiniLM", "sentiment"):
        for connections in (64, 16):
            cell = f"{model}@{connections}"
            with_, without = (results.values("text-classification", name, cell) for name in ("gateway", "direct"))
            words = f"{model}, {connections} connections: texts/s through the gateway over without it"
            yield Outcome(words, 0.95, True, ratios(with_, without))
    sent = results.extra["malformed"]
    failed = sum(count for status, count in sent["statuses"].items() if not 0 < int(status) < 500)
    words = f"{sent['requests']:,} malformed requests: answers of 500 and more, or none"
    yield Outcome(words, 0, False, [failed])


def memory(results: Results) -> Iterator[Outcome]:
    """Growth after the first tenth."""
    extra = results.extra
    words = f"worker memory, growth over {extra['requests']:,.0f} requests after the first tenth"
    yield Outcome(words, round(extra["allowed_bytes"] / 1e6, 1), False, [extra["growth_bytes"] / 1e6], " MB")


def prompt(results: Results) -> Iterator[Outcome]:
    """Against the seed's service, and against diffusers."""
    extra = results.extra
    rates, large, exact = (extra[name] for name in ("prompts_per_second", "large", "exactness"))
    over = [ours / seed for ours, seed in zip(rates["ours"], rates["seed"], strict=True)]
    yield Outcome("prompts/s at 16 connections, over the seed's service", 4, True, over)
    yield Outcome(
        "an answer of 15.7 MB to the client's tensor", 100, False, [one * 1e3 for one in large["ours"]], " ms"
    )
    each = len(large["ours"]) // len(large["seed"])  # of ours in a round, to one of the seed's
    rounds = [statistics.median(large["ours"][number * each :][:each]) for number in range(len(large["seed"]))]
    over = [seed / ours for ours, seed in zip(rounds, large["seed"], strict=True)]
    yield Outcome("the same, over the seed's JSON lists", 30, True, over)
    yield Outcome("float32, padding computed: the largest difference", 0, False, [exact["float32_computed"]])
    filled = [exact["float32_filled"] * 1e5]
    yield Outcome("float32, padding filled in: in 1e-5 of the largest value", 1, False, filled)
    short = [(1 - exact["bfloat16"]) * 1e4]
    yield Outcome("bfloat16: how far the least cosine of a prompt is from 1, in 1e-4", 1, False, short)


def generation(results: Results) -> Iterator[Outcome]:
    """Against the same engine's own server, and the seed's service."""
    extra = results.extra
    for engine, server in (("transformers", "transformers serve"), ("vllm", "vllm serve")):
        ours, theirs = extra["streams"][f"ours, {engine}"], extra["streams"][server]
        rates = [one / other for one, other in zip(ours["rates"], theirs["rates"], strict=True)]
        yield Outcome(f"16 streams, tokens/s over {server}", 0.95, True, rates)
        later = [1e3 * (one - other) for one, other in zip(ours["first"], theirs["first"], strict=True)]
        yield Outcome(f"median time to the first text over {server}'s", 15, False, later, " ms")
    answers = extra["answers"]
    over = [ours / seed for ours, seed in zip(answers["ours"], answers["seed"], strict=True)]
    yield Outcome("16 connections, tokens/s over the seed's service", 4, True, over)
    for name, found in extra["leaks"].items():
        for process, grown in found["growth"].items():
            if process == "java" and HEAP in found["growth"]:
                continue  # what a JVM has taken from the system says little of what it holds
            words = f"{name}: growth of {process} over {found['streams']:,} streams after the first tenth"
            yield Outcome(words, round(grown["allowed"] / 1e6, 1), False, [grown["bytes"] / 1e6], " MB")
