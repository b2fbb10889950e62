"""vLLM's executor on a CPU: the model in the engine's own process, with kernels that are made while loading.

Those of its linear layers are for one number of rows each, and a step has any number of them. So here they go
through in the sizes of handler/linear.py, for the same reason. The engine's process imports this, by its path.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm import _custom_ops as ops
from vllm._custom_ops import CPUDNNLGEMMHandler
from vllm.config import CompilationMode
from vllm.model_executor.layers import utils
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from handler.linear import SIZES, make_room, through_sizes

KINDS = 16  # of layers, by their shapes, that have room among the kernels; a language model has some five


class OneProcess(UniProcExecutor):  # type: ignore[misc]
    """Computes where the engine is."""

    def _init_executor(self) -> None:
        if self.vllm_config.compilation_config.mode == CompilationMode.NONE:  # else torch.compile reads the layers
            multiply_in_sizes()
        super()._init_executor()


def multiply_in_sizes() -> None:
    """Has oneDNN's layers take their rows in few sizes, and all that are loaded from here on their kernels."""
    make_room(KINDS)
    multiply, choose, kinds = ops.onednn_mm, utils.dispatch_cpu_unquantized_gemm, set[tuple[object, ...]]()

    def in_sizes(layer: CPUDNNLGEMMHandler, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """(..., k) -> (..., n)."""
        if (kind := (layer.k, layer.n, inputs.dtype, bias is None)) not in kinds:
            kinds.add(kind)
            for size in SIZES:
                multiply(layer, inputs.new_zeros(size, layer.k), bias)
        rows = inputs.reshape(-1, layer.k)
        out = through_sizes(rows, layer.n, lambda some: multiply(layer, some, bias))
        return out.view(*inputs.shape[:-1], layer.n)

    def choose_and_try(layer: Any, remove_weight: bool) -> None:
        weight: torch.Tensor = layer.weight
        choose(layer, remove_weight)
        if hasattr(layer, "cpu_linear") and not weight.is_meta:
            layer.cpu_linear(weight.new_zeros(1, weight.shape[1]), layer.weight, getattr(layer, "bias", None))

    ops.onednn_mm, utils.dispatch_cpu_unquantized_gemm = in_sizes, choose_and_try
