"""Token vectors to one vector: the poolings of sentence-transformers, and where a model's files name them.

`modules.json` lists the stages; `1_Pooling/config.json` names the poolings, whose vectors are
concatenated (sentence_transformers/sentence_transformer/modules/pooling.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from handler.errors import LoadError
from handler.loading import read_json


@dataclass(frozen=True)
class Pooling:
    """How a model's token vectors become one."""

    names: tuple[str, ...]
    normalize: bool


def cls(hidden: Tensor, mask: Tensor) -> Tensor:
    """The first token's vector."""
    first = mask.argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), first]


def maximum(hidden: Tensor, mask: Tensor) -> Tensor:
    """The largest value of each dimension."""
    return hidden.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(dim=1)


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean over tokens."""
    return _sum(hidden, mask) / _count(mask)


def mean_sqrt_len(hidden: Tensor, mask: Tensor) -> Tensor:
    """The sum over tokens, divided by the root of their number."""
    return _sum(hidden, mask) / _count(mask).sqrt()


def weighted_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean over tokens, each weighted by its place from 1, on whichever side the padding is."""
    weights = (mask.cumsum(dim=1) * mask).to(hidden.dtype)
    return torch.einsum("bsh,bs->bh", hidden, weights) / weights.sum(dim=1, keepdim=True)


def last_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """The last token's vector, on whichever side the padding is."""
    last = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


# In the order in which sentence-transformers concatenates those that are switches.
POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": cls,
    "max": maximum,
    "mean": mean,
    "mean_sqrt_len_tokens": mean_sqrt_len,
    "weightedmean": weighted_mean,
    "lasttoken": last_token,
}


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Pools and, where asked, normalises.

    Args:
        hidden: (rows, tokens, size) float.
        mask: (rows, tokens) int64, 1 for a real token.
        pooling: how.

    Returns:
        (rows, size x number of poolings) float.
    """
    pooled = torch.cat([POOLINGS[name](hidden, mask) for name in pooling.names], dim=-1)
    return torch.nn.functional.normalize(pooled, dim=-1) if pooling.normalize else pooled


def read_pooling(directory: Path, pooling: str | None, normalize: bool | None) -> Pooling:
    """What the configuration says, else the model's own files, else the mean.

    Raises:
        LoadError: the model has a stage that is not done here.
    """
    stages = _stages(directory)
    poolings = (pooling,) if pooling else _poolings(directory, stages)
    return Pooling(poolings, "Normalize" in stages.values() if normalize is None else normalize)


def _sum(hidden: Tensor, mask: Tensor) -> Tensor:
    return torch.einsum("bsh,bs->bh", hidden, mask.to(hidden.dtype))


def _count(mask: Tensor) -> Tensor:
    return mask.sum(dim=1, keepdim=True).clamp(min=1)


def _stages(directory: Path) -> dict[str, str]:
    """Path -> kind of stage, such as Pooling."""
    path = directory / "modules.json"
    if not path.is_file():
        return {}
    stages = {stage["path"]: stage["type"].rpartition(".")[2] for stage in json.loads(path.read_text())}
    unknown = sorted(set(stages.values()) - {"Transformer", "Pooling", "Normalize"})
    if unknown:
        raise LoadError(f"model/modules.json has a stage that is not supported: {', '.join(unknown)}")
    if read_json(directory / "config_sentence_transformers.json").get("default_prompt_name"):
        raise LoadError("model/config_sentence_transformers.json has a default prompt, which is not supported")
    return stages


def _poolings(directory: Path, stages: dict[str, str]) -> tuple[str, ...]:
    path = next((path for path, kind in stages.items() if kind == "Pooling"), None)
    if path is None:
        return ("mean",)
    config = read_json(directory / path / "config.json")
    chosen = _named(config) or _flagged(config)
    unknown = sorted(set(chosen) - set(POOLINGS))
    if unknown or not chosen:
        raise LoadError(
            f"model/{path}/config.json has a pooling that is not supported: {', '.join(unknown) or 'none'}"
        )
    return tuple(chosen)


def _named(config: dict[str, Any]) -> Sequence[str]:
    """As sentence-transformers 6 writes it: `pooling_mode` is a name, or a list of names in their order."""
    mode = config.get("pooling_mode", [])
    return [mode] if isinstance(mode, str) else list(mode)


def _flagged(config: dict[str, Any]) -> Sequence[str]:
    """As those before wrote it: a switch for each, `pooling_mode_mean_tokens: true`; unknown ones last."""
    prefix = "pooling_mode_"
    flags = [name.removeprefix(prefix) for name, on in config.items() if name.startswith(prefix) and on is True]
    names = {"cls_token": "cls", "max_tokens": "max", "mean_tokens": "mean", "weightedmean_tokens": "weightedmean"}
    chosen = {names.get(flag, flag) for flag in flags}
    return [*(name for name in POOLINGS if name in chosen), *sorted(chosen - set(POOLINGS))]
