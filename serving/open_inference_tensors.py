"""Tensors of a ModelInferRequest as raw bytes: little-endian numbers, and BYTES each with its length before it."""

from __future__ import annotations

import struct
from typing import Any

# Datatype -> the field of InferTensorContents that holds it, and how struct writes one of its values.
CONTENTS = {
    "BOOL": ("bool_contents", "?"),
    "INT8": ("int_contents", "b"),
    "INT16": ("int_contents", "h"),
    "INT32": ("int_contents", "i"),
    "INT64": ("int64_contents", "q"),
    "UINT8": ("uint_contents", "B"),
    "UINT16": ("uint_contents", "H"),
    "UINT32": ("uint_contents", "I"),
    "UINT64": ("uint64_contents", "Q"),
    "FP32": ("fp32_contents", "f"),
    "FP64": ("fp64_contents", "d"),
}


def raw_tensors(request: Any) -> list[bytes]:
    """Each input's bytes.

    Raises:
        ValueError: there is not one raw content for each input, or a value is not of its datatype.
    """
    if raw := list(request.raw_input_contents):
        if len(raw) != len(request.inputs):
            raise ValueError(f"raw_input_contents: {len(raw)} for {len(request.inputs)} inputs")
        return raw
    return [_packed(tensor) for tensor in request.inputs]


def _packed(tensor: Any) -> bytes:
    if tensor.datatype == "BYTES":
        return b"".join(struct.pack("<I", len(one)) + one for one in tensor.contents.bytes_contents)
    if tensor.datatype not in CONTENTS:
        raise ValueError(f"inputs: datatype: expected one of BYTES, {', '.join(CONTENTS)}")
    field, code = CONTENTS[tensor.datatype]
    values = getattr(tensor.contents, field)
    try:
        return struct.pack(f"<{len(values)}{code}", *values)
    except struct.error:
        raise ValueError(f"inputs: expected values of {tensor.datatype}") from None
