"""The native protocol: `{"text": …}` or `{"texts": […]}` with the task's parameters beside it.

Plain text is one input. A form's fields are the document's fields. Where no content type says what a body is, one
that begins with a brace or a bracket is JSON and anything else is text.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import orjson

from handler.errors import BadRequest, InvalidRequest, UnsupportedMediaType
from handler.protocols.protocol import About, Done, Model, Protocol, Teller
from handler.request import Call, FormText
from handler.rules import TEXT, label, nearest, optional
from handler.wire import FORMS, JSON, Message, native_error

ABOUT = {"model_name": TEXT, "request_id": optional(TEXT)}  # words about a request, by which nothing changes
EXPECTED = 'expected a JSON object such as {"%s": "..."}, plain text, or a form'


def read(message: Message, document: Any, model: Model) -> Call:
    """A message to a call.

    Raises:
        BadRequest, UnsupportedMediaType, InvalidRequest: as their names say.
    """
    field = model.field
    if message.fields:
        return call(_without_words(_form(message.fields, field), field), field)
    if not message.body.strip():
        raise BadRequest(f"the body is empty; {EXPECTED % field}")
    if _kind(message) == "text":
        return Call(field, (_text(message.body),), True, {})
    return call(_without_words(read_json(message.body, field), field), field)


def _without_words(document: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    words = ABOUT.keys() & document.keys() - {field}
    for name in sorted(words):
        if not ABOUT[name].accepts(document[name]):
            raise InvalidRequest(f"{name}: expected {ABOUT[name].expected}")
    return {name: value for name, value in document.items() if name not in words} if words else document


def write(task: Teller, done: Done, about: About) -> Any:
    """A task's own document."""
    return task.answer(done.request, done.results, about)


def is_json(message: Message) -> bool:
    """Whether a message's body is read as JSON."""
    try:
        return not message.fields and _kind(message) == "json"
    except UnsupportedMediaType:
        return False


def _kind(message: Message) -> str:
    media_type, _, parameters = message.content_type.lower().partition(";")
    media_type = media_type.strip()
    charset = parameters.partition("charset=")[2].partition(";")[0].strip(' "') or "utf-8"
    if charset not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedMediaType("content-type: the only character set that is read is utf-8")
    if media_type == JSON:
        return "json"
    if media_type == "text/plain":  # lines of text/csv are no one text, nor is text/json
        return "text"
    if media_type in ("", "application/octet-stream", *FORMS):
        return "json" if message.body.lstrip()[:1] in (b"{", b"[") else "text"
    raise UnsupportedMediaType("content-type: expected application/json, text/plain or a form")


def read_json(body: bytes | bytearray, field: str) -> dict[str, Any]:
    """A JSON object. Raises BadRequest."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as err:  # its message may quote the body, its position does not
        raise BadRequest(f"the body is not valid JSON (at character {err.pos}); {EXPECTED % field}") from None
    if not isinstance(document, dict):
        raise BadRequest(f"the body is JSON but not an object; {EXPECTED % field}")
    return document


def _text(body: bytes | bytearray) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as err:
        raise BadRequest(f"the body is not valid UTF-8 (at byte {err.start})") from None


def _form(fields: Mapping[str, bytes | bytearray], field: str) -> dict[str, Any]:
    if any(name.lstrip()[:1] in ("{", "[") for name in fields):  # curl -d without a content type
        raise BadRequest("the body is JSON but was sent as a form; send it as content-type: application/json")
    # Netty may hand over a field's whole backing array, with NULs behind the value (NettyUtils.java:214).
    texts = {name: _text(value.rstrip(b"\0")) for name, value in fields.items()}
    inputs = (field, field + "s")
    return {name: text if name in inputs else FormText(text) for name, text in texts.items()}


def call(document: Mapping[str, Any], field: str) -> Call:
    """A document to a call. Raises InvalidRequest."""
    many = field + "s"
    parameters = {name: value for name, value in document.items() if name not in (field, many)}
    if field in document and many in document:
        raise InvalidRequest(f"{field}: expected either {field} or {many}, not both")
    if field in document:
        return Call(field, (document[field],), True, parameters)
    if many not in document:
        near = next((name for name in islice(parameters, 5) if nearest(name[:80], (field, many))), None)
        mistaken = f" ({label(near)} is not known)" if near else ""
        raise InvalidRequest(f"{field}: is missing; expected {field}, a string, or {many}, a list{mistaken}")
    if not isinstance(document[many], list):
        raise InvalidRequest(f"{many}: expected a list of strings")
    return Call(many, document[many], False, parameters)


NATIVE = Protocol("native", read, write, native_error, negotiates=True)
