from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from handler.config import TASKS, ConfigError, HandlerConfig, ServerConfig, read_config
from handler.rules import nearest

MINIMAL = {"handler": {"task": "text-classification"}}


def problems(document) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_config(document)
    return [str(problem) for problem in caught.value.problems]


def test_a_task_is_enough():
    config = read_config(MINIMAL)
    assert config.handler == HandlerConfig(task="text-classification")
    assert config.server == ServerConfig(continuousBatching=False)


def test_generation_is_batched_continuously_by_one_worker():
    config = read_config({"handler": {"task": "text-generation"}})
    assert config.server.continuousBatching is True and config.document()["continuousBatching"] is True
    wrong = {
        "continuousBatching": False,
        "maxWorkers": 2,
        "handler": {"task": "text-generation", "cache_bytes": 9},
    }
    with pytest.raises(ConfigError) as error:
        read_config(wrong)
    assert [problem.key for problem in error.value.problems] == [
        "continuousBatching",
        "maxWorkers",
        "handler.cache_bytes",
    ]


def test_every_wrong_key_is_reported_at_once():
    found = problems(
        {
            "batchsize": "8",
            "maxBatchDelay": 0,
            "handler": {"task": "text-classification", "max_token": 5, "dtype": "fp8", "threads": True},
        }
    )
    assert found == [
        "batchsize: '8': unknown key; did you mean batchSize?",
        "maxBatchDelay: 0: expected a whole number from 1 to 60000",
        "handler.max_token: 5: unknown key; did you mean max_tokens?",
        "handler.dtype: 'fp8': expected one of float32, bfloat16, float16",
        "handler.threads: True: expected a whole number from 1 to 1024, or null",
    ]


@pytest.mark.parametrize(
    "document", [None, [], "task", 3, {}, {"handler": None}, {"handler": []}, {"handler": {}}]
)
def test_what_is_no_configuration(document):
    assert problems(document)


def test_an_unknown_task_is_told_from_the_known():
    [problem] = problems({"handler": {"task": "text-clasification"}})
    assert "expected one of" in problem and all(task in problem for task in TASKS)


def test_a_key_of_another_task():
    [problem] = problems({"handler": {"task": "text-classification", "pooling": "cls"}})
    assert problem == "handler.pooling: 'cls': is for feature-extraction only, not for text-classification"


@pytest.mark.parametrize(
    "key", ["asyncCommunication", "continuousBatching", "sequenceBatching", "useJobTicket", "useVenv"]
)
def test_what_torchserve_cannot_do_right_is_refused(key):
    [problem] = problems({key: True, **MINIMAL})
    assert problem.startswith(f"{key}: True: expected false")
    read_config({key: False, **MINIMAL})


def test_contradictions():
    assert problems({"minWorkers": 4, "maxWorkers": 2, **MINIMAL}) == [
        "minWorkers: 4: expected at most maxWorkers, 2"
    ]
    [problem] = problems({"responseTimeout": 10, "handler": {**MINIMAL["handler"], "deadline_seconds": 10}})
    assert "less than responseTimeout" in problem


def test_the_deadline_lies_under_the_response_timeout():
    assert read_config({"responseTimeout": 100, **MINIMAL}).deadline_seconds == 80
    given_one = {"responseTimeout": 100, "handler": {**MINIMAL["handler"], "deadline_seconds": 5}}
    assert read_config(given_one).deadline_seconds == 5


@pytest.mark.parametrize("task", TASKS)
def test_the_written_document_reads_back_the_same(task):
    needed = {"layers": [1, 2]} if task == "prompt-encoding" else {}
    config = read_config({"minWorkers": 2, "maxWorkers": 3, "handler": {"task": task, "max_items": 7, **needed}})
    document = yaml.safe_load(yaml.safe_dump(config.document()))
    assert read_config(document) == config
    assert {"minWorkers", "maxWorkers", "batchSize", "maxBatchDelay", "responseTimeout"} <= document.keys()


VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=2)
)


@given(st.dictionaries(st.sampled_from([*HandlerConfig.__dataclass_fields__, "x"]) | st.integers(), VALUES))
def test_any_section_is_read_or_refused(section):
    try:
        read_config({"handler": section})
    except ConfigError as err:
        assert err.problems


def test_the_nearest_key():
    assert nearest("maxworker", ["maxWorkers", "minWorkers"]) == "maxWorkers"
    assert nearest("zzz", ["maxWorkers"]) is None
