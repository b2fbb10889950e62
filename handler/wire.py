"""Between TorchServe's rows and our messages. The only room that knows TorchServe's context.

A row is `{parameter name: value}`: `body` for a plain request, its own names for a form, the caller's for gRPC.
With `decode_input_request=false`, as shipped, values are bytearrays; otherwise TorchServe has already parsed JSON
and text (otf_message_handler.py:316), which is undone here so that one parser judges every body.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeAlias

import orjson

from handler.batch import Slot, each
from handler.errors import BadRequest, HandlerError, NotAcceptable, TooLarge

JSON = "application/json"
RAW = "application/octet-stream"
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
FRAME_BYTES = 1 << 20  # eight bodies of 15.7 MB took 81 s in one message, and 95 ms each in frames of 1 MB
WHOLE = {"body", "data"}  # the parameters under which a whole body comes; `data` is TorchServe's customary name

# How a request reached TorchServe. The frontend gives each HTTP request some header, and one of gRPC none
# (InferenceImpl.java, OpenInferenceProtocolImpl.java); only the latter's body has a type then.
HTTP, GRPC, OPEN_INFERENCE_GRPC = "http", "grpc", "open inference grpc"
STREAM_NEXT = "ts_stream_next"
ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


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
    transport: str = HTTP
    json_length: str = ""  # Inference-Header-Content-Length: of the JSON before binary tensors
    id: str = ""  # X-Correlation-Id, for logs; TorchServe gives every request an X-Request-Id of its own
    takes_chunks: bool = False  # by its Via: no HTTP/1.0 on the way to the client (RFC 9110, 7.6.3)


@dataclass(frozen=True)
class Reply:
    """One answer as it goes out."""

    body: bytes
    content_type: str = JSON
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


# An error and its text, in ASCII -> the document that a protocol has for it.
Shape: TypeAlias = Callable[[HandlerError, str], Mapping[str, Any]]
# Bodies by row, and whether each ends, goes on, or is one piece -> sent ahead (TransformerHandler.send).
Send: TypeAlias = Callable[[Mapping[int, bytes], Mapping[int, bool | None]], None]


def read(
    rows: Sequence[Mapping[str, Any]], context: Any, indices: Sequence[int] | None = None
) -> list[Slot[Message]]:
    """Rows to messages: all, or those of these numbers."""
    wanted = list(range(len(rows)) if indices is None else indices)
    return each(wanted, lambda i: _read(rows[i], context.get_all_request_header(i)))


def is_describe(rows: Sequence[Mapping[str, Any]], context: Any) -> bool:
    """Whether this is the management API's `?customized=true`: it comes alone and without a parameter.

    The header by itself proves nothing, for any client can send one (and BaseHandler believes it).
    """
    return len(rows) == 1 and not rows[0] and context.get_request_header(0, "describe") == "True"


def write(
    replies: Sequence[Slot[Reply]],
    context: Any,
    limit: int,
    send: Send | None = None,
    shapes: Sequence[Shape] = (),
) -> list[bytes]:
    """Replies and errors to the bodies of the rows; statuses and content types go to the context.

    `shapes` says for each row how its protocol writes errors; without them all are native.

    TorchServe kills the worker for a body over max_response_size (CodecUtils.java:26), so one over `limit` becomes
    that request's 413. Only ASCII strings are handed over: lengths are counted in characters and written in
    bytes (otf_message_handler.py:109). A row that has been begun can only be ended.
    """
    bodies: list[bytes] = []
    for index, slot in enumerate(replies):
        if _is_begun(context, index):
            bodies.append(b"")
            continue
        shape = shapes[index] if shapes else native_error
        reply = slot if isinstance(slot, Reply) else error_reply(slot, shape)
        if len(reply.body) > limit:
            reply = error_reply(TooLarge(f"the answer has {len(reply.body)} bytes; the limit is {limit}"), shape)
        reply = tell(reply, context, index)
        bodies.append(_send_frames(reply.body, context, index, send) if send else reply.body)
    return bodies


def send_ahead(bodies: Sequence[bytes], context: Any, send: Send, carriers: Iterable[int]) -> bool:
    """Sends the answers of a batch ahead of the batch's own message, which then has nothing but the end of one.

    The frontend passes them on, and collects no other batch before that end (BatchAggregator.java:98,
    WorkerThread.java:210).

    Args:
        bodies: what `write` has returned.
        context: the batch's.
        send: as for `write`.
        carriers: rows that may be answered in chunks, as one of them is (NettyUtils.java:195).

    Returns:
        Whether they were sent; not where no row can carry the end.
    """
    begun = [index for index in context.request_ids if _is_begun(context, index)]
    # An error's connection is closed behind its first piece (NettyUtils.java:197).
    good = [index for index in carriers if context.get_response_status(index)[0] < 400]
    if not begun and not good:
        return False
    carrier = (begun or good)[0]
    ends = {index: True if index in begun else None for index in context.request_ids}
    send(dict(enumerate(bodies)), {**ends, carrier: False})
    for index in ends.keys() - {carrier}:
        del context.request_ids[index]  # from which the batch's own message is written (service.py:150)
    return True


def _is_begun(context: Any, index: int) -> bool:
    """Whether something of the row's answer has been sent."""
    return bool(context.get_response_headers(index).get(STREAM_NEXT) == "true")


def tell(reply: Reply, context: Any, index: int) -> Reply:
    """Puts all of a row's reply but its body into the context; the reply as its transport can carry it."""
    transport = _transport(context.get_all_request_header(index))
    if transport == OPEN_INFERENCE_GRPC and reply.status >= 400:
        reply = _as_tensor(reply, context)
    if transport == GRPC:
        # StreamPredictions reads it without asking whether it is there, and the worker dies (GRPCJob.java:137).
        # A unary call passes over it. What streams sets it again (otf_message_handler.py:97).
        context.set_response_header(index, STREAM_NEXT, "false")
    context.set_response_status(reply.status, HTTPStatus(reply.status).phrase, index)
    context.set_response_content_type(index, reply.content_type)
    for name, value in reply.headers.items():
        context.set_response_header(index, name, value)
    return reply


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


def _send_frames(body: bytes, context: Any, index: int, send: Send) -> bytes:
    """Sends a large body ahead in pieces, and returns what is left for the batch's own message.

    The frontend's decoder begins again at a message's first byte on every read from the socket
    (ModelResponseDecoder.java:28). A unary gRPC call takes one message only.
    """
    if len(body) <= FRAME_BYTES or _transport(context.get_all_request_header(index)) != HTTP:
        return body
    for start in range(0, len(body), FRAME_BYTES):
        send({index: body[start : start + FRAME_BYTES]}, {index: False})
    return b""


def error_reply(error: HandlerError, shape: Shape | None = None) -> Reply:
    """The one place where errors become HTTP; a protocol's shape says what their documents look like."""
    message = str(error).encode("ascii", "replace").decode()
    return Reply(orjson.dumps((shape or native_error)(error, message)), status=error.status)


def native_error(error: HandlerError, message: str) -> dict[str, Any]:
    """An error in the native protocol."""
    return {"error": {"code": error.status, "type": error.type, "message": message}}


def plain_error(error: HandlerError, message: str) -> dict[str, Any]:
    """An error as KServe's protocols and Hugging Face's services write it."""
    return {"error": message}


def _as_tensor(reply: Reply, context: Any) -> Reply:
    """An error that TorchServe's Open Inference gRPC can carry: an answer whose one tensor is called `error`.

    Statuses are passed over there, and an answer that lacks any of these keys kills the worker (GRPCJob.java:173).
    An exception would have a status, and fail the whole batch with it.
    """
    error = orjson.loads(reply.body)["error"]
    said = {"code": reply.status, "error": error if isinstance(error, str) else error["message"]}
    tensor = {"name": "error", "datatype": "BYTES", "shape": [1], "data": [said]}
    name = str(getattr(context, "model_name", ""))
    return Reply(orjson.dumps({"id": "", "model_name": name, "model_version": "", "outputs": [tensor]}))


def _transport(headers: Mapping[str, Any]) -> str:
    """How a request came; parameters stand among the headers as {"content-type": ...}."""
    for value in headers.values():
        if isinstance(value, str):
            return HTTP
    typed = [value for value in headers.values() if isinstance(value, Mapping) and value.get("content-type")]
    return OPEN_INFERENCE_GRPC if typed else GRPC


def _read(row: Mapping[str, Any], raw_headers: Mapping[str, Any]) -> Message:
    # Parameter names share this mapping with the headers, as {"content-type": …}; names keep the case sent.
    headers = {name.lower(): value for name, value in raw_headers.items() if isinstance(value, str)}
    content_type = headers.get("content-type", "")
    about: dict[str, Any] = {
        "accept": headers.get("accept", ""),
        "explain": headers.get("explain") == "True",
        "path": headers.get("url_path", ""),
        "transport": _transport(raw_headers),
        "json_length": headers.get("inference-header-content-length", ""),
        "id": _id(headers.get("x-correlation-id", "")),
        "takes_chunks": _takes_chunks(headers.get("via", "")),
    }
    whole = row.keys() & WHOLE
    if len(row) == 1 and whole:
        name = whole.pop()
        if content_type.lower().startswith(FORMS):  # a form with one part: the part has a type of its own
            part = raw_headers.get(name)
            content_type = str(part.get("content-type") or "") if isinstance(part, Mapping) else ""
        body = _bytes(row[name])
        encoding = headers.get("content-encoding", "")
        return Message(body, content_type, encoding, **about)
    fields = {name: _bytes(value) for name, value in row.items()}
    return Message(content_type=content_type, fields=fields, **about)


def _id(given: str) -> str:
    """What may stand in a log, of what a client sent."""
    return given if ID.fullmatch(given) else ""


def _takes_chunks(via: str) -> bool:
    """Whether there are protocols in it, and each is newer than HTTP/1.0."""
    protocols = [part.split()[0].rpartition("/")[2] for part in via.split(",") if part.strip()]
    return bool(protocols) and not any(protocol in ("0.9", "1.0") for protocol in protocols)


def _bytes(value: object) -> bytes | bytearray:
    if isinstance(value, (bytes, bytearray)):
        return value
    try:
        return value.encode() if isinstance(value, str) else orjson.dumps(value)
    except (UnicodeEncodeError, TypeError) as err:  # a lone surrogate, a number beyond 64 bits
        raise BadRequest("the body is not valid Unicode JSON or text") from err
