"""What makes a model faster by configuration: what each option gains, and what it costs in the answers.

The handler's own pipeline, without a server, in a process for each option; they take turns.
"""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.candidates.candidate import CLASSIFY, EMBED
from benchmarks.figures import Results
from benchmarks.models import model_for
from benchmarks.processes import Failed
from benchmarks.texts import text_set
from handler import pipeline, wings
from handler.wire import Message

BASE = "float32"
OPTIONS: Mapping[str, Mapping[str, object]] = {
    BASE: {},
    "not prepacked": {"prepack": False},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "int8": {"quantize": "int8"},
    "compile": {"compile": True},
    "bfloat16, compile": {"dtype": "bfloat16", "compile": True},
    "attention: eager": {"attention": "eager"},
}
BATCH = 64
SINGLES = 48


@dataclass(frozen=True)
class Option:
    """A process that has one pipeline, as a worker has it: what torch.compile keeps is the process's."""

    name: str
    process: ProcessPoolExecutor

    def run(self, work: Callable[..., Any], *given: object) -> Any:
        """What the work returns, there. Raises Failed where the process has been killed."""
        try:
            return self.process.submit(work, *given).result()
        except BrokenProcessPool as err:
            raise Failed(f"{self.name}: its process ended by itself") from err

    def ask(self, question: Callable[[pipeline.BatchPipeline, Sequence[str]], Any], texts: Sequence[str]) -> Any:
        """The question's answer, from there."""
        return self.run(_asked, question, texts)


@contextmanager
def process() -> Iterator[ProcessPoolExecutor]:
    """One that ends with the `with` block, whatever it is doing."""
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        pid = executor.submit(os.getpid).result()
        try:
            yield executor
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


_loaded: list[pipeline.BatchPipeline] = []  # of this process: one


def _asked(question: Callable[[pipeline.BatchPipeline, Sequence[str]], Any], texts: Sequence[str]) -> Any:
    return question(_loaded[0], texts)


def load(task: str, name: str, home: Path) -> float:
    """Loads this process's pipeline as a worker does; the seconds until it would be READY."""
    start = time.perf_counter()
    _loaded.append(wings.load(home, {"handler": {"task": task, **OPTIONS[name]}}, "bench"))
    return time.perf_counter() - start


@contextmanager
def processes(task: str, found: dict[str, dict[str, Any]], say: Callable[[str], None]) -> Iterator[list[Option]]:
    """A process for each option, loaded one after the other."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        (home / "model").symlink_to(model_for(task))
        options = []
        for name in OPTIONS:
            option = Option(name, stack.enter_context(process()))
            found[name] = {"load_seconds": option.run(load, task, name, home), "rates": [], "singles": []}
            say(f"{task}, {name}: loaded after {found[name]['load_seconds']:.0f} s")
            options.append(option)
        yield options


def measure(rounds: int, results: Results, say: Callable[[str], None]) -> None:
    """Both tasks; gain within each round, loss once."""
    texts = text_set("mixed")
    for task in (EMBED, CLASSIFY):
        found = results.extra[task] = dict[str, dict[str, Any]]()
        with processes(task, found, say) as options:
            right = options[0].ask(answers, texts)
            for option in options:
                found[option.name] |= loss(task, right, option.ask(answers, texts))
            for number in range(rounds):
                for option in options[number % len(options) :] + options[: number % len(options)]:
                    figures = found[option.name]
                    figures["rates"].append(option.ask(rate, texts))
                    figures["singles"].append(option.ask(single, texts[:SINGLES]))
                    say(
                        f"[{number + 1}/{rounds}] {task}, {option.name}: {figures['rates'][-1]:.1f} texts/s, "
                        f"one text {figures['singles'][-1]:.1f} ms"
                    )


def answers(pipe: pipeline.BatchPipeline, texts: Sequence[str]) -> np.ndarray:
    """Embeddings or probabilities, (texts, n) float32, in batches as TorchServe hands them out."""
    rows = []
    for start in range(0, len(texts), BATCH):
        messages = [Message(text.encode(), "text/plain") for text in texts[start : start + BATCH]]
        rows += [vector(slot) for slot in pipe.answer(messages)]
    return np.array(rows)


def vector(slot: Any) -> np.ndarray:
    """The numbers of one answer; an error in its place is raised."""
    if isinstance(slot, Exception):
        raise slot
    return np.asarray(slot["probabilities"] if "probabilities" in slot else slot["embeddings"][0])


def rate(pipe: pipeline.BatchPipeline, texts: Sequence[str]) -> float:
    """Texts a second in batches of 64."""
    start = time.perf_counter()
    answers(pipe, texts)
    return len(texts) / (time.perf_counter() - start)


def single(pipe: pipeline.BatchPipeline, texts: Sequence[str]) -> float:
    """Median milliseconds of one text by itself."""
    times = []
    for text in texts:
        start = time.perf_counter()
        answers(pipe, [text])
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def loss(task: str, right: np.ndarray, answered: np.ndarray) -> dict[str, Any]:
    """How far the answers are from float32's."""
    if task == CLASSIFY:
        changed = int((right.argmax(1) != answered.argmax(1)).sum())
        return {"off": float(np.abs(right - answered).max()), "changed": changed}
    cosines = (right * answered).sum(1) / (np.linalg.norm(right, axis=1) * np.linalg.norm(answered, axis=1))
    return {"cosine": float(cosines.min()), "median_cosine": float(np.median(cosines))}
