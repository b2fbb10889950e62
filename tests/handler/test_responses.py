"""OpenAI's Responses API: what is asked of the engine for it, and what its answers say."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from openai.types.responses import Response

from handler.errors import BadRequest
from handler.generation import rounds
from handler.generation.openai_protocol import Usage
from handler.generation.openai_requests import Limits
from handler.generation.responses_events import Answer, Events, as_response
from handler.generation.responses_requests import ECHOED, messages, read
from tests.support import tiny_models, worker
from tests.support.rounds import Frontend, a_response_says_what_a_chat_says, settled, wing

RESPONSES = "v1/responses"
ALL = frozenset(
    ("messages", "model", "max_tokens", "temperature", "top_p", "top_k", "stream", "tools", "tool_choice")
)
ALL |= {"parallel_tool_calls", "response_format", "reasoning_effort", "seed"}
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}
CALL = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
SCHEMA = {"type": "json_schema", "name": "answer", "schema": {"enum": ["yes", "no"]}}


def nested(levels):
    return json.loads(levels * '{"a":' + "1" + levels * "}")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    model = tiny_models.chatter(tmp_path_factory.mktemp("chat") / "model")
    return worker.start(model.parent, task="text-generation", max_new_tokens=64, served_model_names=["org/tiny"])


@pytest.fixture
def frontend(service):
    return Frontend(service)


def chat(**asked):
    return read({"input": "a", **asked}, ALL, Limits(64, 8, 8), draws=False)[0]


def test_a_response_is_a_chats_answer(frontend):
    a_response_says_what_a_chat_says(frontend)


@pytest.mark.parametrize(
    ("asked", "more"),
    [
        ({"max_output_tokens": 7, "top_p": 0.5}, {"max_tokens": 7, "top_p": 0.5}),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        (
            {"text": {"format": SCHEMA}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {n: SCHEMA[n] for n in ("name", "schema")},
                }
            },
        ),
        ({"reasoning": {"effort": "low", "summary": None}}, {"reasoning_effort": "low"}),
        (
            {"tools": [{**FUNCTION, "strict": None}], "tool_choice": {"type": "function", "name": "f"}},
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
                "tool_choice": {"type": "function", "function": {"name": "f"}},
            },
        ),
        ({"tools": [], "tool_choice": "auto", "parallel_tool_calls": True}, {}),
        ({"store": False, "background": False, "include": [], "truncation": "disabled", "top_logprobs": 0}, {}),
        ({"previous_response_id": None, "conversation": None, "text": {"verbosity": "medium"}}, {}),
        ({"metadata": {"a": "b"}, "user": "me", "prompt_cache_key": "a", "stream_options": {}}, {}),
        ({"seed": 7, "top_k": 5, "temperature": 1}, {"seed": 7, "top_k": 5, "temperature": 1}),
    ],
)
def test_what_a_chat_is_asked(asked, more):
    assert chat(**asked) == {"messages": [{"role": "user", "content": "a"}], **more}


def test_a_turn_is_one_message():
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "b"}]}
    said = {"role": "assistant", "content": "c"}
    made = messages([{"role": "user", "content": "a"}, thought, CALL, CALL, said, thought, said, said])
    assert [message["role"] for message in made] == ["user", "assistant", "assistant", "assistant", "assistant"]
    assert [len(message.get("tool_calls", ())) for message in made] == [0, 2, 0, 0, 0]
    assert [message.get("reasoning") for message in made] == [None, "b", None, "b", None]
    assert [message.get("content") for message in made] == ["a", None, "c", "c", "c"]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"store": True}, "store: nothing is kept here"),
        ({"background": True}, "background: nothing is kept here"),
        ({"previous_response_id": "resp_1"}, "previous_response_id: nothing is kept here"),
        ({"conversation": "conv_1"}, "conversation: nothing is kept here"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt: nothing is kept here"),
        ({"input": None}, "input: is missing"),
        ({"input": []}, "at least one item"),
        ({"input": 7}, "input: expected a string, or a list"),
        ({"input": ["a"]}, "input[0]: expected an object"),
        ({"input": [{"type": "input_text", "text": "a"}]}, "input[0]: expected an object, whose type"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]: expected an object, whose type"),
        ({"input": [{"type": {}}]}, "input[0]: expected an object, whose type"),
        ({"input": [{"role": "wizard", "content": "a"}]}, "input[0].role: expected one of user"),
        ({"input": [{"role": ["user"], "content": "a"}]}, "input[0].role: expected one of user"),
        ({"input": [{"role": "user"}]}, "input[0].content: expected a string, or"),
        ({"input": [{"role": "user", "content": []}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": "a", "contnet": "b"}]}, "did you mean content"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://a/b"}]}]},
            "parts of text",
        ),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "http://a/b"}]}]}, "of text"),
        ({"input": [{**CALL, "arguments": "{"}]}, "input[0].arguments: expected a JSON object"),
        ({"input": [{**CALL, "call_id": 7}]}, "input[0].call_id: expected a string"),
        ({"input": [{"type": "function_call_output", "call_id": "1"}]}, "input[0].output"),
        (
            {"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]},
            "encrypted_content: no reasoning",
        ),
        ({"instructions": 7}, "instructions: expected a string"),
        ({"max_output_tokens": 65}, "max_output_tokens: 65; the limit is 64"),
        ({"max_output_tokens": 0}, "max_output_tokens: expected a whole number"),
        ({"max_output_tokens": True}, "max_output_tokens"),
        ({"max_tokens": 5}, "max_tokens: this engine does not do this; did you mean max_output_tokens"),
        ({"messages": []}, "messages: this engine does not do this"),
        ({"n": 2}, "n: this engine does not do this"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"stream": "yes"}, "stream: expected true or false"),
        ({"stream_options": 5}, "stream_options"),
        ({"metadata": 5}, "metadata: expected an object"),
        ({"tools": 5}, "tools: expected a list of functions"),
        ({"tools": [{"type": "web_search"}]}, "tools: expected a list of functions"),
        ({"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}, "list of functions"),
        ({"tools": [{"type": "mcp", "server_label": "a", "server_url": "http://a"}]}, "list of functions"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "list of functions"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "web_search_preview"}}, "tool_choice: expected auto"),
        ({"tool_choice": "sometimes"}, "tool_choice: expected auto"),
        ({"text": "json"}, "text: expected an object"),
        ({"text": {"format": {"type": "json_schema"}}}, "text: expected an object"),
        ({"text": {"format": {"type": ["text"]}}}, "text: expected an object"),
        ({"text": {"verbosity": "high"}}, "text.verbosity: this engine does not do this"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary: this engine does not do this"),
        ({"reasoning": "low"}, "reasoning: expected an object"),
        ({"include": ["reasoning.encrypted_content"]}, "include: this engine does not do this"),
        ({"truncation": "auto"}, "truncation: this engine does not do this"),
        ({"top_logprobs": 3}, "top_logprobs: this engine does not do this"),
        ({"max_tool_calls": 3}, "max_tool_calls: this engine does not do this"),
    ],
)
def test_what_no_engine_is_asked(asked, says):
    with pytest.raises(BadRequest) as refused:
        chat(**asked)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("document", "status", "says"),
    [
        (b"{", 400, "not valid JSON"),
        ({"input": "a", "metadata": nested(300)}, 400, "nested too deep"),
        ({"input": "a", "metadata": nested(253)}, 400, "nested too deep"),
        ({"input": [{"role": "user", "content": nested(300)}]}, 400, "input[0].content"),
        ({}, 400, "input: is missing"),
        ({"input": "a", "model": "other"}, 404, "only tiny, org/tiny is served here"),
        ({"input": "a", "store": True}, 400, "nothing is kept here"),
        ({"input": "a", "tools": [FUNCTION]}, 400, "tools: this engine does not do this"),
        ({"input": "a", "tool_choice": "required"}, 400, "tool_choice: this engine does not do this"),
        (
            {"input": "a", "text": {"format": {**SCHEMA, "schema": {"not": {}}}}},
            400,
            "this format cannot be kept to",
        ),
        ({"input": "a", "reasoning": {"effort": "low"}}, 400, "reasoning.effort: this engine does not do this"),
        ({"input": "a", "logit_bias": {"5": 101}}, 400, "logit_bias: expected an object of tokens"),
        ({"input": "a", "temperature": 3}, 400, "temperature"),
        ({"input": "a " * 600}, 400, "the model reads at most 512"),
        ({"input": "wizardry"}, 400, "no wizardry"),
        ({"input": "wizardry", "stream": True}, 400, "no wizardry"),
        ({"input": "a", "chat_template_kwargs": {"chat_template": "x"}}, 400, "clients to say: chat_template"),
    ],
)
def test_bad_input_is_refused_in_the_protocols_own_shape(frontend, document, status, says):
    answered = frontend.ask(document, RESPONSES)
    error = answered.document["error"]
    assert answered.status == status, answered.body
    assert says in error["message"] and error["param"] is None


def test_an_answer_says_what_was_asked(frontend):
    asked = {
        "instructions": "be kind",
        "metadata": {"a": "b"},
        "max_output_tokens": 3,
        "top_p": 0.5,
        "model": None,
    }
    answered = frontend.ask({"input": "a", **asked}, RESPONSES).document
    assert {name: answered[name] for name in asked} == {**asked, "model": "tiny"}
    assert answered["usage"]["output_tokens"] == 3 and answered["incomplete_details"] == {
        "reason": "max_output_tokens"
    }


@pytest.mark.parametrize("stream", [True, False])
def test_what_an_answer_gives_back_is_no_deeper_than_it_can_be(frontend, stream):
    asked = {"input": "a", "max_output_tokens": 2, "metadata": nested(252), "stream": stream}
    answered = frontend.ask(asked, RESPONSES)
    assert answered.status == 200 and answered.body.count(252 * b'{"a":') == (3 if stream else 1)


@pytest.mark.parametrize("stream", [True, False])
def test_what_a_chat_has_beside_the_protocol(frontend, stream):
    asked = {"input": "the film was not good", "max_output_tokens": 12}
    text = frontend.ask(asked, RESPONSES).document["output"][0]["content"][0]["text"]
    answered = frontend.ask({**asked, "stop": text[5:8], "top_k": 1, "stream": stream}, RESPONSES)
    response = Response.model_validate(answered.events[-1]["response"] if stream else answered.document)
    assert (response.output_text, response.status) == (text[: text.index(text[5:8])], "completed")


def test_what_was_answered_can_be_sent_back(frontend):
    """As it came: an id, a status, annotations."""
    first = frontend.ask({"input": "a", "max_output_tokens": 5}, RESPONSES).document
    more = [{"role": "user", "content": "a"}, *first["output"], {"role": "user", "content": "b"}]
    assert frontend.ask({"input": more, "max_output_tokens": 5}, RESPONSES).status == 200


def told(*chunks):
    """Types of events, and what the last one holds."""
    client = Events(Answer(dict(ECHOED), "tiny"), Usage())
    events = [event for chunk in chunks for event in client._events(client.usage.note(chunk) or chunk)]
    return [event["type"].removeprefix("response.") for event in events], events[-1]


def chunk(reason=None, usage=None, **delta):
    return {"choices": [{"delta": delta, "finish_reason": reason}], **({"usage": usage} if usage else {})}


USED = {"prompt_tokens": 3, "completion_tokens": 4}


def test_a_stream_of_thought_text_and_calls():
    """As vLLM has them: a call's arguments come in pieces, and its usage at the end, alone."""

    def call(index, arguments, **more):
        return chunk(
            tool_calls=[{"index": index, **more, "function": {"name": more and "f", "arguments": arguments}}]
        )

    types, last = told(
        chunk(role="assistant", content=""),
        chunk(reasoning="b"),
        chunk(content="c"),
        chunk(content="d"),
        call(0, "", id="call_1"),
        call(0, "{}"),
        call(1, "{}", id="call_2"),
        chunk("tool_calls"),
        {"choices": [], "usage": USED},
    )
    item = ["output_item.added", "content_part.added"], ["content_part.done", "output_item.done"]
    arguments = "function_call_arguments"
    called = ["output_item.added", f"{arguments}.delta", f"{arguments}.done", "output_item.done"]
    text = [*item[0], "output_text.delta", "output_text.delta", "output_text.done", *item[1]]
    thought = [*item[0], "reasoning_text.delta", "reasoning_text.done", *item[1]]
    assert types == ["created", "in_progress", *thought, *text, *called, *called, "completed"]
    response = Response.model_validate(last["response"], strict=True)
    assert [one.type for one in response.output] == ["reasoning", "message", "function_call", "function_call"]
    assert response.output_text == "cd" and response.output[0].content[0].text == "b"
    assert [(one.call_id, one.name, one.arguments) for one in response.output[2:]] == [
        ("call_1", "f", "{}"),
        ("call_2", "f", "{}"),
    ]
    assert (response.usage.input_tokens, response.usage.total_tokens) == (3, 7)


def test_text_after_a_call_is_an_item_of_its_own():
    call = {"index": 0, "id": "1", "function": {"name": "f", "arguments": "{}"}}
    _, last = told(chunk(content="a"), chunk(tool_calls=[call]), chunk(content="b"), chunk("stop", USED))
    assert [one["type"] for one in last["response"]["output"]] == ["message", "function_call", "message"]


def test_an_empty_answer_has_a_text():
    _, last = told(chunk(role="assistant"), chunk("stop", USED))
    assert Response.model_validate(last["response"]).output_text == "" and last["response"]["output"]


def test_whole_calls_are_items():
    calls = [{"id": str(n), "function": {"name": "f", "arguments": "{}"}} for n in range(2)]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    answered = {"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": USED}
    response = Response.model_validate(as_response(answered, Answer(dict(ECHOED), "tiny")), strict=True)
    assert [one.call_id for one in response.output] == ["0", "1"] and response.status == "completed"


def test_an_error_in_the_middle_is_an_event_that_has_an_error():
    types, last = told(chunk(content="a"), {"error": {"message": "no", "code": 500}})
    assert types[-1] == "error" and last["error"]["message"] == last["message"] == "no"
    assert last["sequence_number"] == len(types) - 1


def test_what_fails_once_it_has_begun_says_so(service, frontend):
    begun = frontend.post({"input": "a", "max_output_tokens": 64, "stream": True}, RESPONSES)
    while not begun.pieces:
        frontend.round()

    def defect(*_):
        raise KeyError("secret")

    [live] = wing(service).live.values()
    live.route = replace(live.route, piece=defect)
    frontend.run()
    assert begun.events[-1]["type"] == "error" and begun.events[-1]["error"]["type"] == "server_error"
    assert b"secret" not in begun.body
    settled(service)


def test_an_answer_that_is_too_large_is_refused(service, frontend, monkeypatch):
    monkeypatch.setattr(rounds, "SIGN_SECONDS", 60.0)  # its status is not out before it has one
    handler = replace(wing(service).config.handler, max_response_bytes=10)
    monkeypatch.setattr(wing(service), "config", replace(wing(service).config, handler=handler))
    for stream in (False, True):
        answered = frontend.ask({"input": "a", "stream": stream}, RESPONSES)
        assert answered.status == 413 and "the limit is 10" in answered.document["error"]["message"]
    settled(service)
