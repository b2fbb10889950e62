"""Linear layers whose weights lie as a CPU's kernels read them.

torch leaves them as they are in the file, and its matrix multiplication puts a weight in order anew in every call:
with the few rows that a short text or a step of generation has, that takes longer than to multiply. oneDNN
takes weights that are in order already. Its kernels are made for a number of rows each, 0.3 to 0.9 ms and half a
megabyte that it never gives back, so rows go through in a few sizes, and all kernels are made while loading.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Set
from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional

SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # rows that there are kernels for
FEW = 64  # rows that are filled up to the next size; of more, a second kernel takes what is over
FILLED = 1.1  # or they are filled up to no more than this
CPUS = ("AVX2", "AVX512")  # as torch calls them, for which it was measured
LEAST = 1 << 17  # numbers in a weight: of smaller ones a call costs as much as before, or more
CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"  # entries that oneDNN keeps; it reads this when it makes the first
ENTRIES = 2  # for one kernel: its own and that of the multiplication in it

Multiply = Callable[[torch.Tensor], torch.Tensor]  # (rows, any) -> (rows, width)
KERNEL = torch.ops.mkldnn._linear_pointwise.default  # what torch.compile makes of linear layers


class PrepackedLinear(nn.Linear):
    """One such layer, for inference: `weight` is oneDNN's, opaque to everything else."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)."""
        rows = input.reshape(-1, self.in_features)
        out = through_sizes(rows, self.out_features, self._multiply)
        return out.view(*input.shape[:-1], self.out_features)

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = KERNEL(rows, self.weight, self.bias, "none", [], "")
        return out


def through_sizes(rows: torch.Tensor, width: int, multiply: Multiply) -> torch.Tensor:
    """(rows, any) -> (rows, width), by what multiplies as many rows as there are kernels for."""
    sizes = in_sizes(len(rows))
    if len(sizes) == 1:
        return _filled(rows, *sizes, multiply)
    out, start = rows.new_empty(len(rows), width), 0
    for size in sizes:
        out[start : start + size] = _filled(rows[start : start + size], size, multiply)
        start += size
    return out


def _filled(rows: torch.Tensor, size: int, multiply: Multiply) -> torch.Tensor:
    missing = size - len(rows)
    return multiply(functional.pad(rows, (0, 0, 0, missing)))[: len(rows)] if missing else multiply(rows)


def prepack(model: nn.Module, threads: Set[int]) -> int:
    """Has a model's larger linear layers prepacked, in place, and makes their kernels; how many there are.

    Only where it was measured. A weight that other modules share, as embeddings do with an output layer, stays as
    it was for them.

    Args:
        model: on its device.
        threads: numbers of threads that it will be run with; each has kernels of its own.
    """
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear and _is_worth_it(layer.weight)]
    kinds = {(*layer.weight.shape, layer.bias is None, layer.weight.dtype): layer for layer in layers}
    make_room(len(kinds) * len(threads))
    with torch.inference_mode():
        for layer in layers:
            packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
            layer.weight = nn.Parameter(packed, requires_grad=False)
            layer.__class__ = PrepackedLinear
        before = torch.get_num_threads()
        for count in threads:
            torch.set_num_threads(count)
            for layer in kinds.values():
                for size in SIZES:
                    layer(torch.zeros(size, layer.in_features, dtype=layer.weight.dtype))
        torch.set_num_threads(before)
    return len(layers)


def make_room(kinds: int) -> None:
    """Has oneDNN keep all kernels of so many kinds of layers, beside those that it was to keep."""
    if CAPACITY in os.environ:
        os.environ[CAPACITY] = str(int(os.environ[CAPACITY]) + ENTRIES * kinds * len(SIZES))


def _is_worth_it(weight: torch.Tensor) -> bool:
    at_home = weight.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in CPUS
    return at_home and weight.numel() >= LEAST and has_kernels(weight.dtype)


def has_kernels(dtype: torch.dtype) -> bool:
    """Whether this CPU has some for such weights."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32


@lru_cache(4096)
def in_sizes(rows: int) -> tuple[int, ...]:
    """The sizes in which so many rows go through, the last of which may be larger than what is over."""
    sizes = list[int]()
    while rows > 0:
        place = bisect_left(SIZES, rows)
        if place < len(SIZES) and (rows <= FEW or SIZES[place] <= FILLED * rows):
            return (*sizes, SIZES[place])
        sizes.append(SIZES[bisect_right(SIZES, rows) - 1])
        rows -= sizes[-1]
    return tuple(sizes)
