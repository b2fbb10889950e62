"""transformers' continuous batching where it would leak, hang, or answer with what is none."""

from __future__ import annotations

import gc
import json
import logging
import random
import threading
import time
from dataclasses import replace

import pytest
import torch
from openai.types.responses import Response
from transformers.generation.continuous_batching.requests import GenerationOutput

from handler.generation import rounds, transformers_application
from tests.support import frames, tiny_models, worker
from tests.support.reference import generated
from tests.support.rounds import NEW, PROMPTS, Frontend, messages, settled, whole, wing

CHAT, RESPONSES = "v1/chat/completions", "v1/responses"
LONG = 3000  # tokens, which take the engine many seconds


def started(directory, **handler):
    return worker.start(directory, task="text-generation", **handler)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Of which no answer ends before its cap."""
    return tiny_models.endless(tiny_models.chatter(tmp_path_factory.mktemp("chat") / "model", positions=4096))


@pytest.fixture(scope="module")
def service(model):
    return started(model.parent, max_new_tokens=LONG)


@pytest.fixture
def frontend(service):
    return Frontend(service)


@pytest.fixture
def calling(tmp_path):
    """A service whose model calls a tool, it is said, from an F of its answer on: what follows is no JSON."""

    def start(close):
        call = {"open": "F", "close": close, "repeats": True, "content": "json"}
        fields = {
            "tool_calls": {**call, "transform": {"type": "function", "function": "{content}"}},
            "content": {"close": "<never>", "content": "text"},
        }
        tiny_models.parsed(tiny_models.chatter(tmp_path / "model"), fields)
        return started(tmp_path, max_new_tokens=400)

    return start


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        *((path, asked) for path in (CHAT, RESPONSES) for asked in ({"stream": True}, {}, {"stop": "never said"})),
        (CHAT, {"n": 2}),
    ],
)
def test_who_leaves_is_cancelled_within_two_seconds(service, frontend, path, asked):
    said = {"messages": messages("a"), "max_tokens": LONG} if path == CHAT else {"input": "a"}
    left = [frontend.post({**said, **asked}, path) for _ in range(8)]
    each = asked.get("n", 1)
    while wing(service).engine.load().running < 8 * each:
        frontend.round()
    for client in left[1:]:
        frontend.leave(client)
    end = time.monotonic() + 2
    while wing(service).engine.load().running > each:
        assert time.monotonic() < end
        frontend.round()
    frontend.leave(left[0])
    frontend.run(seconds=2)
    settled(service, 2)  # and now there is no round any more
    assert not wing(service).engine.load.__self__._router.result_handlers


@pytest.mark.parametrize("path", ["", CHAT, RESPONSES])
@pytest.mark.parametrize("stream", [True, False])
def test_who_hears_nothing_for_long_hears_that_it_goes_on(model, monkeypatch, path, stream):
    """Two answers fill the memory, and one has to wait for the other."""
    monkeypatch.setattr(rounds, "SIGN_SECONDS", 0.1)
    service = started(model.parent, cache_tokens=512, max_new_tokens=LONG)
    frontend = Frontend(service)
    prompt = {
        "": {"prompt": "a " * 100, "max_tokens": 250},
        CHAT: {"messages": messages("a " * 100), "max_tokens": 250},
        RESPONSES: {"input": "a " * 100, "max_output_tokens": 250},
    }[path]
    asked = [frontend.post({**prompt, "temperature": 0, "stream": stream}, path) for _ in "ab"]
    frontend.run()
    pieces = [piece for client in asked for piece in client.pieces]
    assert b"\n\n" in [piece.body for piece in pieces] and {piece.status for piece in pieces} == {200}
    assert pieces[0].content_type.startswith("text/event-stream" if stream else "application/json")
    if stream:
        said = [[line for line in client.body.split(b"\n") if line] for client in asked]
        ends = b'data: {"type":"response.incomplete"' if path == RESPONSES else b"data: [DONE]"
        assert said[1][-1].startswith(ends) and len(said[1]) == len(said[0])
    else:
        answers = [client.document for client in asked]
        texts = [
            Response.model_validate(answer).output_text
            if path == RESPONSES
            else answer["choices"][0]["message"]["content"]
            if path
            else answer["response"]
            for answer in answers
        ]
        assert texts[0] == texts[1] != ""
    settled(service)


@pytest.mark.parametrize("stream", [True, False])
def test_what_fails_once_it_has_begun_says_so_where_it_can(service, frontend, monkeypatch, stream):
    monkeypatch.setattr(rounds, "SIGN_SECONDS", 0.1)
    client = frontend.post({"prompt": "a", "max_new_tokens": 300, "stream": stream})
    while not client.pieces:
        frontend.round()

    def defect(*_):
        raise KeyError("secret")

    [live] = wing(service).live.values()
    live.route = replace(live.route, whole=defect, piece=defect)
    frontend.run()
    assert b"error" in client.body and b"secret" not in client.body
    settled(service)


def test_over_grpc_a_sign_of_life_would_end_the_answer(service, monkeypatch):
    monkeypatch.setattr(rounds, "SIGN_SECONDS", 0.1)
    asked = frames.Request([("data", "", json.dumps({"prompt": "a", "max_new_tokens": 300}).encode())])
    answered = frames.one_round(service, {"call": asked})
    while not answered:
        answered = frames.one_round(service, {"call": frames.Request([])})
    assert json.loads(answered["call"].body)["output_token_count"] == 300


def test_a_frontend_that_has_to_come_back_is_waited_for(service, frontend):
    """It forgets no request before that has been answered with something (ContinuousBatching.java:105)."""
    asked = frontend.post({"prompt": "a", "max_new_tokens": 300})
    frontend.round()
    assert not asked.pieces
    time.sleep(2 * rounds.LOOK_SECONDS * rounds.SILENCE_LOOKS)
    frontend.run()
    assert asked.document["output_token_count"] == 300


def test_what_nobody_waits_for_is_not_kept(service, frontend):
    def outputs():
        gc.collect()
        return sum(type(one) is GenerationOutput for one in gc.get_objects())

    before = outputs()
    for _ in range(3):
        left = [frontend.post({"prompt": "a", "max_new_tokens": LONG, "stream": True}) for _ in range(8)]
        while not all(client.pieces for client in left):
            frontend.round()
        for client in left:
            frontend.leave(client)
        settled(service)
    assert outputs() <= before


def test_others_are_let_in_when_all_have_left_a_full_memory(model):
    service = started(model.parent, cache_tokens=512, max_new_tokens=LONG)
    frontend, scheduler = Frontend(service), wing(service).engine.load.__self__.scheduler
    asked = {"prompt": "a " * 150, "max_new_tokens": 300, "temperature": 1.5, "stream": True}
    left = [frontend.post(asked) for _ in range(3)]
    end = time.monotonic() + 30
    while not scheduler.block_new_requests:
        assert time.monotonic() < end, "the memory was never full"
        frontend.round()
    for client in left:
        frontend.leave(client)
    assert frontend.ask({"prompt": "a", "max_new_tokens": 2}).status == 200
    frontend.run()
    settled(service)


@pytest.mark.parametrize("close", ["</tool_call>", " "])
def test_a_call_that_is_none_is_text(calling, close):
    """It is cut off by the cap, or it is no JSON."""
    service = calling(close)
    frontend = Frontend(service)
    asked = {"messages": messages(PROMPTS[0]), "max_tokens": 200, "temperature": 0}
    whole = frontend.ask(asked, CHAT).document["choices"][0]
    assert "F" in whole["message"]["content"] and whole["finish_reason"] == "length"
    streamed = frontend.ask({**asked, "stream": True}, CHAT)
    assert not any("error" in event for event in streamed.events[:-1]), streamed.events[-2:]
    said = "".join(event["choices"][0]["delta"].get("content") or "" for event in streamed.events[:-1])
    assert said == whole["message"]["content"]
    settled(service)


@pytest.mark.parametrize("stream", [True, False])
def test_a_stop_string_is_looked_for_in_what_is_said_beside_a_call(calling, stream):
    frontend = Frontend(calling("</tool_call>"))
    asked = {"messages": messages(PROMPTS[0]), "max_tokens": 200}
    text = frontend.ask(asked, CHAT).document["choices"][0]["message"]["content"]
    stop = text[4:7]
    answered = frontend.ask({**asked, "stop": stop, "stream": stream}, CHAT)
    choices = [event["choices"][0] for event in answered.events[:-1]] if stream else answered.document["choices"]
    said = [choice.get("delta" if stream else "message") for choice in choices]
    assert "".join(one.get("content", "") for one in said) == text[: text.index(stop)]
    assert choices[-1]["finish_reason"] == "stop"


def test_a_model_that_gives_no_numbers_fails_what_has_begun(model):
    service = started(model.parent, max_new_tokens=LONG)
    frontend, loaded = Frontend(service), wing(service).engine.load.__self__._cb.model
    wanted = frontend.ask({"prompt": "a", "max_new_tokens": NEW}).document
    begun = frontend.post({"prompt": "a", "max_new_tokens": LONG, "stream": True})
    while not begun.pieces:
        frontend.round()
    weight = loaded.lm_head.weight.detach().clone()
    loaded.lm_head.weight.data.fill_(torch.nan)
    frontend.run()
    assert begun.events[-2]["error"]["type"] == "server_error"
    drawn = frontend.ask({"prompt": "a", "max_new_tokens": 2, "temperature": 1})
    assert drawn.status == 500 and "numbers" not in str(drawn.body)
    loaded.lm_head.weight.data.copy_(weight)
    assert frontend.ask({"prompt": "a", "max_new_tokens": NEW}).document == wanted


def test_what_the_models_configuration_asks_for_in_vain_is_said(tmp_path, caplog):
    model = tiny_models.chatter(tmp_path / "model")
    path = model / "generation_config.json"
    asked = {"repetition_penalty": 1.5, "temperature": 0.7, "no_repeat_ngram_size": 2}
    path.write_text(json.dumps({**json.loads(path.read_text()), **asked}))
    with caplog.at_level(logging.WARNING):
        started(tmp_path)
    [said] = [line for line in caplog.messages if "generation config asks for" in line]
    assert said.endswith("not done by this engine: NoRepeatNGramLogitsProcessor")


def test_the_models_own_penalty_counts_where_a_request_has_none(tmp_path):
    model = tiny_models.chatter(tmp_path / "model")
    path = model / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "repetition_penalty": 0.3}))
    frontend = Frontend(started(tmp_path))
    wanted, without = generated(model, PROMPTS[0], NEW), generated(model, PROMPTS[0], NEW, repetition_penalty=1.0)
    assert wanted[0] != without[0]
    ask = {"messages": messages(PROMPTS[0]), "max_tokens": NEW}
    for asked, text in (({}, wanted[0]), ({"repetition_penalty": 1.0}, without[0])):
        answered = frontend.ask({**ask, **asked}, CHAT).document
        assert whole(answered["choices"][0]["message"]["content"]) == whole(text)


def test_logprobs_beside_prompts_that_are_read_in_several_steps(tmp_path):
    """Of which each has a place in a step, and no token yet."""
    tiny_models.endless(tiny_models.chatter(tmp_path / "model"))
    frontend = Frontend(started(tmp_path, max_batch_tokens=64))
    asked = {"prompt": "a", "max_tokens": 40, "logprobs": 1}
    clients = [frontend.post(asked, "v1/completions")]
    clients += [frontend.post({"prompt": "not " * 100, "max_tokens": 4}, "v1/completions") for _ in range(4)]
    frontend.run()
    assert [client.status for client in clients] == [200] * 5
    [choice] = clients[0].document["choices"]
    assert len(choice["logprobs"]["tokens"]) == 40


def test_others_go_on_while_a_long_prompt_is_read(model, monkeypatch):
    reading, read = threading.Event(), threading.Event()
    stock = transformers_application._result

    def slow(coroutine):
        reading.set()
        assert read.wait(60)
        return stock(coroutine)

    monkeypatch.setattr(transformers_application, "_result", slow)
    frontend = Frontend(started(model.parent, max_new_tokens=NEW))
    long = "not " * 1000
    late = frontend.post({"messages": messages(long * 5), "max_tokens": NEW}, CHAT)
    frontend.round()
    assert reading.wait(60)
    early = frontend.post({"messages": messages(PROMPTS[0]), "max_tokens": NEW}, CHAT)
    while not early.done:
        frontend.round()
    assert not late.done
    read.set()
    frontend.run()
    assert early.status == 200
    assert late.status == 400, "it has more tokens than the model reads"
    assert b"at most 4096" in late.body


@pytest.mark.parametrize("asked", [{}, {"stream": True}, {"n": 2}, {"stop": ["never"]}, {"logprobs": True}])
@pytest.mark.parametrize("path", [CHAT, "v1/completions"])
def test_what_is_read_beside_the_loop_is_answered_the_same(service, monkeypatch, path, asked):
    frontend = Frontend(service)
    said = {"messages": messages(PROMPTS[0])} if path == CHAT else {"prompt": PROMPTS[0]}
    asked = {**said, **asked, "max_tokens": NEW, "temperature": 0}
    if path != CHAT and "logprobs" in asked:
        asked["logprobs"] = 1

    def answered():
        client = frontend.ask(asked, path)
        documents = client.events[:-1] if "stream" in asked else [client.document]
        return client.status, [(one["choices"], one.get("usage")) for one in documents]

    on_the_loop = answered()
    monkeypatch.setattr(transformers_application, "LONG", 0)
    for wrong in ({"max_tokens": 0}, {"messages": []}, {"logit_bias": {"1": 101}}):
        assert frontend.ask({**asked, **wrong}, path).status == 400
    status, beside = answered()
    assert (status, beside) == on_the_loop
    assert status == 200


@pytest.mark.parametrize("cache", [32_768, 700])
def test_a_crowd_that_asks_for_everything(tmp_path, cache):
    """Also where memory has room for a few: then the engine puts some off, and begins them again."""
    model = tiny_models.chatter(tmp_path / "model")
    frontend, draw = Frontend(started(tmp_path, cache_tokens=cache, max_new_tokens=24)), random.Random(7)
    greedy = {
        (prompt, penalty): generated(model, prompt, 24, chat=False, repetition_penalty=penalty)[0]
        for prompt in PROMPTS[:3]
        for penalty in (1.0, 1.3)
    }
    seen: dict[str, str] = {}

    def post():
        prompt, penalty = draw.choice([*greedy])
        kinds = (
            {"temperature": 0, "repetition_penalty": penalty},
            {"temperature": 1.3, "seed": draw.randrange(3), "top_p": draw.choice([0.8, 1])},
            {"temperature": 0, "presence_penalty": 1.5, "frequency_penalty": draw.choice([-1, 0.7])},
            {"temperature": 0, "logit_bias": {str(token): draw.choice([-9, 3]) for token in (7, 40, 99)}},
        )
        asked = {"prompt": prompt, "max_tokens": 24, **draw.choice(kinds)}
        more = draw.choice([{"logprobs": 2}, {"stop": ["never"]}, {"n": 2}, {}])
        more |= draw.choice([{"stream": True}, {}])
        return asked, frontend.post({**asked, **more}, "v1/completions")

    waiting, live = 240, []
    while waiting or live:
        while waiting and len(live) < 40:
            waiting -= 1
            live.append(post())
        frontend.round()
        for asked, client in [one for one in live if one[1].done]:
            live.remove((asked, client))
            assert client.status == 200, client.body
            if client.pieces[0].content_type.startswith("text/event-stream"):
                choices = [choice for event in client.events[:-1] for choice in event["choices"]]
                text = "".join(choice["text"] for choice in choices if choice["index"] == 0)
            else:
                text = client.document["choices"][0]["text"]
            key = (asked["prompt"], asked.get("repetition_penalty"))
            wanted = greedy.get(key) or seen.setdefault(json.dumps(asked), text)
            assert whole(text) == whole(wanted)
