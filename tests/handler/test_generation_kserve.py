"""Text generation as KServe's two protocols have it, which are Vertex AI's and Triton's too."""

from __future__ import annotations

import json
import time

import pytest

from handler.wire import JSON, Message
from tests.support import tiny_models, worker
from tests.support.reference import generated
from tests.support.rounds import NEW, PROMPTS, Frontend, messages, settled, whole, wing

GENERATE, GENERATE_STREAM = "v2/generate", "v2/generate_stream"
ABOUT = {"model_name": "tiny", "model_version": "1.0"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Of which no answer ends before its cap."""
    return tiny_models.endless(tiny_models.chatter(tmp_path_factory.mktemp("chat") / "model"))


@pytest.fixture(scope="module")
def service(model):
    return worker.start(model.parent, task="text-generation", max_new_tokens=400, max_response_bytes=100_000)


@pytest.fixture
def frontend(service):
    return Frontend(service)


def natively(frontend, **asked):
    answered = frontend.ask(asked)
    assert answered.status == 200, answered.body
    return answered.document


def test_each_instance_is_answered_as_it_is_alone(frontend):
    instances = [
        PROMPTS[0],
        {"prompt": PROMPTS[1]},
        {"messages": messages(PROMPTS[2]), "stop": "e"},
        {"prompt": PROMPTS[3], "temperature": 1.5, "seed": 7},
    ]
    answered = frontend.ask({"instances": instances, "parameters": {"max_new_tokens": NEW}})
    assert answered.status == 200 and answered.pieces[0].content_type == "application/json"
    asked = [{"prompt": one} if isinstance(one, str) else one for one in instances]
    assert answered.document == {
        "predictions": [natively(frontend, **one, max_new_tokens=NEW) for one in asked],
    }
    [one] = frontend.ask({"instances": [{"prompt": PROMPTS[0], "max_tokens": NEW}]}).document["predictions"]
    assert one == answered.document["predictions"][0]


def test_instances_share_a_step(frontend, service):
    client = frontend.post({"instances": ["a"] * 8, "parameters": {"max_new_tokens": 300}})
    end = time.monotonic() + 60
    while wing(service).engine.load().running < 8:
        assert time.monotonic() < end and not client.done
        frontend.round()
    frontend.run(client)
    assert len({json.dumps(one) for one in client.document["predictions"]}) == 1


def test_who_leaves_takes_all_instances_along(frontend, service):
    client = frontend.post({"instances": ["a"] * 8, "parameters": {"max_new_tokens": 400}})
    while wing(service).engine.load().running < 8:
        frontend.round()
    frontend.live.clear()
    frontend.post({"prompt": "a", "max_new_tokens": 1})
    frontend.run()
    settled(service)
    assert not client.done


def test_an_instance_that_is_refused_ends_its_neighbours(frontend, service):
    client = frontend.post({"instances": ["a", "a " * 600], "parameters": {"max_new_tokens": 400}})
    frontend.run(client)
    assert client.status == 400 and client.document.keys() == {"error"}
    assert client.document["error"].startswith("instances[1]: ") and "at most 512" in client.document["error"]
    settled(service)


@pytest.mark.parametrize(
    ("document", "status", "says"),
    [
        ({"instances": []}, 422, "instances: expected a list of at least one"),
        ({"instances": "a"}, 422, "instances: expected a list of at least one"),
        ({"instances": [7]}, 422, "instances[0]: expected a string, or an object"),
        ({"instances": ["a", {}]}, 422, "instances[1]: prompt: expected either prompt or messages"),
        ({"instances": ["a", {"prompt": "a", "topp": 1}]}, 422, "instances[1]: topp: unknown key; did you mean"),
        ({"instances": ["a"], "parameters": []}, 422, "parameters: expected an object"),
        ({"instances": ["a"], "parameters": {"prompt": "b"}}, 422, "parameters: prompt is also in instances[0]"),
        ({"instances": ["a"], "parameters": {"max_new_tokens": 0}}, 422, "instances[0]: max_new_tokens"),
        ({"instances": ["a"], "parameters": {"max_new_tokens": 401}}, 422, "the limit is 400"),
        ({"instances": ["a"], "parameters": {"stream": True}}, 422, "stream: predictions are whole"),
        ({"instances": ["a"], "stream": True}, 422, "stream: unknown key"),
        ({"instances": ["a"] * 65}, 413, "instances: 65 items; the limit is 64"),
        ({"instances": [{"messages": [{"role": "wizard"}]}]}, 400, "instances[0]: messages[0].role"),
        ({"instances": [{"messages": messages("wizardry")}]}, 400, "instances[0]: the chat template refuses"),
    ],
)
def test_wrong_instances_are_named(frontend, document, status, says):
    answered = frontend.ask(document)
    assert (answered.status, answered.document.keys()) == (status, {"error"}), answered.body
    assert says in answered.document["error"]


def test_text_goes_in_and_comes_out(frontend, model):
    wanted = generated(model, PROMPTS[0], NEW, chat=False)[0]
    for asked in (
        {"text_input": PROMPTS[0], "parameters": {"max_tokens": NEW}},
        {"text_input": PROMPTS[0], "max_tokens": NEW, "stream": False, "exclude_input_in_output": True},
    ):
        answered = frontend.ask(asked, GENERATE)
        assert answered.document == {**ABOUT, "text_output": wanted}
    beside = {"text_input": PROMPTS[0], "parameters": {"max_tokens": NEW, "exclude_input_in_output": False}}
    assert frontend.ask(beside, GENERATE).document["text_output"] == PROMPTS[0] + wanted


@pytest.mark.parametrize("echoed", [False, True])
def test_text_comes_out_piece_by_piece(frontend, model, echoed):
    wanted = generated(model, PROMPTS[0], 60, chat=False)[0]
    asked = {"text_input": PROMPTS[0], "max_tokens": 60, "parameters": {"exclude_input_in_output": not echoed}}
    streamed = frontend.ask_in_pieces(asked, GENERATE_STREAM)
    assert streamed.pieces[0].content_type.startswith("text/event-stream") and b"[DONE]" not in streamed.body
    events = streamed.events
    assert all(event.keys() == {*ABOUT, "text_output", "done"} for event in events)
    assert [event["done"] for event in events] == [False] * (len(events) - 1) + [True] and len(events) > 2
    text = "".join(event["text_output"] for event in events)
    assert whole(text) == whole(PROMPTS[0] * echoed + wanted)


@pytest.mark.parametrize("path", [GENERATE, GENERATE_STREAM])
@pytest.mark.parametrize(
    ("document", "status", "says"),
    [
        (b"{", 400, "not valid JSON"),
        ({}, 422, "text_input: is missing"),
        ({"text_input": 7}, 422, "text_input: expected a string"),
        ({"text_input": "a", "parameters": {"max_tokens": 0}}, 422, "max_tokens"),
        ({"text_input": "a", "parameters": {"max_tokens": 401}}, 422, "the limit is 400"),
        ({"text_input": "a", "max_tokens": 4, "parameters": {"max_tokens": 4}}, 422, "is also beside it"),
        ({"text_input": "a", "parameters": {"best_of": 2}}, 422, "best_of: expected 1"),
        ({"text_input": "a", "parameters": {"max_token": 2}}, 422, "did you mean max_tokens"),
        ({"text_input": "a " * 600}, 400, "the model reads at most 512"),
    ],
)
def test_wrong_text_input_is_refused(frontend, path, document, status, says):
    answered = frontend.ask(document, path)
    assert (answered.status, answered.document.keys()) == (status, {"error"}), answered.body
    assert says in answered.document["error"]


def test_generate_streams_nothing(frontend):
    answered = frontend.ask({"text_input": "a", "parameters": {"stream": True}}, GENERATE)
    assert answered.status == 422 and "ask generate_stream" in answered.document["error"]


def test_other_paths_of_the_protocol_are_not_there(frontend):
    answered = frontend.ask({"inputs": []}, "v2/infer")
    assert answered.status == 404 and answered.document.keys() == {"error"}


def test_instances_in_a_file_are_answered_too(service):
    body = json.dumps({"instances": ["a", "b"], "parameters": {"max_new_tokens": 2}}).encode()
    [reply] = wing(service).replies([Message(body, JSON)])
    assert len(json.loads(reply.body)["predictions"]) == 2
