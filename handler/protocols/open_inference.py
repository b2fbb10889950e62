"""KServe's second protocol, the Open Inference Protocol: tensors by name, over REST, and over TorchServe's gRPC.

A tensor that has the name of the task's field holds texts; `input_ids`, `attention_mask` and `token_type_ids` hold
what a client has tokenized itself; any other is a parameter of that name, one value or a list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from handler.errors import BadRequest, InvalidRequest
from handler.protocols import native
from handler.protocols.gathering import check_keys, read_mapping
from handler.protocols.protocol import About, Done, Model, Protocol, Teller
from handler.protocols.v2_tensors import Tensor, as_metadata, read_tensors, write_tensor
from handler.request import Call, TokenIds
from handler.rules import label
from handler.wire import JSON, OPEN_INFERENCE_GRPC, RAW, Message, Reply

IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
HEADER = "Inference-Header-Content-Length"
NUMBER_BYTES = 4  # of an output's: the protocol's JSON has no half types, so these go out as FP32
# Triton's about its own queue, and MLServer's about its own codecs: nothing here changes by them.
HINTS = ("priority", "timeout", "content_type")
SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")  # Triton's, of models that remember
PLATFORM = "transformers_torchserve"


@dataclass(frozen=True)
class Wanted:
    """What an answer has to look like."""

    id: str | None
    outputs: Mapping[str, bool] | None  # name -> whether in binary; None: all
    binary: bool  # of those that are not named
    grpc: bool  # TorchServe's own: it reads JSON, and writes it


def read(message: Message, document: Any, model: Model) -> Call:
    """A message to a call.

    Raises:
        BadRequest: it is not JSON, or its binary data are not what the document says.
        InvalidRequest: a tensor is missing, or is not what the model reads.
    """
    head, rest = _split(message)
    said = native.read_json(head, "inputs") if document is None else document
    check_keys(said, ("id", "inputs", "outputs", "parameters", "model_name", "model_version"))
    over_grpc = message.transport == OPEN_INFERENCE_GRPC
    tensors = read_tensors(said.get("inputs"), rest, over_grpc)
    parameters = _parameters(said.get("parameters"))
    binary = parameters.pop("binary_data_output", False) is True
    wanted = Wanted(_id(said.get("id")), _read_outputs(said.get("outputs"), binary), binary, over_grpc)
    by_name = {tensor.name: tensor for tensor in tensors}
    if len(by_name) < len(tensors):
        raise InvalidRequest("inputs: expected each tensor once")
    name, inputs = _inputs(by_name, model)
    lists = {column.name for column in model.inputs if column.shape == (-1,)}
    for tensor in by_name.values():
        if tensor.name in parameters:
            raise InvalidRequest(f"inputs: {label(tensor.name)} is also in parameters")
        alone = len(tensor.values) == 1 and tensor.name not in lists
        parameters[tensor.name] = tensor.values[0] if alone else tensor.values
    media_type = RAW if all(wanted.outputs.values() if wanted.outputs else [binary]) else JSON
    return Call(name, inputs, False, parameters, media_type, NUMBER_BYTES, wanted)


def write(task: Teller, done: Done, about: About) -> Any:
    """The outputs that were asked for, or all; in binary behind the document where that was asked for."""
    wanted: Wanted = done.call.wanted
    columns = task.columns(done.request, done.results)
    asked = dict.fromkeys(columns, wanted.binary) if wanted.outputs is None else wanted.outputs
    if unknown := [name for name in asked if name not in columns]:
        raise InvalidRequest(f"outputs: {label(unknown[0])} is none of {', '.join(columns)}")
    written = [write_tensor(name, columns[name], binary, not wanted.grpc) for name, binary in asked.items()]
    document = {
        "model_name": about.model_name,
        "model_version": about.model_version,
        **({} if wanted.id is None else {"id": wanted.id}),
        "outputs": [tensor for tensor, _ in written],
    }
    if not any(asked.values()):
        return document
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    body = b"".join([head, *(content for _, content in written)])
    return Reply(body, RAW, headers={HEADER: str(len(head))})


def metadata(model: Model) -> dict[str, Any]:
    """What `GET v2/models/NAME` answers."""
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": PLATFORM,
        "inputs": as_metadata(model.inputs),
        "outputs": as_metadata(model.outputs),
    }


def _split(message: Message) -> tuple[bytes | bytearray, bytes]:
    """The document, and what is behind it."""
    if not message.json_length:
        return message.body, b""
    length = message.json_length
    if not (length.isascii() and length.isdigit() and len(length) < 10 and int(length) <= len(message.body)):
        raise BadRequest(f"{HEADER}: expected at most the body's {len(message.body)} bytes")
    return message.body[: int(length)], bytes(message.body[int(length) :])


def _parameters(found: object) -> dict[str, Any]:
    parameters = read_mapping("parameters", found)
    if any(name in parameters for name in SEQUENCE):
        raise InvalidRequest("parameters: sequences are not offered, for each request stands by itself")
    return {name: value for name, value in parameters.items() if name not in HINTS}


def _id(found: object) -> str | None:
    if found is not None and not isinstance(found, str):
        raise InvalidRequest("id: expected a string")
    return found


def _read_outputs(outputs: object, binary: bool) -> dict[str, bool] | None:
    """Name -> whether it is wanted in binary."""
    if outputs is None or outputs == []:
        return None
    if not isinstance(outputs, list) or not all(
        isinstance(one, dict) and isinstance(one.get("name"), str) for one in outputs
    ):
        raise InvalidRequest("outputs: expected a list of objects with a name")
    wanted = {}
    for one in outputs:
        parameters = read_mapping("outputs.parameters", one.get("parameters"))
        if parameters.get("classification"):
            raise InvalidRequest("outputs: classification is not offered; ask for label and score")
        wanted[one["name"]] = parameters.get("binary_data", binary) is True
    return wanted


def _inputs(tensors: dict[str, Tensor], model: Model) -> tuple[str, Sequence[object]]:
    """The tensors that hold inputs, taken out of all: how they are called, and texts or tokens."""
    text = next((name for name in model.names if name in tensors), None)
    if text is None and IDS not in tensors:
        known = ", ".join(column.name for column in model.inputs)
        raise InvalidRequest(f"inputs: {model.field} is missing; this model reads {known}")
    if text is None:
        return IDS, _tokens(tensors.pop(IDS), tensors.pop(MASK, None), tensors.pop(TYPES, None))
    if IDS in tensors:
        raise InvalidRequest(f"inputs: expected either {text} or {IDS}")
    tensor = tensors.pop(text)
    if tensor.datatype != "BYTES":
        raise InvalidRequest(f"{text}: expected BYTES")
    return text, tensor.values


def _tokens(ids: Tensor, mask: Tensor | None, types: Tensor | None) -> list[TokenIds]:
    """Each row's own tokens, without the padding that the mask tells of."""
    for tensor in (ids, mask, types):
        if tensor is not None and (tensor.datatype not in ("INT32", "INT64") or tensor.shape != ids.shape):
            raise InvalidRequest(f"{tensor.name}: expected INT64 or INT32 in the shape of {IDS}")
    if len(ids.shape) not in (1, 2):
        raise InvalidRequest(f"{IDS}: expected the shape [inputs, tokens]")
    width = ids.shape[-1]
    masks = [1] * len(ids.values) if mask is None else mask.values
    if not set(masks) <= {0, 1}:
        raise InvalidRequest(f"{MASK}: expected 0 and 1")
    rows = []
    for start in range(0, len(ids.values), width or 1):
        kept = [place for place in range(start, start + width) if masks[place]]
        if kept and kept[-1] - kept[0] >= len(kept):
            raise InvalidRequest(f"{MASK}[{start // width}]: expected ones without a gap")
        found = slice(kept[0], kept[-1] + 1) if kept else slice(0)
        rows.append(TokenIds(tuple(ids.values[found]), tuple(types.values[found]) if types else None))
    return rows


OPEN_INFERENCE = Protocol("open-inference", read, write)
METADATA = Protocol(
    "open-inference metadata",
    lambda message, document, model: Call("", (), True, {}, wanted=metadata(model)),
    lambda task, done, about: done.call.wanted,
    describes=True,
)
