"""The load generator, against servers of a few lines."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest

from tests.support.listening import Quiet, listening
from tuning import load
from tuning.server import load as drive_apart


@pytest.fixture
def server():
    """A port, and the statuses that its answers have in turn; then 200."""

    class Handler(Quiet):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            received.append(self.rfile.read(int(self.headers["content-length"])))
            time.sleep(0.3 if received[-1] == b"slow" else 0)
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
    job = {"port": port, "model": "m", "bodies": ["ä", "b"], "connections": connections}
    return asyncio.run(load.drive({**job, "seconds": seconds, "most": 6 * seconds}))


def test_a_slow_server_is_warmed_up_as_long_as_it_is_measured(server, tmp_path):
    """Else every setting of a large model would be void, however many --seconds were asked for."""
    wanted = SimpleNamespace(recipe=SimpleNamespace(name="m"), bodies=["slow"], temp=tmp_path, seconds=1.0)
    assert drive_apart(wanted, server[0], 3, 0.1).p50 >= 0.3


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
