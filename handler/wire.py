"""Between TorchServe's rows and our messages. The only room that knows TorchServe's context.

A row is `{parameter name: value}`: `body` for a plain request, its own names for a form, the caller's for gRPC.
With `decode_input_request=false`, as shipped, values are bytearrays; otherwise TorchServe has already parsed JSON
and text (otf_message_handler.py:316), which is undone here so that one parser judges every body.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import orjson

from handler.batch import Slot, each
from handler.errors import BadRequest, HandlerError, NotAcceptable, TooLarge

JSON = "application/json"
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
FRAME_BYTES = 1 << 20  # eight bodies of 15.7 MB took 81 s in one message, and 95 ms each in frames of 1 MB
WHOLE = {"body", "data"}  # the parameters under which a whole body comes; `data` is TorchServe's customary name


@dataclass(frozen=True)
class Message:
    """One request as it came, before anybody has judged it."""

    body: bytes | bytearray = b""
    content_type: str = ""  # as sent; "" where nothing was
    encoding: str = ""  # Content-Encoding
    accept: str = ""  # Accept
    fields: Mapping[str, bytes | bytearray] = field(default_factory=dict)  # a form's, in place of a body
    explain: bool = False
    path: str = ""  # behind /predictions/NAME/VERSION/


@dataclass(frozen=True)
class Reply:
    """One answer as it goes out."""

    body: bytes
    content_type: str = JSON
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


def read(rows: Sequence[Mapping[str, Any]], context: Any) -> list[Slot[Message]]:
    """Rows to messages."""
    return each(list(range(len(rows))), lambda i: _read(rows[i], context.get_all_request_header(i)))


def is_describe(rows: Sequence[Mapping[str, Any]], context: Any) -> bool:
    """Whether this is the management API's `?customized=true`: it comes alone and without a parameter.

    The header by itself proves nothing, for any client can send one (and BaseHandler believes it).
    """
    return len(rows) == 1 and not rows[0] and context.get_request_header(0, "describe") == "True"


def write(
    replies: Sequence[Slot[Reply]], context: Any, limit: int, send: Callable[..., None] | None = None
) -> list[bytes]:
    """Replies and errors to the bodies of the rows; statuses and content types go to the context.

    TorchServe kills the worker for a body over max_response_size (CodecUtils.java:26), so one over `limit` becomes
    that request's 413. Only ASCII strings are handed over: lengths are counted in characters and written in
    bytes (otf_message_handler.py:109).
    """
    bodies: list[bytes] = []
    for index, slot in enumerate(replies):
        reply = slot if isinstance(slot, Reply) else error_reply(slot)
        if len(reply.body) > limit:
            reply = error_reply(TooLarge(f"the answer has {len(reply.body)} bytes; the limit is {limit}"))
        tell(reply, context, index)
        bodies.append(_send_frames(reply.body, context, index, send) if send else reply.body)
    return bodies


def tell(reply: Reply, context: Any, index: int) -> None:
    """Puts all of a row's reply but its body into the context."""
    context.set_response_status(reply.status, HTTPStatus(reply.status).phrase, index)
    context.set_response_content_type(index, reply.content_type)
    for name, value in reply.headers.items():
        context.set_response_header(index, name, value)


def negotiate(accept: str, offered: Sequence[str]) -> str:
    """The media type to answer with: of those offered the one that the client likes best, else the earliest.

    Raises:
        NotAcceptable: it would read none of them (RFC 9110, 12.5.1).
    """
    liked = [_preference(part) for part in accept.lower().split(",") if part.strip()]
    if not liked:
        return offered[0]
    best, quality = "", 0.0
    for media_type in offered:
        # The most exact range that fits decides, as */* fits everything.
        ranges = {"*/*": 0, media_type.partition("/")[0] + "/*": 1, media_type: 2}
        fitting = [(ranges[kind], q) for kind, q in liked if kind in ranges]
        if fitting and (q := max(fitting)[1]) > quality:
            best, quality = media_type, q
    if not best:
        raise NotAcceptable(f"accept: expected one of {', '.join(offered)}")
    return best


def _preference(part: str) -> tuple[str, float]:
    """A media range, and how much it is liked."""
    kind, *parameters = (piece.strip() for piece in part.split(";"))
    for name, _, value in (parameter.partition("=") for parameter in parameters):
        if name.strip() == "q":
            try:
                return kind, float(value)
            except ValueError:
                return kind, 0.0
    return kind, 1.0


def _send_frames(body: bytes, context: Any, index: int, send: Callable[..., None]) -> bytes:
    """Sends a large body ahead in pieces, and returns what is left for the batch's own message.

    The frontend's decoder begins again at a message's first byte on every read from the socket
    (ModelResponseDecoder.java:28). A unary gRPC call takes one message only; nothing but HTTP has a Host.
    """
    if len(body) <= FRAME_BYTES or not any(
        name.lower() == "host" for name in context.get_all_request_header(index)
    ):
        return body
    for start in range(0, len(body), FRAME_BYTES):
        piece = {index: body[start : start + FRAME_BYTES]}
        request_id = {index: context.request_ids[index]}
        send(piece, request_id, "Intermediate Prediction success", 200, context)
    return b""


def error_reply(error: HandlerError) -> Reply:
    """The one place where errors become HTTP."""
    message = str(error).encode("ascii", "replace").decode()
    document = {"error": {"code": error.status, "type": error.type, "message": message}}
    return Reply(orjson.dumps(document), status=error.status)


def _read(row: Mapping[str, Any], raw_headers: Mapping[str, Any]) -> Message:
    # Parameter names share this mapping with the headers, as {"content-type": …}; names keep the case sent.
    headers = {name.lower(): value for name, value in raw_headers.items() if isinstance(value, str)}
    content_type = headers.get("content-type", "")
    accept = headers.get("accept", "")
    explain, path = headers.get("explain") == "True", headers.get("url_path", "")
    whole = row.keys() & WHOLE
    if len(row) == 1 and whole:
        name = whole.pop()
        if content_type.lower().startswith(FORMS):  # a form with one part: the part has a type of its own
            part = raw_headers.get(name)
            content_type = str(part.get("content-type") or "") if isinstance(part, Mapping) else ""
        body = _bytes(row[name])
        encoding = headers.get("content-encoding", "")
        return Message(body, content_type, encoding, accept, explain=explain, path=path)
    fields = {name: _bytes(value) for name, value in row.items()}
    return Message(content_type=content_type, accept=accept, fields=fields, explain=explain, path=path)


def _bytes(value: object) -> bytes | bytearray:
    if isinstance(value, (bytes, bytearray)):
        return value
    try:
        return value.encode() if isinstance(value, str) else orjson.dumps(value)
    except (UnicodeEncodeError, TypeError) as err:  # a lone surrogate, a number beyond 64 bits
        raise BadRequest("the body is not valid Unicode JSON or text") from err
