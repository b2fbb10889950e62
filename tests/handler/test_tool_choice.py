"""Calls of tools by the transformers engine: the model's own, and those that a client wants (`tool_choice`)."""

from __future__ import annotations

import json

import jsonschema
import pytest

from handler.generation import formats, tool_choice
from tests.support import tiny_models, worker
from tests.support.rounds import Frontend, messages, settled

CHAT, RESPONSES = "v1/chat/completions", "v1/responses"
PLACE = {  # its references are to itself, wherever it stands
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/City"}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"City": {"enum": ["Paris", 'the "Hague"']}},
}
SAY = {
    "type": "object",
    "properties": {"words": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2}},
    "required": ["words"],
    "additionalProperties": False,
}
SCHEMAS = {
    "weather": PLACE,
    "say": SAY,
    "now": {"type": "object", "properties": {}, "additionalProperties": False},
}


def function(name, **more):
    return {"type": "function", "function": {"name": name, "description": "…", **more}}


TOOLS = [function("weather", parameters=PLACE, strict=True), function("say", parameters=SAY), function("now")]
HERE = {"tools": TOOLS}
NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A model whose template shows it tools."""
    model = tiny_models.shown_tools(tiny_models.chatter(tmp_path_factory.mktemp("chat") / "model", positions=4096))
    return worker.start(model.parent, task="text-generation", max_new_tokens=400)


@pytest.fixture
def frontend(service):
    return Frontend(service)


def called(client):
    """Calls, text and reason of an answer, whole or streamed."""
    if not client.pieces[0].content_type.startswith("text/event-stream"):
        [choice] = client.document["choices"]
        return choice["message"].get("tool_calls", []), choice["message"]["content"], choice["finish_reason"]
    choices = [event["choices"][0] for event in client.events[:-1] if event["choices"]]
    deltas = [choice["delta"] for choice in choices]
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert [call.pop("index") for call in calls] == list(range(len(calls)))
    return calls, "".join(delta.get("content") or "" for delta in deltas), choices[-1]["finish_reason"]


def fits(call):
    jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMAS[call["function"]["name"]])
    return call["type"] == "function" and bool(call["id"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", [{"temperature": 0}, {"temperature": 1.5, "seed": 3}, {"stop": "never said"}])
def test_the_function_that_is_named_is_called(frontend, how, stream):
    asked = {"messages": messages("a"), **HERE, "tool_choice": NAMED, "stream": stream}
    [call], text, reason = called(frontend.ask({**asked, **how}, CHAT))
    assert fits(call) and call["function"]["name"] == "weather"
    assert (text, reason) == ("", "tool_calls")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("alone", [True, False])
def test_what_is_required_is_one_call_or_several(frontend, stream, alone):
    """Of several answers, of which each is its own."""
    many, names = set(), set()
    for seed in range(5):
        asked = {"messages": messages("a"), **HERE, "tool_choice": "required", "temperature": 1.5, "seed": seed}
        asked["max_tokens"] = 200
        answered = frontend.ask({**asked, "parallel_tool_calls": not alone, "stream": stream}, CHAT)
        calls, text, reason = called(answered)
        # A model of random weights may go on until the cap.
        assert reason == "tool_calls" and (not text or len(calls) > 1)
        assert all(map(fits, calls)) and len({call["id"] for call in calls}) == len(calls)
        many.add(len(calls))
        names |= {call["function"]["name"] for call in calls}
    assert len(names) > 1
    assert many == {1} if alone else max(many) > 1


def test_several_answers_with_their_own_calls(frontend):
    asked = {"messages": messages("a"), **HERE, "tool_choice": NAMED, "n": 3, "temperature": 1.5, "seed": 1}
    choices = frontend.ask(asked, CHAT).document["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert all(fits(call) for choice in choices for call in choice["message"]["tool_calls"])


@pytest.mark.parametrize("stream", [False, True])
def test_each_token_of_a_call_is_told_of(frontend, stream):
    asked = {"messages": messages("a"), **HERE, "tool_choice": NAMED, "logprobs": True, "top_logprobs": 1}
    answered = frontend.ask({**asked, "stream": stream, "stream_options": {"include_usage": True}}, CHAT)
    documents = answered.events[:-1] if stream else [answered.document]
    told = [
        one
        for document in documents
        for choice in document["choices"]
        for one in (choice.get("logprobs") or {}).get("content", ())
    ]
    [usage] = [document["usage"] for document in documents if document.get("usage")]
    [call], _, _ = called(answered)
    assert len(told) == usage["completion_tokens"]
    text = b"".join(bytes(one["bytes"]) for one in told).decode()
    assert text.startswith(call["function"]["arguments"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", [NAMED, "required"])
def test_a_call_that_is_cut_off_is_text(frontend, choice, stream):
    asked = {"messages": messages("a"), **HERE, "tool_choice": choice, "max_tokens": 8, "stream": stream}
    calls, text, reason = called(frontend.ask(asked, CHAT))
    assert (calls, reason) == ([], "length") and text.startswith('{"city"' if choice == NAMED else '{"name"')


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("parallel", [True, False])
def test_the_models_own_calls(frontend, parallel, stream):
    """Which it is made to say here. With others not wanted the first one counts, as vLLM has it."""
    one = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    said = {"structured_outputs": {"choice": [f"so: {one}{one}"]}, "parallel_tool_calls": parallel}
    answered = frontend.ask({"messages": messages("a"), **HERE, **said, "stream": stream}, CHAT)
    calls, text, reason = called(answered)
    assert [call["function"] for call in calls] == [{"name": "now", "arguments": "{}"}] * (2 if parallel else 1)
    assert (text, reason) == ("so:", "tool_calls")


def test_no_call_is_wanted(service, frontend):
    """The model is not shown the tools."""
    asked = {"messages": messages("a"), "max_tokens": 5, "temperature": 0}
    without = frontend.ask(asked, CHAT).document
    for tools, same in (({"tool_choice": "none"}, True), ({"tool_choice": "auto"}, False), ({}, False)):
        answered = frontend.ask({**asked, **HERE, **tools}, CHAT).document
        assert (answered["usage"] == without["usage"]) == same
    settled(service)


@pytest.mark.parametrize("stream", [False, True])
def test_as_a_response(frontend, stream):
    tools = [{"type": "function", **tool["function"]} for tool in TOOLS]
    for choice in ({"type": "function", "name": "weather"}, "required"):
        asked = {"input": "a", "tools": tools, "tool_choice": choice, "parallel_tool_calls": False}
        answered = frontend.ask({**asked, "stream": stream}, RESPONSES)
        document = answered.events[-1]["response"] if stream else answered.document
        assert document["status"] == "completed" and document["output"]
        for item in document["output"]:
            assert item["type"] == "function_call"
            jsonschema.validate(json.loads(item["arguments"]), SCHEMAS[item["name"]])


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({**HERE, "tool_choice": "sometimes"}, "tool_choice: expected auto, none, required"),
        ({**HERE, "tool_choice": ["auto"]}, "tool_choice: expected auto, none, required"),
        ({**HERE, "tool_choice": {"type": "function"}}, "tool_choice: expected auto, none, required"),
        ({**HERE, "tool_choice": {**NAMED, "type": "custom"}}, "tool_choice: expected auto, none, required"),
        ({**HERE, "tool_choice": function("gone")}, "tool_choice: no tool has this name"),
        ({"tool_choice": "required"}, "tools: is missing"),
        ({"tool_choice": NAMED}, "tools: is missing"),
        ({"tools": [], "tool_choice": "required"}, "tools: is missing"),
        ({**HERE, "parallel_tool_calls": 1}, "parallel_tool_calls: expected true or false"),
        ({"tools": [function("f", parameters=[1])], "tool_choice": "required"}, "expected an object"),
        ({"tools": [function("f", parameters="{}")], "tool_choice": "required"}, "expected an object"),
        (
            {"tools": [function("f", parameters={"type": "nothing"})], "tool_choice": "required"},
            "tools: this format",
        ),
        ({"tools": [function(f"f{n}") for n in range(129)], "tool_choice": "required"}, "the limit is 128"),
        ({**HERE, "tool_choice": NAMED, "response_format": {"type": "json_object"}}, "not both"),
    ],
)
def test_what_cannot_be_called_is_refused(service, frontend, asked, says):
    answered = frontend.ask({"messages": messages("a"), **asked}, CHAT)
    assert answered.status == 400 and says in answered.document["error"]["message"], answered.document
    settled(service)


def test_many_tools_are_bounded_together():
    items = {"type": "object", "properties": {"a": {"type": "array", "maxItems": formats.MOST_ITEMS // 2 + 1}}}
    choice = tool_choice.Choice({"f": items, "g": items}, named=False, alone=False)
    with pytest.raises(formats.Unkept, match="together"):
        formats.Formats(None, 0).of_calls(choice)
