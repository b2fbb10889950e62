"""Frames read through a buffer are those that TorchServe reads without one."""

from __future__ import annotations

import functools
import socket
import threading

import pytest
from ts.protocol import otf_message_handler

from handler.reading import BufferedFrames
from tests.support import frames, tiny_models, worker


@pytest.fixture
def connection():
    near, far = socket.socketpair()
    with near, far:
        yield near, far


def test_pieces_however_they_come(connection):
    near, far = connection
    sent = bytes(range(256)) * 1000
    threading.Thread(
        target=lambda: [near.sendall(sent[at : at + 7777]) for at in range(0, len(sent), 7777)]
    ).start()
    read, found = BufferedFrames(), bytearray()
    for length in (1, 4, 0, 100_000, 3, 65_536, len(sent) - 165_544):
        piece = read(far, length)
        assert isinstance(piece, bytearray) and len(piece) == length
        found += piece
    assert found == sent


def test_another_connection_has_its_own_buffer(connection):
    near, far = connection
    read = BufferedFrames()
    near.sendall(b"abcd")
    assert read(far, 1) == b"a"
    other_near, other_far = socket.socketpair()
    with other_near, other_far:
        other_near.sendall(b"xyz")
        assert read(other_far, 2) == b"xy"


def test_a_frontend_that_has_gone_ends_the_worker(connection):
    near, far = connection
    near.sendall(b"ab")
    near.close()
    with pytest.raises(SystemExit) as ended:
        BufferedFrames()(far, 3)
    assert ended.value.code == 0


def test_a_worker_reads_with_few_calls(tmp_path, monkeypatch):
    """TorchServe asks for each integer and each string by itself: for these requests some 1,500 times."""
    tiny_models.classifier(tmp_path / "model")
    service = worker.start(tmp_path, task="text-classification")
    read = otf_message_handler._retrieve_buffer
    assert isinstance(read, BufferedFrames)
    asked = []

    class Counted:
        """A connection that counts how often it is read."""

        def __init__(self, connection):
            self.connection = connection

        def recv(self, size):
            asked.append(size)
            return self.connection.recv(size)

    monkeypatch.setattr(
        otf_message_handler, "_retrieve_buffer", lambda connection, length: read(counted(connection), length)
    )
    counted = functools.cache(Counted)
    answers = frames.predict(service, [frames.ask(text="a film")] * 64)
    assert [answer.status for answer in answers] == [200] * 64
    assert len(asked) < 20
