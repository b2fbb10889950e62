"""When a call is sent again, counted by a socket that breaks off as TorchServe cannot be made to."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import pytest

from client import BadReply, InferenceClient, ManagementClient, NotReachable, Refused
from client.transport import Transport

RESET = struct.pack("ii", 1, 0)  # SO_LINGER 0: closing sends a reset
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@contextmanager
def peer(*answers: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A server that reads a request a connection, answers and closes, or resets it for b""; what it read."""
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    seen.append(connection.recv(65536))
                    connection.sendall(answer)
                    if not answer:
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

        thread = Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{port}", seen
        thread.join(30)
        assert not thread.is_alive(), "fewer calls than answers"
        assert not waits(listener), "more calls than answers"


def waits(listener: socket.socket) -> bool:
    """Whether somebody has connected whom nobody has answered."""
    listener.setblocking(False)
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def test_a_prediction_that_broke_off_is_not_sent_again() -> None:
    with peer(b"") as (url, seen):
        with pytest.raises(NotReachable, match="broke the connection") as caught:
            InferenceClient(url).predict("m", "hi")
        assert caught.value.sent and not caught.value.timed_out
    assert len(seen) == 1


def test_a_prediction_that_may_be_repeated_is() -> None:
    with peer(b"", b"", OK) as (url, seen):
        assert InferenceClient(url).predict("m", "hi", retries=2) == {}
    assert len(seen) == 3
    with peer(b"", b"") as (url, seen), pytest.raises(NotReachable):
        InferenceClient(url).predict("m", "hi", retries=1)


def test_what_is_read_or_set_is_sent_again() -> None:
    with peer(b"", OK.replace(b"2\r\n\r\n{}", b"20\r\n\r\n" + b'{"status":"Healthy"}')) as (url, _):
        assert InferenceClient(url).ping()
    with peer(b"", b"", OK) as (url, seen):
        ManagementClient(url).set_default("m", "1.0")
    assert [request.split(b" HTTP", 1)[0] for request in seen] == [b"PUT /models/m/1.0/set-default"] * 3


def test_a_registration_that_broke_off_is_not_sent_again() -> None:
    with peer(b"") as (url, _), pytest.raises(NotReachable):
        ManagementClient(url).register("m.mar", timeout=5)
    with peer(b"") as (url, _), pytest.raises(NotReachable):
        ManagementClient(url).unregister("m")


def test_no_answer_in_time_is_not_reachable_and_not_sent_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(NotReachable, match=r"no answer within 0\.2 s") as caught:
            InferenceClient(url, timeout=0.2).predict("m", "hi", retries=5)
        assert caught.value.timed_out and caught.value.sent
        assert waits(silent) and not waits(silent)


def test_an_answer_cut_short() -> None:
    cut = b"HTTP/1.1 %b\r\nContent-Length: 99\r\n\r\nhalf"
    with peer(cut % b"200 OK") as (url, _), pytest.raises(NotReachable, match="broke the connection"):
        InferenceClient(url).predict("m", "hi")
    with peer(cut % b"503 Busy") as (url, _), pytest.raises(Refused, match="answered 503 Busy"):
        InferenceClient(url).predict("m", "hi")  # the reset behind a refusal may take its words with it


def test_a_redirect_is_not_followed() -> None:
    moved = b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"
    with peer(moved) as (url, _), pytest.raises(BadReply, match="302 Found"):
        InferenceClient(url).predict("m", "hi")


def test_headers_go_with_every_call() -> None:
    with peer(OK) as (url, seen):
        InferenceClient(url, headers={"Authorization": "Bearer abc"}).predict("m", "hi")
    assert b"Authorization: Bearer abc\r\n" in seen[0]


def test_no_proxy_stands_before_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with peer(OK) as (url, _):
        assert InferenceClient(url).predict("m", "hi") == {}


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "ftp://h", "http://", "http://h:99999", "http://[h"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        Transport(url, 1)


@pytest.mark.parametrize("name", ["", "a/b", ".", ".."])
def test_what_cannot_be_a_name_or_version_is_not_sent(name: str) -> None:
    nowhere = "http://127.0.0.1:9"
    with pytest.raises(ValueError, match="cannot be a model's name"):
        InferenceClient(nowhere).predict(name, "hi")
    with pytest.raises(ValueError, match="cannot be a model's version"):
        ManagementClient(nowhere).describe("m", name)
    with pytest.raises(ValueError, match="cannot be a model's name"):
        ManagementClient(nowhere).register("m.mar", name)


def test_what_cannot_be_asked_is_not_sent() -> None:
    client = InferenceClient("http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"given twice.*text"):
        client.predict("m", "hi", text="ho")
    with pytest.raises(TypeError, match="predict takes"):
        client.predict("m", b"hi")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="predict takes"):
        client.predict("m", ["hi", 3])  # type: ignore[list-item]
    with pytest.raises(ValueError):
        client.predict("m", {"number": float("nan")})


def test_the_client_needs_no_other_room() -> None:
    code = "import sys, client, client.__main__, client.arguments; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"handler", "archiver", "torch", "ts", "transformers"} & set(found)
    assert "client.commands" in found
