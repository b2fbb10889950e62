"""TorchServe's frames: requests as the frontend writes them, answers as it reads them.

Mirrors ModelRequestEncoder.java and ModelResponseDecoder.java, so that `ts.service.Service` can be driven with
real bytes and without Java.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ts.protocol import otf_message_handler


@dataclass(frozen=True)
class Request:
    """One HTTP request as the frontend hands it on: parameters are (name, content type, value)."""

    parameters: Sequence[tuple[str, str, bytes]]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Response:
    status: int
    phrase: str
    content_type: str
    headers: Mapping[str, str]
    body: bytes


def post(body: bytes, content_type: str = "application/json", **headers: str) -> Request:
    """A plain request; the parameter's type is the mime type, the header is as sent."""
    sent = {"Host": "localhost", "url_path": "", "explain": "False", **headers}
    if content_type:
        sent["Content-Type"] = content_type
    return Request([("body", content_type.partition(";")[0].strip(), body)], sent)


def ask(document: Any = None, /, **keys: Any) -> Request:
    """A request with a JSON document, given whole or by its keys."""
    return post(json.dumps(keys if document is None else document).encode())


def form(fields: Mapping[str, bytes], content_type: str = "application/x-www-form-urlencoded") -> Request:
    return Request(
        [(name, "", value) for name, value in fields.items()],
        {"content-type": content_type, "url_path": "", "explain": "False"},
    )


def answer(service: Any, document: Any = None, /, **keys: Any) -> tuple[int, Any]:
    """Status and document of the answer to one document."""
    [response] = predict(service, [ask(document, **keys)])
    return response.status, json.loads(response.body)


def predict(service: Any, requests: Sequence[Request]) -> list[Response]:
    """Sends a batch through a `ts.service.Service`, byte for byte as a worker would get it."""
    found = _decode(_through(service, encode(requests)))
    for request, (response, begun) in zip(requests, found, strict=True):
        ends = response.headers.get("ts_stream_next")
        # HTTP waits for a beginning that never came, gRPC's streams for an end that nobody named.
        assert ends == ("false" if begun or is_grpc(request) else None)
    return [response for response, _ in found]


def is_grpc(request: Request) -> bool:
    """Whether it came over TorchServe's own gRPC: without a header, and what it holds has no type."""
    return not request.headers and not any(content_type for _, content_type, _ in request.parameters)


def one_round(service: Any, requests: Mapping[str, Request]) -> dict[str, Response]:
    """One round of continuous batching: what each request that is named gets, if anything."""
    reader = _Reader(_through(service, encode([*requests.values()], [*requests])))
    found = _message(reader)
    assert not reader.rest
    return found


def _through(service: Any, message: bytes) -> bytes:
    """All that a worker writes in answer to a message: what it sends ahead, and the batch's own message."""
    near, far = socket.socketpair()
    ahead = bytearray()
    writer = threading.Thread(target=near.sendall, args=(message,))
    reader = threading.Thread(target=_drain, args=(near, ahead))
    writer.start()
    reader.start()
    try:
        _, received = otf_message_handler.retrieve_msg(far)
        service.set_cl_socket(far)
        last = bytes(service.predict(received))
    finally:
        far.close()
        writer.join()
        reader.join()
        near.close()
    return bytes(ahead) + last


def _drain(near: socket.socket, into: bytearray) -> None:
    while piece := near.recv(1 << 16):
        into += piece


def encode(requests: Sequence[Request], names: Sequence[str] | None = None) -> bytes:
    out = bytearray(b"I")
    for index, request in enumerate(requests):
        out += _text(names[index] if names else f"request-{index}")
        for name, value in request.headers.items():
            out += _text(name) + _text(value)
        out += struct.pack("!i", -1)
        for name, content_type, value in request.parameters:
            out += _text(name) + _text(content_type) + struct.pack("!i", len(value)) + value
        out += struct.pack("!i", -1)
    return bytes(out + struct.pack("!i", -1))


def decode(frames: bytes) -> list[Response]:
    """Reads a batch's answers."""
    return [response for response, _ in _decode(frames)]


def _decode(frames: bytes) -> list[tuple[Response, bool]]:
    """Reads a batch's answers, and whether each was begun before its end.

    Fails where the frontend would lose its place, answer twice or hang. Messages sent ahead hold answers, and
    pieces of such as go on, one at least; a message without is the batch's last (BatchAggregator.java:98).
    """
    reader = _Reader(frames)
    begun: dict[str, Response] = {}
    answered: dict[str, tuple[Response, bool]] = {}
    goes_on = True
    while goes_on:
        goes_on = False
        for name, piece in _message(reader).items():
            assert name not in answered
            first = begun.pop(name, None)
            found = _joined(first, piece) if first else piece
            if piece.headers.get("ts_stream_next") == "true":
                assert piece.status < 400, "the connection would be closed behind it"
                begun[name], goes_on = found, True
            else:
                answered[name] = found, first is not None
    assert not reader.rest and not begun
    return [answered[f"request-{index}"] for index in range(len(answered))]


def _joined(begun: Response, piece: Response) -> Response:
    return replace(begun, body=begun.body + piece.body, headers={**begun.headers, **piece.headers})


def _message(reader: _Reader) -> dict[str, Response]:
    """Request -> its part of one message."""
    code, message = reader.integer(), reader.block().decode()
    assert code == 200, f"the whole batch was failed: {code} {message}"
    found = {}
    while (length := reader.integer()) != -1:
        name = reader.take(length).decode()
        content_type = reader.block().decode()
        status, phrase = reader.integer(), reader.block().decode()
        headers = {reader.block().decode(): reader.block().decode() for _ in range(reader.integer())}
        found[name] = Response(status, phrase, content_type, headers, reader.block())
    return found


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.rest = data

    def take(self, length: int) -> bytes:
        assert 0 <= length <= len(self.rest), f"a length of {length} with {len(self.rest)} bytes left"
        taken, self.rest = self.rest[:length], self.rest[length:]
        return taken

    def integer(self) -> int:
        return int(struct.unpack("!i", self.take(4))[0])

    def block(self) -> bytes:
        return self.take(self.integer())


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("!i", len(data)) + data
