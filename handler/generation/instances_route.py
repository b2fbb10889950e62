"""KServe's first protocol, also Vertex AI's: `{"instances": […], "parameters": {…}}` -> `{"predictions": […]}`.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from handler.errors import BadRequest, HandlerError, InvalidRequest, TooLarge
from handler.generation import native_route
from handler.generation.application import together
from handler.generation.openai_protocol import Document, Usage, message_of
from handler.generation.route import Route, Served
from handler.protocols.gathering import check_keys, read_mapping
from handler.rules import label
from handler.wire import JSON, Reply, error_reply, plain_error


def read(document: Document, served: Served) -> Route:
    """A request to its route: each instance is one of the native protocol's, and they are generated at once.

    Raises:
        InvalidRequest: of an instance, with its place.
        BadRequest: the same, where it is the engine's to say.
        TooLarge: more instances than are generated at once.
    """
    check_keys(document, ("instances", "parameters"))
    instances, shared = document["instances"], read_mapping("parameters", document.get("parameters"))
    if not isinstance(instances, list) or not instances:
        raise InvalidRequest("instances: expected a list of at least one")
    if len(instances) > (most := served.limits.sequences):
        raise TooLarge(f"instances: {len(instances)} items; the limit is {most}")
    routes = [
        _instance(f"instances[{place}]", instance, shared, served) for place, instance in enumerate(instances)
    ]
    usage = Usage()

    def whole(status: int, body: bytes, content_type: str) -> Reply:
        answered = orjson.loads(body)
        if status != 200:
            place = answered.get("part")
            said = message_of(answered)
            return Reply(
                orjson.dumps({"error": said if place is None else f"instances[{place}]: {said}"}), status=status
            )
        replies = [route.whole(200, orjson.dumps(one), JSON) for route, one in zip(routes, answered, strict=True)]
        usage.prompt_tokens = sum(route.usage.prompt_tokens or 0 for route in routes)
        usage.new_tokens = sum(route.usage.new_tokens or 0 for route in routes)
        usage.finish_reason = routes[-1].usage.finish_reason
        return Reply(b'{"predictions":[' + b",".join(reply.body for reply in replies) + b"]}")

    ask = together([route.ask for route in routes])
    return Route(ask, whole, lambda piece, last: piece, False, refuse, usage)


def refuse(error: HandlerError) -> Reply:
    """An error, as the protocol has it."""
    return error_reply(error, plain_error)


def _instance(where: str, instance: Any, shared: Mapping[str, Any], served: Served) -> Route:
    if not isinstance(instance, (str, dict)):
        raise InvalidRequest(f"{where}: expected a string, or an object with prompt or messages")
    own = {"prompt": instance} if isinstance(instance, str) else instance
    if both := own.keys() & shared.keys():
        raise InvalidRequest(f"parameters: {label(min(both))} is also in {where}")
    asked = {**shared, **own}
    if asked.get("stream"):
        raise InvalidRequest("stream: predictions are whole; ask without instances")
    try:
        return native_route.read(asked, served)
    except (InvalidRequest, BadRequest) as error:
        raise type(error)(f"{where}: {error}") from error
