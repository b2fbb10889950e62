"""Requests of each protocol as TorchServe hands them to a worker, and good ones for every task."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.support import frames

TEXTS = ("a wonderful story", "the film was not good at all", "a wonderful story")
MASKED = ("a [MASK] story", "the film was [MASK]", "a [MASK] story")
CONTEXT = "My name is Sarah and I live in London"

# Task -> the field that holds its inputs, three of them, and what it needs beside.
GOOD: Mapping[str, tuple[str, Sequence[str], Mapping[str, Any]]] = {
    "text-classification": ("text", TEXTS, {}),
    "feature-extraction": ("text", TEXTS, {}),
    "text-ranking": ("text", TEXTS, {"query": "was the film good"}),
    "zero-shot-classification": ("text", TEXTS, {"candidate_labels": ["film", "battery"]}),
    "token-classification": ("text", TEXTS, {}),
    "question-answering": ("question", ("who?", "where?", "who?"), {"context": CONTEXT}),
    "fill-mask": ("text", MASKED, {}),
}


def native(task: str, **more: Any) -> frames.Request:
    field, inputs, beside = GOOD[task]
    return frames.ask({field + "s": list(inputs), **beside, **more})


def hugging_face(task: str) -> frames.Request:
    field, inputs, beside = GOOD[task]
    if task == "question-answering":
        return frames.ask({"inputs": [{field: text, **beside} for text in inputs]})
    if task == "text-ranking":
        return frames.ask({"inputs": {"texts": list(inputs), **beside}})
    return frames.ask({"inputs": list(inputs), "parameters": beside})


def instances(task: str) -> frames.Request:
    field, inputs, beside = GOOD[task]
    return frames.ask({"instances": [{field: text, **beside} for text in inputs]})


def tensors(task: str, **more: Any) -> dict[str, Any]:
    """A request of the Open Inference Protocol."""
    field, inputs, beside = GOOD[task]
    told = [text_tensor(field, inputs)]
    told += [text_tensor(name, [said] if isinstance(said, str) else said) for name, said in beside.items()]
    return {"id": "7", "inputs": told, **more}


def text_tensor(name: str, values: Sequence[str]) -> dict[str, Any]:
    return {"name": name, "datatype": "BYTES", "shape": [len(values)], "data": list(values)}


def number_tensor(name: str, values: np.ndarray) -> dict[str, Any]:
    return {"name": name, "datatype": "INT64", "shape": list(values.shape), "data": values.tolist()}


def tokenized(tokenizer: Any, texts: Sequence[str], *pairs: Sequence[str]) -> list[dict[str, Any]]:
    """What a client sends that tokenizes texts itself."""
    encoded = tokenizer(list(texts), *pairs, padding=True, return_tensors="np")
    return [number_tensor(name, values) for name, values in encoded.items()]


def binary(document: Mapping[str, Any], **headers: str) -> frames.Request:
    """The same request with the binary tensor extension, as tritonclient's HTTP client sends it."""
    inputs, content = [], b""
    for tensor in document["inputs"]:
        if tensor["datatype"] == "BYTES":
            part = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in tensor["data"])
        else:
            part = np.array(tensor["data"], "<i8").tobytes()
        content += part
        told = {name: tensor[name] for name in ("name", "datatype", "shape")}
        inputs.append({**told, "parameters": {"binary_data_size": len(part)}})
    head = json.dumps({**document, "inputs": inputs}).encode()
    sent = {"Inference-Header-Content-Length": str(len(head)), **headers}
    return frames.post(head + content, "application/octet-stream", **sent)


def over_open_inference_grpc(document: object) -> frames.Request:
    """As OpenInferenceProtocolImpl.java hands it on: no header, and a body with a type."""
    return frames.Request([("body", "application/json", json.dumps(document).encode())])


def over_grpc(**parameters: bytes) -> frames.Request:
    """As InferenceImpl.java hands it on: the client's own names, and nothing else."""
    return frames.Request([(name, "", value) for name, value in parameters.items()])
