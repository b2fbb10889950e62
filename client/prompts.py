"""Encoded prompts: what a diffusion model is given in place of text, read from a safetensors body."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from client.errors import BadReply
from client.replies import Reply

SAFETENSORS = "application/x-safetensors"
# As safetensors names them; NumPy has no bfloat16, whose bits are the upper half of a float32's.
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "uint16", "I64": "int64"}


@dataclass(frozen=True)
class EncodedPrompts:
    """What a service answered, as torch tensors, or as NumPy arrays where there is no torch."""

    prompt_embeds: Any  # (prompts, length, layers x width); a list of (tokens, layers x width) if they differ
    text_ids: Any  # (prompts, length, 4) int64, or such a list
    tokens: tuple[int, ...]  # of each prompt, its template included
    truncated: tuple[bool, ...]  # whether a prompt was cut
    length: int | None = None  # of compact answers: the tokens that each has with its padding
    padding: Any = None  # (layers x width,): what a row of padding holds, where the service can say it

    def padded(self) -> EncodedPrompts:
        """A compact answer as it would have been without `compact`: padding before each prompt's own tokens.

        Raises:
            ValueError: the service did not say what its padding holds. It does where padding is on the left.
        """
        if self.length is None:
            return self
        if self.padding is None:
            raise ValueError("the service has not said what its padding holds; ask it without compact")
        embeds = [_filled(own, self.padding, self.length) for own in self.prompt_embeds]
        ids = [_filled(own, own[0] * 0, self.length) for own in self.text_ids]
        library = _library(self.padding)
        for own in ids:
            own[:, 3] = library.arange(self.length)
        return replace(
            self, prompt_embeds=library.stack(embeds), text_ids=library.stack(ids), length=None, padding=None
        )


def _filled(own: Any, row: Any, length: int) -> Any:
    """(length, width): the row as often as needed, then one's own."""
    missing = length - len(own)
    full = _library(own).empty((length, own.shape[1]), dtype=own.dtype)
    full[:missing], full[missing:] = row, own
    return full


def _library(array: Any) -> Any:
    """Torch or NumPy, whichever the array is of."""
    if not hasattr(array, "new_empty"):
        return _numpy()
    import torch  # noqa: PLC0415  it is there, or there would be no tensor

    return torch


def _numpy() -> Any:
    import numpy  # noqa: PLC0415  the rest of the client needs none

    return numpy


def read(reply: Reply, prompts: int) -> EncodedPrompts:
    """A service's answer to so many prompts. Raises BadReply."""
    try:
        arrays, said = parse(reply.body)
        found = [_part(arrays, name, prompts) for name in ("prompt_embeds", "text_ids")]
        padding = arrays["padding"][0] if "padding" in arrays else None
        tokens, truncated, length = tuple(said["tokens"]), tuple(said["truncated"]), said.get("length")
        return EncodedPrompts(found[0], found[1], tokens, truncated, length, padding)
    except (ValueError, KeyError, TypeError) as error:
        raise BadReply(reply.url, f"answered no encoded prompts: {type(error).__name__}") from error


def parse(body: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """A safetensors file's tensors, and its metadata, whose values are JSON. Raises ValueError."""
    size = int.from_bytes(body[:8], "little")
    if not 0 < size <= len(body) - 8:
        raise ValueError("the header is cut off")
    header: dict[str, Any] = json.loads(body[8 : 8 + size])
    said = {name: json.loads(value) for name, value in header.pop("__metadata__", {}).items()}
    data = memoryview(body)[8 + size :]
    return {name: _array(data, about) for name, about in header.items()}, said


def _array(data: memoryview, about: Mapping[str, Any]) -> Any:
    np = _numpy()
    begin, end = about["data_offsets"]
    raw = np.frombuffer(data[begin:end], DTYPES[about["dtype"]]).reshape(about["shape"])
    try:
        import torch  # noqa: PLC0415  a client need not have it
    except ImportError:
        return (raw.astype(np.uint32) << 16).view(np.float32) if about["dtype"] == "BF16" else raw.copy()
    tensor = torch.from_numpy(raw.copy())
    return tensor.view(torch.bfloat16) if about["dtype"] == "BF16" else tensor


def _part(arrays: Mapping[str, Any], name: str, prompts: int) -> Any:
    """The stacked tensor, or each prompt's own."""
    if name in arrays:
        return arrays[name]
    return [arrays[f"{name}.{index}"] for index in range(prompts)]
