"""Text generation as Hugging Face's services have it, beside transformers' pipeline."""

from __future__ import annotations

import json
from functools import partial

import pytest

from handler.generation import hugging_face_route
from tests.support import tiny_models, worker
from tests.support.reference import continued, generated
from tests.support.rounds import NEW, PROMPTS, Frontend, messages, settled, whole, wing

HUB = "v1/hub"
# What LangChain's HuggingFaceEndpoint sends by default (langchain-huggingface 1.2), but for the size.
LANGCHAIN = {
    "max_new_tokens": NEW,
    "top_k": None,
    "top_p": 0.95,
    "typical_p": 0.95,
    "temperature": 0.8,
    "repetition_penalty": None,
    "return_full_text": False,
    "truncate": None,
    "stop": [],
    "seed": None,
    "do_sample": False,
    "watermark": False,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_models.chatter(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture(scope="module")
def service(model):
    names = ["org/tiny"]
    return worker.start(model.parent, task="text-generation", max_new_tokens=64, served_model_names=names)


@pytest.fixture
def frontend(service):
    return Frontend(service)


@pytest.fixture(scope="module")
def pipeline(model):
    """What transformers' pipeline answers, greedily."""
    return partial(continued, model, max_new_tokens=NEW)


@pytest.mark.parametrize("path", ["", HUB])
@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize(
    "inputs",
    [PROMPTS[0], [PROMPTS[0]], list(PROMPTS[:3]), messages(PROMPTS[1])],
    ids=["text", "one", "three", "chat"],
)
def test_it_answers_as_the_pipeline_does(frontend, pipeline, inputs, full, path):
    parameters = {"max_new_tokens": NEW, "return_full_text": full}
    answered = frontend.ask({"inputs": inputs, "parameters": parameters}, path)
    assert answered.status == 200
    assert answered.document == pipeline(inputs, return_full_text=full)


def test_several_answers_stand_as_the_pipelines(frontend, pipeline):
    asked = {"num_return_sequences": 3, "do_sample": True, "temperature": 2.0, "return_full_text": True}
    answers = frontend.ask({"inputs": PROMPTS[0], "parameters": {**asked, "max_new_tokens": NEW}}).document
    beside = pipeline(PROMPTS[0], **asked)
    assert [one.keys() for one in answers] == [one.keys() for one in beside]
    assert len({one["generated_text"] for one in answers}) > 1
    two = frontend.ask({"inputs": ["a", "b"], "parameters": {**asked, "max_new_tokens": 2}}).document
    assert [[one["generated_text"][0] for one in each] for each in two] == [["a"] * 3, ["b"] * 3]


@pytest.mark.parametrize("path", ["", HUB, "generate-stream"])
def test_a_stream_has_text_generation_inferences_events(frontend, model, path):
    text, _, _ = generated(model, PROMPTS[1], NEW, chat=False)
    asked = {"inputs": PROMPTS[1], "parameters": {"max_new_tokens": NEW}, "stream": True}
    answered = frontend.ask_in_pieces(asked, path)
    assert answered.pieces[0].content_type.startswith("text/event-stream")
    *events, last = answered.events
    assert [event["index"] for event in answered.events] == list(range(1, len(events) + 2))
    assert "".join(event["token"]["text"] for event in events) == whole(text) == last["generated_text"]
    assert {event["generated_text"] for event in events} == {None}
    assert not any(event["token"]["special"] for event in events)
    assert last["token"] == {"id": -1, "text": "", "logprob": None, "special": True}


def test_a_streams_whole_text_begins_with_the_input_where_that_is_asked_for(frontend):
    asked = {"inputs": PROMPTS[1], "parameters": {"max_new_tokens": 4, "return_full_text": True}, "stream": True}
    *events, last = frontend.ask(asked).events
    assert last["generated_text"] == PROMPTS[1] + "".join(event["token"]["text"] for event in events)


@pytest.mark.parametrize("stream", [True, False])
def test_details_say_why_an_answer_ended(frontend, model, stream):
    for prompt in PROMPTS[:2]:
        _, size, new = generated(model, prompt, NEW, chat=False)
        asked = {"inputs": prompt, "parameters": {"max_new_tokens": NEW, "details": True}, "stream": stream}
        answered = frontend.ask(asked)
        details = (answered.events[-1] if stream else answered.document[0])["details"]
        why = "length" if new == NEW else "eos_token"
        told = {"finish_reason": why, "input_length": size, "generated_tokens": new, "seed": None}
        assert details == (told if stream else {**told, "prefill": [], "tokens": []})


def test_what_belongs_to_a_draw_counts_for_nothing_where_none_is_made(frontend, pipeline):
    """As in `generate`: LangChain sends it so."""
    answered = frontend.ask({"inputs": PROMPTS[0], "parameters": LANGCHAIN})
    assert answered.document == pipeline(PROMPTS[0], return_full_text=False)


def test_the_models_other_names_are_its_own_to_the_engine(service):
    asked = {"inputs": "a", "parameters": {"adapter_id": "org/tiny"}}
    route = hugging_face_route.read(asked, wing(service).served)
    assert json.loads(route.ask.body)["model"] == "tiny"


def test_a_draw_is_made_where_it_is_asked_for(frontend):
    ask = {"inputs": PROMPTS[0], "parameters": {"max_new_tokens": NEW, "do_sample": True}}
    drawn = [frontend.post(ask) for _ in range(8)]
    frontend.run()
    assert len({client.document[0]["generated_text"] for client in drawn}) > 1


def test_it_ends_at_a_stop_string(frontend, model):
    text, _, _ = generated(model, PROMPTS[0], NEW, chat=False)
    for name in ("stop", "stop_sequences"):
        answered = frontend.ask({"inputs": PROMPTS[0], "parameters": {name: [text[4:7]]}}).document
        assert answered == [{"generated_text": text[: text.index(text[4:7])]}]


@pytest.mark.parametrize(
    ("document", "status", "says"),
    [
        ({"inputs": 7}, 422, "inputs: expected a string"),
        ({"inputs": []}, 422, "inputs: expected a string"),
        ({"inputs": ["a", 7]}, 422, "inputs: expected a string"),
        (
            {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}]},
            422,
            "inputs: expected",
        ),
        ({"inputs": [{"role": "wizard", "content": "a"}]}, 400, "messages[0].role"),
        ({"inputs": "a", "prompt": "b"}, 422, "prompt: unknown key"),
        ({"inputs": "a", "parameters": 5}, 422, "parameters: expected an object"),
        ({"inputs": "a", "options": {"wait": True}}, 422, "wait"),
        ({"inputs": "a", "parameters": {"tempersture": 1}}, 422, "parameters.tempersture: unknown key; did you"),
        ({"inputs": "a", "parameters": {"temperature": 3}}, 422, "parameters.temperature"),
        ({"inputs": "a", "parameters": {"max_new_tokens": 0}}, 422, "parameters.max_new_tokens"),
        ({"inputs": "a", "parameters": {"max_new_tokens": 65}}, 422, "the limit is 64"),
        ({"inputs": ["a", "b"], "parameters": {"details": True}}, 422, "parameters.details: expected one input"),
        ({"inputs": "a", "parameters": {"details": True, "stop": ["b"]}}, 422, "parameters.details: this engine"),
        ({"inputs": "a", "parameters": {"decoder_input_details": True}}, 422, "input_details: expected false"),
        ({"inputs": "a", "parameters": {"num_beams": 4}}, 422, "parameters.num_beams: expected 1"),
        ({"inputs": "a", "parameters": {"typical_p": 0.9}}, 422, "parameters.typical_p: expected 1"),
        ({"inputs": "a", "parameters": {"stop": ["a"], "stop_sequences": ["b"]}}, 422, "another name of stop"),
        ({"inputs": "a", "parameters": {"truncate": 2}}, 422, "parameters.truncate: this engine"),
        (
            {"inputs": "a", "parameters": {"grammar": {"type": "regex", "value": "(a"}}},
            400,
            "unclosed group",
        ),
        ({"inputs": "a", "parameters": {"grammar": {"type": [], "value": "a"}}}, 422, "a type of json"),
        ({"inputs": "a", "parameters": {"seed": "7"}}, 422, "parameters.seed: expected a whole number"),
        ({"inputs": "a", "parameters": {"repetition_penalty": 0}}, 422, "repetition_penalty: expected a number"),
        (
            {"inputs": "a", "parameters": {"adapter_id": "other"}},
            404,
            "parameters.adapter_id: expected one of tiny",
        ),
        ({"inputs": ["a", "b"], "stream": True}, 422, "stream: expected one input"),
        ({"inputs": "a", "parameters": {"num_return_sequences": 2}, "stream": True}, 422, "one answer to it"),
        ({"inputs": ["a"] * 65}, 400, "at most"),
        ({"inputs": "a " * 600}, 400, "the model reads at most 512"),
        ({"inputs": ["a", "a " * 600]}, 400, "the model reads at most 512"),
    ],
)
def test_bad_input_is_refused_as_these_services_do(service, frontend, document, status, says):
    answered = frontend.ask(document)
    assert answered.status == status, answered.body
    assert answered.document == {"error": answered.document["error"], "error_type": "validation"}
    assert says in answered.document["error"]
    settled(service)


@pytest.mark.parametrize("body", [b"[", b"[]", json.dumps({"prompt": "a"}).encode()])
def test_a_path_of_its_own_refuses_in_its_own_shape(frontend, body):
    answered = frontend.ask(body, HUB)
    assert answered.status in (400, 422) and answered.document.keys() == {"error", "error_type"}
