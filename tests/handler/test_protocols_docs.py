"""docs/protocols.md: what its examples say is what workers answer, and its tables are the code."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest

from handler.protocols import table
from tests.support import frames, scenarios, tiny_models

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "protocols.md").read_text()
SIZE = tiny_models.SIZES["hidden_size"]
PATHS = {"OpenAI": "v1/embeddings"}


def examples():
    """(protocol, task, request, answer) of every example."""
    for protocol, section in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", GUIDE, re.MULTILINE | re.DOTALL):
        for task, block in re.findall(r"^### ([\w-]+)\n\n```json\n(.*?)```", section, re.MULTILINE | re.DOTALL):
            lines = block.splitlines()
            for request, answer in zip(lines[::2], lines[1::2], strict=True):
                yield protocol, task, request, json.loads(answer)


EXAMPLES = list(examples())


def assert_told(told, answered):
    """What the guide tells is what was answered: numbers are rounded to four digits, and vectors cut to two."""
    if isinstance(told, dict):
        assert list(told) == list(answered)
        for name, value in told.items():
            assert_told(value, answered[name])
    elif isinstance(told, list):
        vector = len(told) == 2 and len(answered) == SIZE
        assert vector or len(told) == len(answered)
        for one, other in zip(told, answered, strict=not vector):
            assert_told(one, other)
    elif isinstance(told, float):
        assert answered == pytest.approx(told, abs=2e-4)
    elif isinstance(told, str) and told.startswith(("[", "{")):  # JSON in BYTES
        assert_told(json.loads(told), json.loads(answered))
    elif isinstance(told, str) and told.endswith("="):
        vectors = [np.frombuffer(base64.b64decode(text), "<f4").tolist() for text in (told, answered)]
        assert_told(*vectors)
    else:
        assert told == answered


@pytest.mark.parametrize(("protocol", "task", "request_", "answer"), EXAMPLES)
def test_an_example(services, protocol, task, request_, answer):
    [response] = frames.predict(services[task], [frames.post(request_.encode(), url_path=PATHS.get(protocol, ""))])
    assert response.status == 200, response.body
    assert_told(answer, json.loads(response.body))


def test_every_task_has_an_example_in_every_protocol():
    for protocol in ("Hugging Face", "KServe v1 and Vertex AI", "Open Inference Protocol"):
        assert {task for name, task, *_ in EXAMPLES if name == protocol} == set(scenarios.TASKS)


@pytest.mark.parametrize("task", scenarios.TASKS)
def test_the_table_of_tensors_is_the_code(services, task):
    [row] = re.findall(rf"^\| {task} \| (.*)\|$", GUIDE, re.MULTILINE)
    inputs, outputs = row.split(" | ")
    told = services[task].handler.pipeline.task
    for column in told.outputs:
        assert re.search(rf"`{column.name}`[^,]*{column.datatype}|`{column.name}` and", outputs), column
    for column in told.inputs:
        named = f"`{column.name}`" in inputs
        assert named or ("tokens" in inputs and column.name in ("input_ids", "attention_mask", "token_type_ids"))


def test_the_table_of_protocols_is_the_code():
    for key in (*table.KEYS, *table.PATHS):
        assert f"`{key}`" in GUIDE.partition("## Hugging Face")[0]
