"""Tensors of the Open Inference Protocol, as JSON and as the binary extension has them.

https://github.com/kserve/open-inference-protocol and Triton's extension_binary_data.md: numbers are little-endian
and in rows; an element of BYTES is its length in four bytes, and then itself.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson

from handler.errors import BadRequest, InvalidRequest, NonFiniteOutput
from handler.request import Column
from handler.rules import label

Values: TypeAlias = list[Any]  # of a tensor, one after the other

DTYPES = {
    **{"BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8"},
    **{"INT8": "i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8"},
    **{"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"},
}
DATATYPES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
KINDS = {"b": (bool,), "u": (int,), "i": (int,), "f": (int, float)}  # of NumPy -> of JSON
MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class Tensor:
    """One tensor of a request."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Values


def read_tensors(inputs: object, rest: bytes, encoded: bool) -> list[Tensor]:
    """A request's tensors.

    Args:
        inputs: the document's.
        rest: the bytes behind the JSON.
        encoded: whether BYTES come in base64, as TorchServe's gRPC hands them on.

    Raises:
        BadRequest: the binary data are not what the document says.
        InvalidRequest: a tensor is not as the protocol has it.
    """
    if not isinstance(inputs, list) or not all(isinstance(one, dict) for one in inputs):
        raise InvalidRequest("inputs: expected a list of tensors")
    tensors = []
    for index, found in enumerate(inputs):
        where = f"inputs[{index}]"
        name, datatype, shape = found.get("name"), found.get("datatype"), found.get("shape")
        if not isinstance(name, str):
            raise InvalidRequest(f"{where}.name: expected a string")
        if datatype != "BYTES" and not (isinstance(datatype, str) and datatype in DTYPES):
            raise InvalidRequest(f"{where}.datatype: expected one of BYTES, {', '.join(DTYPES)}")
        count = _count(shape, where)
        if (size := _binary_size(found, where)) is not None:
            if size > len(rest):
                raise BadRequest(f"{where}: {size} bytes of binary data, of which {len(rest)} came")
            values, rest = _from_bytes(rest[:size], datatype, where), rest[size:]
        else:
            values = _from_json(found.get("data"), datatype, where, encoded)
        if encoded and count and not values:  # OpenInferenceProtocolImpl.java reads only `contents`
            raise InvalidRequest(f"{where}: no values came; TorchServe's gRPC drops raw_input_contents")
        if len(values) != count:
            raise InvalidRequest(f"{where}: {len(values)} values for a shape of {count}")
        tensors.append(Tensor(name, datatype, tuple(shape), values))
    if rest:
        raise BadRequest(f"{len(rest)} bytes of binary data that no input has")
    return tensors


def write_tensor(name: str, column: Any, binary: bool, quoted: bool = True) -> tuple[dict[str, Any], bytes]:
    """A tensor for an answer's document, and the bytes that go behind it.

    Args:
        name: of the tensor.
        column: a NumPy array, or a list of strings or of what else JSON can say.
        binary: whether the values go behind the document.
        quoted: whether what is no string is written as the string that is its JSON; else it stands as it is, for
            TorchServe's gRPC, which writes each element of BYTES as JSON (GRPCJob.java:268).

    Raises:
        NonFiniteOutput: it holds a NaN or an infinity, which JSON has not.
    """
    if isinstance(column, np.ndarray):
        if column.dtype.kind == "f" and not np.isfinite(column).all():
            raise NonFiniteOutput("the model answered NaN or infinity")
        tensor = {"name": name, "datatype": DATATYPES[column.dtype], "shape": list(column.shape)}
        flat = np.ascontiguousarray(column).reshape(-1)
        content = flat.astype(flat.dtype.newbyteorder("<")).tobytes() if binary else b""
        return (_binary(tensor, content), content) if binary else ({**tensor, "data": flat}, b"")
    tensor = {"name": name, "datatype": "BYTES", "shape": [len(column)]}
    if not binary:
        return {**tensor, "data": [_text(value) for value in column] if quoted else column}, b""
    content = b"".join(struct.pack("<I", len(one)) + one for one in (_text(value).encode() for value in column))
    return _binary(tensor, content), content


def _binary(tensor: Mapping[str, Any], content: bytes) -> dict[str, Any]:
    return {**tensor, "parameters": {"binary_data_size": len(content)}}


def _text(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode()


def _count(shape: object, where: str) -> int:
    if (
        not isinstance(shape, list)
        or len(shape) > MOST_DIMENSIONS
        or not all(type(size) is int and size >= 0 for size in shape)
    ):
        raise InvalidRequest(f"{where}.shape: expected a list of whole numbers, at most {MOST_DIMENSIONS}")
    return math.prod(shape)


def _binary_size(found: Mapping[str, Any], where: str) -> int | None:
    parameters = found.get("parameters") or {}
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is not None and not (type(size) is int and size >= 0):
        raise InvalidRequest(f"{where}.parameters.binary_data_size: expected a number of bytes")
    return size


def _from_json(data: object, datatype: str, where: str, encoded: bool) -> Values:
    if not isinstance(data, list):
        raise InvalidRequest(f"{where}.data: expected a list")
    values: list[Any] = data
    for _ in range(MOST_DIMENSIONS):  # nested as the shape is, or flat
        if not values or not all(isinstance(value, list) for value in values):
            break
        values = [one for value in values for one in value]
    if datatype == "BYTES":
        if not all(isinstance(value, str) for value in values):
            raise InvalidRequest(f"{where}.data: expected strings")
        return [_decoded(value, where) for value in values] if encoded else values
    return _numbers(values, np.dtype(DTYPES[datatype]), datatype, where)


def _numbers(values: Values, dtype: npt.DTypeLike, datatype: str, where: str) -> Values:
    """Numbers of JSON, if the tensor's datatype holds them."""
    kind = np.dtype(dtype).kind
    fits = all(type(value) in KINDS[kind] for value in values)
    if fits and kind in "iu":
        limits = np.iinfo(dtype)
        fits = all(limits.min <= value <= limits.max for value in values)
    if not fits:
        raise InvalidRequest(f"{where}.data: expected values of {datatype}")
    return values


def _from_bytes(content: bytes, datatype: str, where: str) -> Values:
    if datatype == "BYTES":
        return [_utf8(one, where) for one in _elements(content, where)]
    dtype = np.dtype(DTYPES[datatype])
    if len(content) % dtype.itemsize:
        raise BadRequest(f"{where}: {len(content)} bytes are no whole number of {label(datatype)}")
    return list(np.frombuffer(content, dtype).tolist())


def _elements(content: bytes, where: str) -> Iterator[bytes]:
    view, place = memoryview(content), 0
    while place < len(view):
        end = place + 4
        if end <= len(view):
            end += struct.unpack_from("<I", view, place)[0]
        if place + 4 > len(view) or end > len(view):
            raise BadRequest(f"{where}: the binary data end within an element")
        yield bytes(view[place + 4 : end])
        place = end


def _decoded(value: str, where: str) -> str:
    try:
        return _utf8(base64.b64decode(value, validate=True), where)
    except binascii.Error:
        raise InvalidRequest(f"{where}.data: expected base64") from None


def _utf8(value: bytes, where: str) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(f"{where}: expected UTF-8") from None


def as_metadata(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Columns as metadata has them."""
    return [{"name": one.name, "datatype": one.datatype, "shape": list(one.shape)} for one in columns]
