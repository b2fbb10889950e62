"""Growth is told from noise."""

from __future__ import annotations

import json

import numpy as np

from benchmarks.http_client import Reply
from benchmarks.memory import BAD_EVERY, as_expected, body, summary

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
