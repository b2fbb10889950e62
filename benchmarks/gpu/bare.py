"""The model by itself in this process: the answers to hold the server's against, and the rate to measure it by."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    tokens_per_second: float  # padding, copying, model, pooling, and the vectors back on the CPU
    with_tokenizer: float  # the same from texts
    by_budget: dict[int, float]


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
        batches = plan([len(row) for row in ids], budget)
        with torch.inference_mode():
            pooled = torch.cat([self._forward([ids[index] for index in batch]) for batch in batches]).cpu()
        result = np.empty(pooled.shape, np.float32)
        result[[index for batch in batches for index in batch]] = pooled.numpy()
        return result

    def rate(self, texts: Sequence[str], budgets: Sequence[int], seconds: float) -> BareRate:
        """Measures every budget, and the best of them with the tokenizer as well."""
        ids = self.encode(texts)
        by_budget: dict[int, float] = {}
        for budget in budgets:
            try:
                by_budget[budget] = self._timed(lambda budget=budget: self.vectors(ids, budget), ids, seconds)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
        best = max(by_budget, key=lambda budget: by_budget[budget])
        whole = self._timed(lambda: self.vectors(self.encode(texts), best), ids, seconds)
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

    def _timed(self, work: Any, ids: Sequence[Sequence[int]], seconds: float) -> float:
        """Tokens/s of a pass over all texts; the copy back at its end waits for the device."""
        work()
        passes, started = 0, time.perf_counter()
        while (taken := time.perf_counter() - started) < seconds or not passes:
            work()
            passes += 1
        return passes * sum(map(len, ids)) / taken

    def _forward(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        longest = max(map(len, rows))
        ids = np.zeros((len(rows), longest), np.int64)  # BERT's padding token is 0
        mask = np.zeros((len(rows), longest), np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        on_device = self._to_device(mask)
        # With no padding there is nothing to mask, and without a mask attention has its fastest kernel.
        padded = on_device if len(rows) > 1 and len(rows[-1]) < longest else None
        hidden = self.model(input_ids=self._to_device(ids), attention_mask=padded).last_hidden_state.float()
        return torch.einsum("bsh,bs->bh", hidden, on_device.float()) / on_device.sum(dim=1, keepdim=True)

    def _to_device(self, array: npt.NDArray[np.int64]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor


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
