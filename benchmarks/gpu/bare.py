"""The model by itself in this process: the answers to hold the server's against, and the rate to measure it by."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModel, AutoTokenizer

from benchmarks.gpu.models import MAX_TOKENS
from handler.batch import plan

Vectors = npt.NDArray[np.float32]  # (texts, size)


@dataclass(frozen=True)
class BareRate:
    """What the model does without a server, tokens/s of real tokens."""

    budget: int  # padded tokens at once, of the budgets the best
    tokens_per_second: float  # from padded rectangles to vectors on the CPU
    with_tokenizer: float  # from texts
    by_budget: dict[int, float]


@dataclass(frozen=True)
class Rectangle:
    """Texts of about the same length, padded."""

    places: tuple[int, ...]  # of its rows among all texts
    ids: npt.NDArray[np.int64]  # (rows, longest)
    mask: npt.NDArray[np.int64]  # the same, 1 for a real token


class Bare:
    """A model on a device; use `loaded`, which takes it off again."""

    def __init__(self, directory: Path, dtype: str, device: str) -> None:
        """Loads a model with the attention that transformers chooses by itself, as the handler does."""
        self.device = torch.device(device)
        self.tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        model = AutoModel.from_pretrained(directory, dtype=getattr(torch, dtype), local_files_only=True)
        self.model = model.to(self.device).eval()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text."""
        ids: list[list[int]] = self.tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]
        return ids

    def vectors(self, ids: Sequence[Sequence[int]], budget: int) -> Vectors:
        """The mean of each text's token vectors, in float32: neighbours in length together, one copy back."""
        rectangles = pad(ids, budget)
        pooled = self._compute(rectangles)
        result = np.empty(pooled.shape, np.float32)
        result[[place for rectangle in rectangles for place in rectangle.places]] = pooled
        return result

    def rate(self, texts: Sequence[str], budgets: Sequence[int], seconds: float) -> BareRate:
        """Measures every budget, and the best of them with the tokenizer as well."""
        ids = self.encode(texts)
        tokens = sum(map(len, ids))
        by_budget: dict[int, float] = {}
        for budget in budgets:
            rectangles = pad(ids, budget)
            try:
                by_budget[budget] = tokens * _per_second(partial(self._compute, rectangles), seconds)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
        if not by_budget:
            raise ValueError("the bare model fits into the device's memory with none of the budgets")
        best = max(by_budget, key=lambda budget: by_budget[budget])
        whole = tokens * _per_second(lambda: self.vectors(self.encode(texts), best), seconds)
        return BareRate(best, by_budget[best], whole, by_budget)

    def latency(self, texts: Sequence[str], seconds: float) -> float:
        """Median seconds from one text to its vector on the CPU."""
        times: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or not times:
            started = time.perf_counter()
            self.vectors(self.encode([texts[len(times) % len(texts)]]), MAX_TOKENS)
            times.append(time.perf_counter() - started)
        return float(np.median(times[len(times) // 5 :]))  # the first fifth warms up

    def _compute(self, rectangles: Sequence[Rectangle]) -> Vectors:
        """Through the model; the copy back at the end is the only wait for the device that is asked for here."""
        with torch.inference_mode():
            pooled: Vectors = torch.cat([self._forward(rectangle) for rectangle in rectangles]).cpu().numpy()
        return pooled

    def _forward(self, rectangle: Rectangle) -> torch.Tensor:
        mask = self._to_device(rectangle.mask)
        # With no padding there is nothing to mask, and without a mask attention has its fastest kernel.
        needed = None if rectangle.mask.all() else mask
        output = self.model(input_ids=self._to_device(rectangle.ids), attention_mask=needed)
        hidden = output.last_hidden_state.float()
        return torch.einsum("bsh,bs->bh", hidden, mask.float()) / mask.sum(dim=1, keepdim=True)

    def _to_device(self, array: npt.NDArray[np.int64]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor


def pad(ids: Sequence[Sequence[int]], budget: int) -> list[Rectangle]:
    """Neighbours in length together, in rectangles of at most `budget` tokens."""
    rectangles = []
    for places in plan([len(row) for row in ids], budget, launch=budget):
        longest = max(len(ids[place]) for place in places)
        rectangle = Rectangle(
            tuple(places),
            np.zeros((len(places), longest), np.int64),  # BERT's padding token is 0
            np.zeros((len(places), longest), np.int64),
        )
        for index, place in enumerate(places):
            rectangle.ids[index, : len(ids[place])] = ids[place]
            rectangle.mask[index, : len(ids[place])] = 1
        rectangles.append(rectangle)
    return rectangles


@contextmanager
def loaded(directory: Path, dtype: str, device: str) -> Iterator[Bare]:
    """The model for the length of a `with` block; the device's memory is free again afterwards."""
    bare = Bare(directory, dtype, device)
    try:
        yield bare
    finally:
        bare.model = None  # the caller's variable outlives the block
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()


def _per_second(work: Callable[[], object], seconds: float) -> float:
    """How often a second `work` can be done, after once to warm up; it must end with the device idle."""
    work()
    times, started = 0, time.perf_counter()
    while (taken := time.perf_counter() - started) < seconds or not times:
        work()
        times += 1
    return times / taken
