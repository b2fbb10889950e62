"""The three parts: is it right, how fast is it, how soon does one text come back."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.gpu import bare as bare_model
from benchmarks.gpu import load, texts
from benchmarks.gpu.bare import Bare, BareRate, Vectors
from benchmarks.gpu.models import MAX_TOKENS, Deployment
from benchmarks.gpu.report import BareSpeed, Correctness, Latency, ServedSpeed
from benchmarks.gpu.server import Server
from benchmarks.gpu.settings import CORRECTNESS, COSINE, LATENCY, LENGTHS, TOLERANCE, Settings
from benchmarks.processes import Failed

REQUESTS_PER_CONNECTION = 2  # sent in turn, so that requests that wait together are never the same
BARE_SECONDS = 2.0  # of each budget
BARE_TOKENS = 500_000  # in one pass of the bare model; a longer one would only take longer
LATENCY_TEXTS = 64


@dataclass(frozen=True)
class Traffic:
    """The texts of one measurement."""

    length: str
    texts: tuple[str, ...]
    tokens: tuple[int, ...]  # of each

    @property
    def mean_tokens(self) -> float:
        """Of a text."""
        return sum(self.tokens) / len(self.tokens)

    def load(self, server: Server, model: str, settings: Settings, *, alone: bool = False) -> load.Load:
        """These texts as requests, dealt to the connections; `alone` is one text on one connection."""
        size = 1 if alone else settings.texts_per_request
        requests, tokens = texts.groups(self.texts, size), [sum(g) for g in _groups(self.tokens, size)]
        count = 1 if alone else settings.connections
        return load.Load(
            server.host_port,
            model,
            [requests[index::count] for index in range(count)],
            [tokens[index::count] for index in range(count)],
            settings.seconds,
            settings.warm_up,
        )


def traffic(bare: Bare, length: str, settings: Settings) -> Traffic:
    """The texts of this length, enough for every connection."""
    words, bounds = texts.vocabulary(bare.tokenizer), LENGTHS.get(length, LATENCY)
    count = settings.connections * REQUESTS_PER_CONNECTION * settings.texts_per_request
    made = texts.make(words, count if length in LENGTHS else LATENCY_TEXTS, bounds, settings.seed)
    return Traffic(length, tuple(made), tuple(texts.count_tokens(bare.tokenizer, made, MAX_TOKENS)))


# -- correctness


def references(directory: Path, settings: Settings) -> tuple[list[str], list[int], Vectors]:
    """Texts, their numbers of tokens, and what transformers answers in float32 on the CPU, each text alone."""
    with bare_model.loaded(directory, "float32", "cpu") as bare:
        words = texts.vocabulary(bare.tokenizer)
        chosen = texts.make(words, settings.correctness_texts, CORRECTNESS, settings.seed)
        ids = bare.encode(chosen)
        return chosen, [len(row) for row in ids], np.concatenate([bare.vectors([row], 1) for row in ids])


def correctness(
    server: Server, deployment: Deployment, reference: tuple[list[str], list[int], Vectors]
) -> Correctness:
    """Asks the server for the same texts: in two requests, so that its answers do not hang on one batch."""
    chosen, tokens, expected = reference
    half = len(chosen) // 2
    found = np.concatenate([ask(server, deployment.name, part) for part in (chosen[:half], chosen[half:])])
    return compare(deployment, tokens, found, expected)


def compare(deployment: Deployment, tokens: Sequence[int], found: Vectors, expected: Vectors) -> Correctness:
    """Judges vectors: float32 by its largest difference, what is shorter by its least cosine.

    Both mean something only where different texts have different vectors, so that is judged too.
    """
    whole = found.shape == expected.shape
    difference = float(np.abs(found - expected).max()) if whole else float("inf")
    cosine = float(cosines(found, expected).min()) if whole else -1.0
    apart = separation(expected)
    tolerance = TOLERANCE.get(deployment.dtype)
    if tolerance is not None:
        bound, near = f"difference ≤ {tolerance:g}", difference <= tolerance
    else:
        bound, near = f"cosine ≥ {COSINE:g}", cosine >= COSINE
    told_apart = apart > 10 * TOLERANCE["float32"]
    return Correctness(
        deployment.model,
        deployment.dtype,
        len(tokens),
        sum(tokens),
        difference,
        cosine,
        apart,
        bound,
        near and told_apart and mixed_up(found, expected) == 0,
    )


def cosines(left: Vectors, right: Vectors) -> Vectors:
    """The cosine of each pair of rows."""
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    result: Vectors = (left * right).sum(axis=1) / lengths
    return result


def mixed_up(found: Vectors, expected: Vectors) -> int:
    """How many vectors are nearer to another text's than to their own: of long texts a cosine may not tell."""
    nearest = [int(np.linalg.norm(expected - vector, axis=1).argmin()) for vector in found]
    return sum(place != index for index, place in enumerate(nearest))


def separation(vectors: Vectors) -> float:
    """The least, over all pairs of rows, of their largest difference."""
    pairs = [
        float(np.abs(vectors[index + 1 :] - vectors[index]).max(axis=1).min()) for index in range(len(vectors) - 1)
    ]
    return min(pairs, default=float("inf"))


def ask(server: Server, model: str, chosen: Sequence[str]) -> Vectors:
    """The vectors of these texts, over HTTP. Raises Failed."""
    connection = http.client.HTTPConnection(*server.host_port, timeout=300)
    try:
        body = json.dumps({"texts": list(chosen)}).encode()
        connection.request("POST", f"/predictions/{model}", body, {"content-type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise Failed(f"{model} answered {response.status}: {answer[:300]!r}")
        return np.asarray(json.loads(answer)["embeddings"], np.float32)
    finally:
        connection.close()


# -- speed


def bare_speed(bare: Bare, made: Traffic, model: str, settings: Settings) -> BareSpeed:
    """The model by itself on these texts."""
    some = made.texts[: max(1, int(BARE_TOKENS / made.mean_tokens))]
    rate: BareRate = bare.rate(some, settings.budgets, min(BARE_SECONDS, settings.seconds))
    return BareSpeed(
        model,
        settings.dtype,
        made.length,
        made.mean_tokens,
        rate.budget,
        rate.tokens_per_second,
        rate.with_tokenizer,
        rate.by_budget,
    )


def served_speed(
    server: Server, deployment: Deployment, made: Traffic, bare: BareSpeed, settings: Settings, *, processes: int
) -> ServedSpeed:
    """The same texts through the server."""
    seen, shares = _drive(server, deployment, made.load(server, deployment.name, settings), processes)
    return ServedSpeed(
        deployment.model,
        deployment.dtype,
        made.length,
        deployment.workers,
        seen.tokens_per_second,
        seen.texts / seen.seconds,
        seen.tokens_per_second / bare.with_tokenizer,
        seen.requests,
        seen.errors,
        seen.error,
        1000 * seen.percentile(0.5),
        1000 * seen.percentile(0.99),
        shares,
    )


def latency(
    server: Server, deployment: Deployment, made: Traffic, bare_seconds: float, settings: Settings
) -> Latency:
    """One text at a time on one connection, beside the model by itself."""
    seen, shares = _drive(server, deployment, made.load(server, deployment.name, settings, alone=True), 1)
    return Latency(
        deployment.model,
        deployment.dtype,
        made.mean_tokens,
        1000 * seen.percentile(0.5),
        1000 * seen.percentile(0.9),
        1000 * seen.percentile(0.99),
        1000 * bare_seconds,
        seen.requests,
        seen.errors,
        shares,
    )


def _drive(
    server: Server, deployment: Deployment, wanted: load.Load, processes: int
) -> tuple[load.Seen, dict[str, float]]:
    """Puts the load on, and says what the workers did meanwhile."""
    before, started = server.steps(deployment.name), time.perf_counter()
    seen = load.run(wanted, processes, server.temp)
    taken = time.perf_counter() - started
    # A batch's metrics are lines of the worker's output, which the frontend reads after the answer.
    time.sleep(0.5)
    after = server.steps(deployment.name)
    spent = {step: after[step] - before[step] for step in after}
    return seen, shares(spent, deployment.workers * (taken - load.START))


def shares(spent: Mapping[str, float], whole: float) -> dict[str, float]:
    """Each step's share of the workers' time; `waiting` is the rest, which the frontend and the clients take."""
    parts = {step: seconds / whole for step, seconds in spent.items()}
    return {**parts, "waiting": max(0.0, 1 - sum(parts.values()))}


def _groups(values: Sequence[int], size: int) -> list[Sequence[int]]:
    return [values[start : start + size] for start in range(0, len(values), size)]
