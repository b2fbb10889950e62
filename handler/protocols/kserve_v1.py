"""KServe's first protocol, also Vertex AI's: `{"instances": […], "parameters": {…}}` -> `{"predictions": […]}`.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol
"""

from __future__ import annotations

from typing import Any

from handler.protocols.gathering import check_keys, gather
from handler.protocols.protocol import About, Done, Model, Protocol, Teller
from handler.request import Call
from handler.wire import Message


def read(message: Message, document: Any, model: Model) -> Call:
    """A message to a call. Raises InvalidRequest."""
    check_keys(document, ("instances", "parameters"))
    return gather("instances", document["instances"], document.get("parameters"), model)


def write(task: Teller, done: Done, about: About) -> Any:
    """One prediction for each instance, in their order."""
    return {"predictions": list(task.predictions(done.request, done.results))}


KSERVE_V1 = Protocol("kserve-v1", read, write)
