"""Which protocol a request speaks: what it came over, then its path, then its JSON's keys; else the native one.

| what tells | protocol |
| --- | --- |
| TorchServe's Open Inference gRPC, or the header `Inference-Header-Content-Length` | open-inference |
| the path `v2/infer`, `v2/metadata`, `v1/embeddings`, `v1/models(/NAME)` or `v1/hub` | that one, any other 404 |
| the key `instances` | kserve-v1, Vertex AI |
| the key `inputs`, a list of objects with a `datatype` | open-inference |
| the key `inputs` | hugging-face |
| anything else | native |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from handler.errors import NotOffered
from handler.protocols.hugging_face import HUB, HUGGING_FACE
from handler.protocols.kserve_v1 import KSERVE_V1
from handler.protocols.native import NATIVE, is_json
from handler.protocols.open_inference import METADATA, OPEN_INFERENCE
from handler.protocols.openai_embeddings import MODELS, OPENAI_EMBEDDINGS, OPENAI_MODELS
from handler.protocols.protocol import Model, Protocol
from handler.wire import OPEN_INFERENCE_GRPC, Message

PATHS: Mapping[str, Protocol] = {
    "v2/infer": OPEN_INFERENCE,
    "v2/metadata": METADATA,
    "v1/embeddings": OPENAI_EMBEDDINGS,
    MODELS: OPENAI_MODELS,
    "v1/hub": HUB,
}
KEYS: Mapping[str, Callable[[Any], Protocol]] = {
    "instances": lambda value: KSERVE_V1,
    "inputs": lambda value: OPEN_INFERENCE if _are_tensors(value) else HUGGING_FACE,
}
BEGINNING = 1000  # bytes of a body over its limit in which its protocol's key is looked for
TOO_LONG = re.compile(rb'"(%s)"\s*:' % b"|".join(key.encode() for key in KEYS))  # in a text its quotes are escaped
WORDS = {key: key.encode() for key in KEYS}  # a body that has none of them is not read here
PROTOCOLS = (NATIVE, HUGGING_FACE, KSERVE_V1, OPEN_INFERENCE, OPENAI_EMBEDDINGS)


@dataclass(frozen=True)
class Spoken:
    """A message, and the protocol that it speaks."""

    protocol: Protocol
    message: Message
    document: Any = None  # its JSON, where that was read to find out


def find(message: Message, model: Model) -> Spoken:
    """The protocol that a message speaks. Whether it speaks it well is for the protocol to say.

    Raises:
        NotOffered: its path is none of ours.
    """
    if message.transport == OPEN_INFERENCE_GRPC or message.json_length:
        return Spoken(OPEN_INFERENCE, message)
    if path := message.path.strip("/"):
        path = MODELS if path.startswith(f"{MODELS}/") else path
        if path not in PATHS:
            raise NotOffered(f"there is no such path; expected {', '.join(PATHS)}, or none")
        return Spoken(PATHS[path], message)
    # A task's own field may be called as another protocol's key.
    keys = [key for key, word in WORDS.items() if word in message.body and key not in model.names]
    if keys and len(message.body) > model.max_body_bytes and is_json(message):  # only refused, in its shape
        begun = TOO_LONG.search(message.body[:BEGINNING])
        if begun and (key := begun[1].decode()) in keys:
            return Spoken(KEYS[key](None), message)
    elif keys and is_json(message):
        try:
            document = orjson.loads(message.body)
        except orjson.JSONDecodeError:
            document = None
        for key in keys:
            if isinstance(document, dict) and key in document and model.field not in document:
                return Spoken(KEYS[key](document[key]), message, document)
    return Spoken(NATIVE, message)


def _are_tensors(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(one, dict) and "datatype" in one for one in value)
