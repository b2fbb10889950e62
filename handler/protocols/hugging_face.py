"""Hugging Face's: `{"inputs": …, "parameters": …}`, answered as transformers' pipeline of the task answers.

`inputs` is a text, a list of texts, or objects with the native protocol's fields: `{"question": …, "context": …}`.
The Hub's own API has two answers in another shape, which `huggingface_hub.InferenceClient` reads: at the path
`v1/hub`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from handler.errors import InvalidRequest
from handler.protocols import native
from handler.protocols.gathering import check_keys, gather, read_mapping
from handler.protocols.protocol import About, Done, Model, Protocol, Teller
from handler.request import Call
from handler.rules import label
from handler.wire import Message

# What stands beside `inputs` where vectors are asked for, as the Hub's API and Text Embeddings Inference have it.
EMBEDDING_KEYS = (
    *("normalize", "dimensions", "truncate"),
    *("prompt_name", "truncation_direction", "encoding_format"),
)
# The Hub's `options`, about its own queue, cache and machines: nothing here changes by them.
HINTS = ("wait_for_model", "use_cache", "use_gpu")
ONLY = {"truncation_direction": "right", "encoding_format": "float"}  # what they may say here


def read(message: Message, document: Any, model: Model) -> Call:
    """A message to a call. Raises InvalidRequest."""
    beside = EMBEDDING_KEYS if model.embeds else ()
    check_keys(document, ("inputs", "parameters", "options", *beside))
    check_keys(read_mapping("options", document.get("options")), HINTS)
    inputs = document["inputs"]
    parameters = _parameters(document, beside)
    if isinstance(inputs, dict):
        if both := inputs.keys() & parameters.keys():
            raise InvalidRequest(f"parameters: {label(min(both))} is also in inputs")
        return native.call({**inputs, **parameters}, model.field)
    if isinstance(inputs, list):
        return gather("inputs", inputs, parameters, model)
    return replace(gather("inputs", [inputs], parameters, model), single=True)


def _parameters(document: Mapping[str, Any], beside: tuple[str, ...]) -> Mapping[str, Any]:
    """The parameters, with what stands beside `inputs` under the task's own names."""
    parameters = read_mapping("parameters", document.get("parameters"))
    said = {name: document[name] for name in beside if document.get(name) is not None}
    if not said:
        return parameters
    if "prompt_name" in said:
        raise InvalidRequest(
            "prompt_name: prompts are not put before texts here; send texts that begin with theirs"
        )
    for name, only in ONLY.items():
        if str(said.pop(name, only)).lower() != only:
            raise InvalidRequest(f"{name}: expected {only}")
    if "truncate" in said:
        said["truncation"] = said.pop("truncate")
    if both := said.keys() & parameters.keys():
        raise InvalidRequest(f"{min(both)}: is also in parameters")
    return {**parameters, **said}


def write(task: Teller, done: Done, about: About) -> Any:
    """What the pipeline answers; the native document, where there is no such pipeline."""
    said = task.pipeline(done.request, done.results, done.call.parameters.keys())
    return task.answer(done.request, done.results, about) if said is None else said


def write_hub(task: Teller, done: Done, about: About) -> Any:
    """As the pipeline, but a text's labels are always all listed, and are pairs of label and score."""
    said = task.pipeline(done.request, done.results, {*done.call.parameters, "top_k"})
    if said is None:
        return task.answer(done.request, done.results, about)
    if isinstance(said, dict) and "labels" in said:
        return _pairs(said)
    if isinstance(said, list) and said and isinstance(said[0], dict):
        if "labels" in said[0]:
            return [_pairs(one) for one in said]
        if done.request.single and said[0].keys() == {"label", "score"}:
            return [said]
    return said


def _pairs(judged: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What zero-shot-classification says of a text."""
    pairs = zip(judged["labels"], judged["scores"], strict=True)
    return [{"label": name, "score": score} for name, score in pairs]


def read_hub(message: Message, document: Any, model: Model) -> Call:
    """A message to a call, where its path told. Raises BadRequest or InvalidRequest."""
    said = native.read_json(message.body, "inputs")
    if "inputs" not in said:
        raise InvalidRequest("inputs: is missing")
    return read(message, said, model)


HUGGING_FACE = Protocol("hugging-face", read, write, negotiates=True)
HUB = Protocol("hugging-face hub", read_hub, write_hub, negotiates=True)
