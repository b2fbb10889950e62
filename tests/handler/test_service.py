"""The scenarios through `ts.service.Service` with real frames: everything but Java."""

from __future__ import annotations

import random

import pytest

from tests.support import frames, scenarios

CASES = [
    pytest.param(task, scenario, id=f"{task}-{scenario}")
    for task in scenarios.TASKS
    for scenario in scenarios.of(task)
]


@pytest.mark.parametrize(("task", "scenario"), CASES)
def test_alone(services, references, task, scenario):
    [response] = frames.predict(services[task], [scenario.frame()])
    check(task, response, scenario, references[task])


@pytest.mark.parametrize("task", scenarios.TASKS)
@pytest.mark.parametrize("seed", [1, 2])
def test_all_in_one_batch(services, references, task, seed):
    chosen = list(scenarios.of(task))
    random.Random(seed).shuffle(chosen)
    responses = frames.predict(services[task], [scenario.frame() for scenario in chosen])
    assert len(responses) == len(chosen)
    for response, scenario in zip(responses, chosen, strict=True):
        check(task, response, scenario, references[task])


@pytest.mark.parametrize(("task", "scenario"), CASES)
def test_where_torchserve_reads_the_json(services, references, task, scenario, monkeypatch):
    """`decode_input_request=true` is TorchServe's default; answers and statuses stay the same or as strict."""
    monkeypatch.setenv("TS_DECODE_INPUT_REQUEST", "true")
    [response] = frames.predict(services[task], [scenario.frame()])
    if scenario.status == 200:
        check(task, response, scenario, references[task])
    else:
        assert 400 <= response.status < 500 and len(response.body) < 1000


def check(task, response, scenario, reference):
    expected = reference(scenario) if scenario.status == 200 else None
    assert response.phrase.isascii() and response.phrase
    scenarios.check_answer(
        task, scenario, response.status, response.content_type, response.body, reference=expected
    )
