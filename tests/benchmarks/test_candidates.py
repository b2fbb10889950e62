"""Who is measured, and who is not: right answers, wrong ones, and peers that cannot be had."""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from benchmarks import turns
from benchmarks.candidates.candidate import CLASSIFY, Candidate, Job, Wire, confidence, text_body
from benchmarks.check import Wrong, check, difference
from benchmarks.encoder import CANDIDATES, rotated
from benchmarks.environments import Environment
from benchmarks.figures import Load, Results
from benchmarks.http_client import Reply
from benchmarks.turns import Material, Plan, Turns

RIGHT = np.array([0.25, 0.75], dtype=np.float32)
WIRE = Wire("/", text_body, lambda answer: answer["p"])


class Fake(Candidate):
    name, about, environment, wires = "fake", "not a server", None, {CLASSIFY: WIRE}

    def command(self, job: Job) -> list[str]:
        raise NotImplementedError


class Absent(Fake):
    environment = Environment("absent", "/no/such/python")
    requirements = None


def answered(numbers) -> Reply:
    return Reply(0.0, 0.1, 200, json.dumps({"p": numbers}).encode())


def turn(monkeypatch, candidate: Candidate, numbers) -> tuple[Turns, Results, list[str]]:
    @contextmanager
    def served(*_):
        yield Job(CLASSIFY, Path(), 1, Path(), Path())

    async def ask_all(port, requests, connections):
        return [answered(numbers) for _ in requests]

    load = Load(10, 1, 1, 1, 1, 60, 0)
    monkeypatch.setattr(turns, "served", served)
    monkeypatch.setattr(turns, "ask_all", ask_all)
    monkeypatch.setattr(turns, "busy_cores", lambda: 0.0)
    monkeypatch.setattr(Turns, "_closed", lambda self, job, number: self._note(number, "mixed@64", load))
    said: list[str] = []
    results = Results("encoder", "", {}, {})
    material = Material(CLASSIFY, Path(), {"mixed": ["a", "b"]}, {"mixed": [RIGHT, RIGHT]})
    return Turns(candidate, material, Plan(open_loop=False), results, said.append), results, said


def test_a_right_answer_has_a_figure(monkeypatch, tmp_path):
    monkeypatch.setattr(turns, "BENCH", tmp_path)
    taking, results, _ = turn(monkeypatch, Fake(), [0.25, 0.75])
    taking.prepare()
    taking.take(0)
    assert results.standing(CLASSIFY, "fake").state == "measured"
    assert results.values(CLASSIFY, "fake", "mixed@64") == {0: 10}


def test_a_wrong_answer_has_none(monkeypatch, tmp_path):
    monkeypatch.setattr(turns, "BENCH", tmp_path)
    taking, results, said = turn(monkeypatch, Fake(), [0.26, 0.74])
    taking.prepare()
    taking.take(0)
    assert results.standing(CLASSIFY, "fake").state == "wrong"
    assert results.measurements == [] and "WRONG by 0.01" in said[-1]
    taking.take(1)
    assert results.measurements == []


def test_a_peer_that_cannot_be_had_is_skipped_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(turns, "BENCH", tmp_path)
    monkeypatch.setattr(Environment, "requirements", Path(__file__))
    taking, results, said = turn(monkeypatch, Absent(), [0.25, 0.75])
    taking.prepare()
    taking.take(0)
    assert said == ["    fake: skipped: there is no /no/such/python to make its environment with"]
    assert results.standing(CLASSIFY, "fake").state == "skipped" and results.measurements == []


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"{}",
        b'{"p": []}',
        b'{"p": [0.25]}',
        b'{"p": [0.25, NaN]}',
        b'{"p": ["a", 1]}',
        b'{"p": [null, null]}',
    ],
)
def test_an_answer_that_tells_nothing_is_infinitely_wrong(answer):
    assert difference(WIRE, answer, RIGHT) == math.inf


def test_what_an_answer_does_not_tell_is_not_held_against_it():
    wire = Wire("/", text_body, confidence)
    assert difference(wire, b'{"prediction": 1, "confidence": 0.75}', RIGHT) == 0
    assert difference(wire, b'{"prediction": 0, "confidence": 0.75}', RIGHT) == 0.5


def test_the_tolerance_is_that_of_fp32():
    assert check(WIRE, [answered([0.25005, 0.75])], [RIGHT]) == pytest.approx(5e-5, rel=0.1)
    with pytest.raises(Wrong):
        check(WIRE, [answered([0.25, 0.75]), answered([0.2502, 0.75])], [RIGHT, RIGHT])


def test_every_candidate_says_what_it_is():
    for candidate in CANDIDATES:
        assert candidate.about and candidate.wires
        if candidate.environment:
            assert candidate.environment.requirements.is_file()
    assert len({candidate.name for candidate in CANDIDATES}) == len(CANDIDATES)


def test_nobody_always_follows_the_same():
    assert [rotated("abc", by)[0] for by in range(4)] == ["a", "b", "c", "a"]
    assert rotated([], 1) == []
