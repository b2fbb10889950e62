"""A client that sends bytes as they stand, whatever they are."""

from __future__ import annotations

import socket


def raw(port: int, data: bytes, seconds: float = 1.0) -> bytes:
    """What comes back for these very bytes, until the server closes or is silent for a while."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(data)
        connection.settimeout(seconds)
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
        except TimeoutError:
            pass
        return answer


def status_of(answer: bytes) -> int:
    """The status of the first answer in it."""
    return int(answer.split(b" ", 2)[1])
