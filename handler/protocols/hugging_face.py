"""Hugging Face's: `{"inputs": …, "parameters": …}`, answered as transformers' pipeline of the task answers.

`inputs` is a text, a list of texts, or objects with the native protocol's fields: `{"question": …, "context": …}`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from handler.errors import InvalidRequest
from handler.protocols import native
from handler.protocols.gathering import check_keys, gather, read_mapping
from handler.protocols.protocol import About, Done, Model, Protocol, Teller
from handler.request import Call
from handler.wire import Message


def read(message: Message, document: Any, model: Model) -> Call:
    """A message to a call. Raises InvalidRequest."""
    check_keys(document, ("inputs", "parameters"))
    inputs = document["inputs"]
    parameters = read_mapping("parameters", document.get("parameters"))
    if isinstance(inputs, dict):
        if both := inputs.keys() & parameters.keys():
            raise InvalidRequest(f"parameters: {min(both)} is also in inputs")
        return native.call({**inputs, **parameters}, model.field)
    if isinstance(inputs, list):
        return gather("inputs", inputs, parameters, model)
    return replace(gather("inputs", [inputs], parameters, model), single=True)


def write(task: Teller, done: Done, about: About) -> Any:
    """What the pipeline answers; the native document, where there is no such pipeline."""
    said = task.pipeline(done.request, done.results, done.call.parameters.keys())
    return task.answer(done.request, done.results, about) if said is None else said


HUGGING_FACE = Protocol("hugging-face", read, write, negotiates=True)
