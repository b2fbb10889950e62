"""Micro-batches side by side on the cores of a CPU.

A forward that is spread over cores waits at the end of every operator for the slowest of them, and TorchServe's
frontend needs the cores too. Micro-batches that have a core each wait for nobody: on two cores 110 texts/s where
the spread forward did 100, and 86 where it did 12 to 45 while another process was computing (all-MiniLM-L6-v2,
texts of 4 to 120 words). A lone micro-batch is spread over all cores, because nothing else shortens it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

from handler.devices import lane_threads

R = TypeVar("R")


class Lanes:
    """The threads of a worker, shared out.

    Args:
        device: what the lanes compute on.
        threads: CPU threads of this worker, which a lone micro-batch has to itself.
        count: micro-batches that run at once.
    """

    def __init__(self, device: torch.device, threads: int, count: int) -> None:
        self.count = count
        self._threads = threads
        self._share = lane_threads(threads, count)
        self._device = device
        self._pool = ThreadPoolExecutor(count, "lane", self._enter) if count > 1 else None

    def run(self, work: Callable[[], None], pieces: int) -> None:
        """Calls `work` in as many lanes as there are pieces of it, and returns when all have returned."""
        if self._pool is None or pieces < 2:
            work()
            return
        with self._shared():
            lanes = [self._pool.submit(work) for _ in range(min(self.count, pieces))]
            wait(lanes)
        for lane in lanes:
            lane.result()

    def one(self, work: Callable[[], R]) -> R:
        """What the work returns in one lane, while nothing runs in the others."""
        if self._pool is None:
            return work()
        with self._shared():
            return self._pool.submit(work).result()

    @contextmanager
    def _shared(self) -> Iterator[None]:
        torch.set_num_threads(self._share)  # OpenMP's count is the calling thread's, but MKL's is the process's
        try:
            yield
        finally:
            torch.set_num_threads(self._threads)

    def _enter(self) -> None:
        torch.set_num_threads(self._share)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # the current device is the thread's
