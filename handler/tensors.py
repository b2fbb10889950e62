"""An answer that is tensors, and how it is written: as JSON, as safetensors, or as raw bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import safetensors.torch
import torch

from handler.errors import NotAcceptable
from handler.wire import JSON, RAW, Reply

SAFETENSORS = "application/x-safetensors"
# What orjson writes for a float32 has 16 characters at most, with the comma behind it.
JSON_NUMBER_BYTES = 17


@dataclass(frozen=True)
class Tensors:
    """Named tensors, the first of them the answer itself, and what is said beside them."""

    tensors: Mapping[str, Sequence[torch.Tensor]]  # name -> one for each input, on the CPU
    document: Mapping[str, Any]

    def grouped(self) -> dict[str, list[torch.Tensor] | torch.Tensor]:
        """Name -> all parts where they have one shape; else each by itself, as NAME.0, NAME.1 and so on."""
        found: dict[str, list[torch.Tensor] | torch.Tensor] = {}
        for name, parts in self.tensors.items():
            if len({part.shape for part in parts}) == 1:
                found[name] = list(parts)
            else:
                found.update({f"{name}.{index}": part for index, part in enumerate(parts)})
        return found


def column(values: Sequence[Any]) -> Any:
    """What is said of each input: an array, where all of it are numbers or all are bools; else the list as it is.

    Integers among floats are floats: what a column is does not hang on whether one of its numbers is whole.
    """
    kinds = {type(value) for value in values}
    for fitting, dtype in (({bool}, np.bool_), ({int}, np.int64), ({int, float}, np.float64)):
        if kinds and kinds <= fitting:
            return np.array(values, dtype)
    return list(values)


def columns(answer: Tensors) -> dict[str, Any]:
    """An answer as named arrays and lists; bfloat16 and float16 as float32, which holds each of their values."""
    arrays = {
        name: _array(torch.stack(parts) if isinstance(parts, list) else parts)
        for name, parts in answer.grouped().items()
    }
    return arrays | {name: column(said) for name, said in answer.document.items() if isinstance(said, list)}


def plain(value: Any) -> Any:
    """A value as JSON can say it: a tensor as nested lists."""
    return _array(value) if isinstance(value, torch.Tensor) else value


def _array(tensor: torch.Tensor) -> Any:
    half = tensor.is_floating_point() and tensor.itemsize < 4
    return (tensor.float() if half else tensor).numpy()


def write_json(answer: Tensors) -> Reply:
    """Nested lists. bfloat16 is written as float32, which holds each of its values."""
    numbers = {name: [_array(part) for part in parts] for name, parts in answer.tensors.items()}
    shapes = {
        name: [len(parts), *parts[0].shape] if isinstance(parts, list) else list(parts.shape)
        for name, parts in answer.grouped().items()
    }
    document = {**numbers, "shapes": shapes, **answer.document}
    return Reply(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY))


def write_safetensors(answer: Tensors) -> Reply:
    """One safetensors file; what is said beside the tensors is JSON in its metadata, key by key."""
    metadata = {name: orjson.dumps(value).decode() for name, value in answer.document.items()}
    tensors = {
        name: torch.stack(parts) if isinstance(parts, list) else parts.contiguous()
        for name, parts in answer.grouped().items()
    }
    return Reply(safetensors.torch.save(tensors, metadata), SAFETENSORS)


def write_raw(answer: Tensors) -> Reply:
    """The bytes of the first tensor; its shape and dtype are headers, as diffusers' remote clients read them.

    Raises:
        NotAcceptable: its parts have different shapes.
    """
    name = next(iter(answer.tensors))
    parts = answer.grouped().get(name)
    if not isinstance(parts, list):
        raise NotAcceptable(
            f"accept: {RAW} holds one shape, and these prompts' tokens differ; {SAFETENSORS} holds all"
        )
    tensor = torch.stack(parts)
    headers = {"shape": json.dumps(list(tensor.shape)), "dtype": str(tensor.dtype).removeprefix("torch.")}
    return Reply(tensor.view(torch.uint8).numpy().tobytes(), RAW, headers=headers)


# Media type -> what writes it; the first is what a client gets who does not say.
WRITERS: dict[str, Callable[[Tensors], Reply]] = {
    JSON: write_json,
    SAFETENSORS: write_safetensors,
    RAW: write_raw,
}


def size_limit(media_type: str, numbers: int, width: int) -> int:
    """The most bytes that so many numbers can take, each of `width` bytes where it is not JSON."""
    return numbers * (JSON_NUMBER_BYTES if media_type == JSON else width)
