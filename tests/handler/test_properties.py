"""Any bytes get a status and never an exception; a bad row leaves the others' bytes unchanged."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import frames, tiny_models, worker
from tests.support.rounds import Frontend

SETTINGS = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[*settings().suppress_health_check, HealthCheck.function_scoped_fixture],
)

CONTENT_TYPES = st.sampled_from(
    [
        "application/json",
        "text/plain",
        "",
        "application/octet-stream",
        "text/plain;charset=latin1",
        "image/png",
        "a/b/c;;=",
    ]
)
FIELDS = ["text", "texts", "top_k", "truncation", "query", "candidate_labels"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
BODIES = st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode())
ROWS = st.builds(frames.post, BODIES, CONTENT_TYPES) | st.builds(
    frames.form,
    st.dictionaries(st.sampled_from(["text", "texts", "top_k", "body", "data", "x"]), st.binary(max_size=20)),
)
TEXTS = st.text(alphabet="abc the film good.", max_size=60)


@pytest.mark.parametrize("decode", ["false", "true"])
@SETTINGS
@given(rows=st.lists(ROWS, min_size=1, max_size=6))
def test_any_bytes_get_a_status(services, monkeypatch, decode, rows):
    monkeypatch.setenv("TS_DECODE_INPUT_REQUEST", decode)
    for service in services.values():
        responses = frames.predict(service, rows)
        assert len(responses) == len(rows)
        for response in responses:
            assert response.status == 200 or 400 <= response.status < 500
            json.loads(response.body)
            assert response.status == 200 or len(response.body) < 1000


# Task -> what it needs beside texts.
BESIDE = {
    "text-classification": {},
    "feature-extraction": {},
    "text-ranking": {"query": "a good film"},
    "zero-shot-classification": {"candidate_labels": ["film", "battery"]},
}


def good(text: str, task: str = "text-classification") -> frames.Request:
    return frames.post(json.dumps({"texts": [text, text + "."], **BESIDE[task]}).encode())


def timeless(body: bytes) -> bytes:
    return re.sub(rb'"inference_time_ms":[0-9.e-]+', b"", body)


@SETTINGS
@given(texts=st.lists(TEXTS, min_size=1, max_size=5), bad=st.lists(BODIES, min_size=1, max_size=3), data=st.data())
def test_a_bad_row_leaves_the_others_bytes_unchanged(services, texts, bad, data):
    rows = [(text, b"") for text in texts]
    for body in bad:
        rows.insert(data.draw(st.integers(0, len(rows))), (None, b"\x00" + body))
    for task in BESIDE:
        sent = [frames.post(body) if text is None else good(text, task) for text, body in rows]
        alone = frames.predict(services[task], [good(text, task) for text in texts])
        mixed = frames.predict(services[task], sent)
        kept = [response for response, (text, _) in zip(mixed, rows, strict=True) if text is not None]
        assert {response.status for response in kept} == {200}
        assert [timeless(response.body) for response in kept] == [timeless(response.body) for response in alone]
        assert all(400 <= r.status < 500 for r, (text, _) in zip(mixed, rows, strict=True) if text is None)


def probabilities(response: frames.Response) -> list:
    return [prediction["probabilities"] for prediction in json.loads(response.body)["predictions"]]


@SETTINGS
@given(texts=st.lists(TEXTS, min_size=2, max_size=8), data=st.data())
def test_an_answer_does_not_depend_on_what_shares_its_batch(services, texts, data):
    service = services["text-classification"]
    order = data.draw(st.permutations(range(len(texts))))
    together = frames.predict(service, [good(texts[index]) for index in order])
    for response, index in zip(together, order, strict=True):
        [alone] = frames.predict(service, [good(texts[index])])
        np.testing.assert_allclose(probabilities(response), probabilities(alone), atol=1e-5)


VALUES = JSON | st.sampled_from(
    [1, 0, -1, 2**64, 1e308, "a", "\ud800", ["a"], [{"role": "user", "content": "a"}], {"type": "text"}, [[1]]]
)
ASKED = {
    "": {"prompt": "a film", "max_new_tokens": 2},
    "v1/hub": {"inputs": "a film", "parameters": {"max_new_tokens": 2}},
    "v2/generate": {"text_input": "a film", "max_tokens": 2},
    "v1/chat/completions": {"messages": [{"role": "user", "content": "a film"}], "max_tokens": 2},
    "v1/completions": {"prompt": "a film", "max_tokens": 2},
    "v1/responses": {"input": [{"role": "user", "content": "a film"}], "max_output_tokens": 2},
}
OTHERS = {
    "v2/generate": ("parameters", "stream", "stop", "seed", "repetition_penalty", "exclude_input_in_output"),
    "": ("messages", "stream", "stop", "temperature", "top_k", "top_p", "seed", "presence_penalty"),
    "v1/responses": ("instructions", "stream", "text", "tools", "tool_choice", "reasoning", "store", "metadata"),
    "v1/hub": (
        "do_sample",
        "temperature",
        "top_k",
        "stop",
        "num_return_sequences",
        "details",
        "return_full_text",
        "grammar",
    ),
}


@pytest.fixture(scope="module")
def generating(tmp_path_factory):
    model = tiny_models.chatter(tmp_path_factory.mktemp("chat") / "model")
    return worker.start(model.parent, task="text-generation", max_new_tokens=4)


@settings(SETTINGS, max_examples=300)
@given(data=st.data())
def test_any_request_to_generate_gets_an_answer_or_a_reason(generating, data):
    """And its engine goes on."""
    path = data.draw(st.sampled_from(sorted(ASKED)))
    asked = json.loads(json.dumps(ASKED[path]))
    held = asked["parameters"] if path == "v1/hub" and data.draw(st.booleans()) else asked
    fields = generating.handler.pipeline.engine.fields.get(path, OTHERS.get(path, ()))
    for name in data.draw(st.lists(st.sampled_from([*held, *sorted(fields)]), min_size=1, max_size=2)):
        held[name] = data.draw(VALUES)
    if not path and data.draw(st.booleans()):
        asked = {"instances": [asked, data.draw(VALUES | st.just("a film"))], "parameters": data.draw(VALUES)}
    frontend = Frontend(generating)
    answered = frontend.ask(asked, path)
    assert answered.status == 200 or 400 <= answered.status < 500, answered.body
    assert frontend.ask(ASKED[""]).status == 200
