"""The load generator, against servers of a few lines."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from tests.support.listening import Quiet, listening
from tuning import load


@pytest.fixture
def server():
    """A port, and the statuses that its answers have in turn; then 200."""

    class Handler(Quiet):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            received.append(self.rfile.read(int(self.headers["content-length"])))
            body = b'{"error": {"message": "too many"}}'
            self.send_response(statuses.pop(0) if statuses else 200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            with suppress(OSError):  # the load has gone
                self.wfile.write(body)

    statuses, received = [], []
    with listening(Handler) as (_, port):
        yield port, statuses, received


def drive(port, connections=3, seconds=0.2):
    job = {"port": port, "model": "m", "bodies": ["ä", "b"], "connections": connections, "seconds": seconds}
    return asyncio.run(load.drive(job))


def test_every_body_is_sent_and_answers_are_counted(server):
    port, _, received = server
    seen = drive(port)
    assert set(received) == {"ä".encode(), b"b"}
    assert 0 < seen.p50 <= seen.p99 and 0 < seen.rate <= len(received) / 0.1


def test_an_answer_that_is_no_200_makes_the_run_void(server):
    port, statuses, _ = server
    statuses += [200, 200, 200, 503]
    with pytest.raises(load.Void, match="status 503: too many"):
        drive(port)


def test_a_server_that_is_not_there_makes_the_run_void(server):
    with pytest.raises(load.Void, match="cannot be reached"):
        drive(1)


def test_the_rate_of_lumps_is_not_off_by_half_a_lump():
    lumps = [second + 0.001 * place for second in range(1, 6) for place in range(10)]
    assert load.rate(lumps, 10) == pytest.approx(10)


def test_too_few_answers_make_no_figure():
    with pytest.raises(load.Void, match="only 3 answers over 2 connections"):
        load.figures([(1.0, 1.0)] * 3, 2)
