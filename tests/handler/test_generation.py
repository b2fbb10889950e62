"""Rounds over a real worker's service: as transformers generates alone; streamed, batched, refused, cancelled."""

from __future__ import annotations

import subprocess
import sys
import time
from asyncio import Queue
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from transformers import AutoModelForCausalLM, AutoTokenizer

from handler.generation import logprobs as logprobs_of
from handler.generation import openai_requests, rounds, transformers_engine
from handler.generation.application import Application
from handler.generation.openai_protocol import Usage, bounded, refused
from handler.generation.stopping import Until
from handler.generation.transformers_engine import in_few_sizes, kept_graphs, padded
from handler.request import MOST_PROBLEMS
from tests.support import frames, tiny_models, worker
from tests.support.reference import generated
from tests.support.rounds import (
    NEW,
    PROMPTS,
    Client,
    Frontend,
    a_speakers_name_is_read,
    messages,
    settled,
    thirty_two_say_what_each_says_alone,
    whole,
    wing,
)

CHAT, COMPLETIONS = "v1/chat/completions", "v1/completions"
DEEP = 300 * '{"a":' + "1" + 300 * "}"


def called(arguments):
    """A call of a function, as a client sends it back."""
    return {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}


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
def alone(model):
    """prompt -> what `generate` makes of it, greedily, template and all."""
    return partial(generated, model, new=NEW)


def test_a_native_prompt(frontend, alone):
    for prompt in PROMPTS:
        text, size, new = alone(prompt)
        answered = frontend.ask({"prompt": prompt, "max_new_tokens": NEW})
        assert answered.status == 200
        assert answered.document == {
            "response": text,
            "input_token_count": size,
            "output_token_count": new,
            "finish_reason": "length" if new == NEW else "stop",
        }


def test_the_openai_protocol(frontend, alone):
    text, size, new = alone(PROMPTS[0])
    chat = frontend.ask({"messages": messages(PROMPTS[0]), "max_completion_tokens": NEW}, CHAT).document
    assert chat["choices"][0]["message"]["content"] == text and chat["model"] == "tiny"
    assert chat["usage"]["prompt_tokens"] == size and chat["usage"]["completion_tokens"] == new
    text, _, _ = alone(PROMPTS[0], chat=False)
    completed = frontend.ask({"model": "tiny", "prompt": PROMPTS[0], "max_tokens": NEW}, COMPLETIONS).document
    assert completed["choices"][0]["text"] == text
    models = frontend.ask(b"", "v1/models").document
    assert [model["id"] for model in models["data"]] == ["tiny", "org/tiny"]
    assert frontend.ask(b"", "v1/models/org/tiny").document == models["data"][1]
    absent = frontend.ask(b"", "v1/models/other")
    assert (
        absent.status == 404 and absent.document["error"]["message"] == "model: only tiny, org/tiny is served here"
    )
    for name in ("org/tiny", None, "dummy"):  # the last one is huggingface_hub 2.4's, where it was told no name
        called = frontend.ask({"model": name, "prompt": PROMPTS[0], "max_tokens": NEW}, COMPLETIONS).document
        assert called["choices"][0]["text"] == text and called["model"] == "tiny"


def test_streams_say_the_same_piece_by_piece(frontend, alone):
    text, _, _ = alone(PROMPTS[1])
    native = frontend.ask_in_pieces({"prompt": PROMPTS[1], "max_new_tokens": NEW, "stream": True})
    assert native.pieces[0].content_type.startswith("text/event-stream")
    assert native.events[-1] == "[DONE]"
    assert all(event.keys() == {"text"} for event in native.events[:-1])
    assert "".join(event["text"] for event in native.events[:-1]) == whole(text)
    chat = frontend.ask({"messages": messages(PROMPTS[1]), "max_tokens": NEW, "stream": True}, CHAT)
    *chunks, last = chat.events
    assert last == "[DONE]" and chunks[-1]["choices"][0]["finish_reason"]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == whole(text)
    assert not any("usage" in chunk for chunk in chunks)
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_a_stream_ends_with_its_usage_where_it_is_asked_for(frontend, alone):
    _, size, new = alone(PROMPTS[1])
    ask = {"messages": messages(PROMPTS[1]), "max_tokens": NEW, "stream": True}
    chat = frontend.ask({**ask, "stream_options": {"include_usage": True}, "user": "me", "n": 1}, CHAT)
    *chunks, last, done = chat.events
    assert done == "[DONE]" and last["choices"] == [] and not any("usage" in chunk for chunk in chunks)
    assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (size, new)
    assert chunks[-1]["choices"][0]["finish_reason"]


def test_thirty_two_at_once_say_what_each_says_alone(frontend, alone):
    thirty_two_say_what_each_says_alone(frontend, alone)


def test_a_speakers_name_is_read(frontend, model):
    a_speakers_name_is_read(frontend, model)


def test_padded_steps_say_the_same(model, alone, monkeypatch):
    """On a GPU a step is a graph of one of few sizes; a CPU has no graphs, and pads in the same way."""
    monkeypatch.setattr(transformers_engine, "attend_by_request", lambda model: False)  # as on a GPU
    service = worker.start(model.parent, task="text-generation", max_new_tokens=64)
    batching = wing(service).engine.load.__self__._cb
    in_few_sizes(batching.batch_processor.model_runner)
    batching.batch_processor.model_runner.pad_inputs = True
    batching.warmup()
    thirty_two_say_what_each_says_alone(Frontend(service), alone)


def test_the_sizes_of_steps():
    sizes = sorted({padded(size, 16, 128) for size in range(129)})
    assert sizes == [16, 24, 32, 48, 64, 96, 128]
    assert all(size <= padded(size, 16, 128) for size in range(129))
    assert padded(3, 1024, 512) == 512


def test_graphs_that_were_used_last_are_kept():
    gone = []

    class Graph:
        def reset(self):
            gone.append(self)

    sampler = SimpleNamespace(kind=(False, False, False))
    graphs, kept = [Graph() for _ in range(4)], kept_graphs(sampler, 2)
    kept.set_graph((0,), graphs[0])
    kept.set_graph((1,), graphs[1])
    assert kept.get_graph((0,)) is graphs[0]
    kept.set_graph((2,), graphs[2])
    assert gone == [graphs[1]] and kept.get_graph((1,)) is None
    assert kept.get_graph((0,)) is graphs[0] and kept.get_graph((2,)) is graphs[2]
    sampler.kind = (True, False, False, False)  # of a step in which somebody draws
    assert kept.get_graph((2,)) is None
    kept.set_graph((2,), graphs[3])
    assert kept.get_graph((2,)) is graphs[3] and gone == [graphs[1], graphs[0]]


def test_each_request_samples_for_itself(frontend, alone):
    """The first of an engine's requests must not decide how all others are sampled."""
    text, _, _ = alone(PROMPTS[0])
    ask = {"prompt": PROMPTS[0], "max_new_tokens": NEW}
    drawn = [frontend.post({**ask, "temperature": 2}) for _ in range(8)]
    greedy = [
        frontend.post({**ask, "temperature": 0}),
        frontend.post(ask),
        frontend.post({**ask, "temperature": 2, "top_k": 1}),
    ]
    frontend.run()
    assert {client.document["response"] for client in greedy} == {text}
    assert len({client.document["response"] for client in drawn}) > 1


def test_a_seed_draws_the_same_again_whoever_is_beside(frontend):
    ask = {"prompt": PROMPTS[0], "max_new_tokens": NEW, "temperature": 1.5}
    first = frontend.ask({**ask, "seed": 7}).document
    same, streamed, other = [
        frontend.post({**ask, "seed": seed, "stream": stream})
        for seed, stream in ((7, False), (7, True), (8, False))
    ]
    for _ in range(5):
        frontend.post({**ask, "top_p": 0.9})
    frontend.run()
    assert same.document == first and other.document["response"] != first["response"]
    assert whole("".join(event["text"] for event in streamed.events[:-1])) == whole(first["response"])


def test_a_seed_has_an_answer_for_each_that_is_asked_for(frontend):
    ask = {"prompt": [PROMPTS[0], PROMPTS[1]], "max_tokens": NEW, "temperature": 1.5, "n": 3, "seed": 7}
    found = [[choice["text"] for choice in frontend.ask(ask, COMPLETIONS).document["choices"]] for _ in range(2)]
    assert found[0] == found[1] and len(set(found[0])) == 6


@pytest.mark.parametrize("penalty", [0.7, 1.3])
def test_a_repetitions_penalty_is_generates(frontend, model, penalty):
    asked = {"max_new_tokens": NEW, "repetition_penalty": penalty}
    wanted = [generated(model, prompt, NEW, chat=False, repetition_penalty=penalty)[0] for prompt in PROMPTS[:3]]
    plain = [generated(model, prompt, NEW, chat=False)[0] for prompt in PROMPTS[:3]]
    clients = [
        frontend.post({"inputs": prompt, "parameters": {**asked, "repetition_penalty": value}})
        for value in (penalty, 1.0)
        for prompt in PROMPTS[:3]
    ]
    frontend.run()
    texts = [client.document[0]["generated_text"] for client in clients]
    assert list(map(whole, texts)) == list(map(whole, wanted + plain)) and wanted != plain


def test_presence_and_frequency_take_something_off(frontend, model):
    """Held against scores that are judged by hand, token for token."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model).eval()
    kinds = [{"presence_penalty": 1.5}, {"frequency_penalty": 0.9}, {"frequency_penalty": -2.0}]
    for asked in (*kinds, {**kinds[0], **kinds[1]}):
        given = tokenizer(PROMPTS[0], add_special_tokens=False)["input_ids"]
        said: list[int] = []
        while len(said) < NEW and tokenizer.sep_token_id not in said:
            with torch.inference_mode():
                scores = loaded(torch.tensor([given + said])).logits[0, -1]
            scores = scores.clone()
            for token in set(said):
                scores[token] -= asked.get("presence_penalty", 0) + said.count(token) * asked.get(
                    "frequency_penalty", 0
                )
            said.append(int(scores.argmax()))
        answered = frontend.ask({"prompt": PROMPTS[0], "max_tokens": NEW, **asked}, COMPLETIONS).document
        assert whole(answered["choices"][0]["text"]) == whole(tokenizer.decode(said, skip_special_tokens=True))


def test_a_bias_is_added_to_its_tokens_scores(frontend, model):
    """Held against scores that are judged by hand, in a crowd that has none, and others."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model).eval()
    given = tokenizer(PROMPTS[0], add_special_tokens=False)["input_ids"]
    plain = tokenizer(generated(model, PROMPTS[0], NEW, chat=False)[0], add_special_tokens=False)["input_ids"]
    biases = [{plain[0]: -100}, {plain[1]: 4.5, plain[2]: -7}, {}, {plain[3]: -1.5, plain[0]: 100}]
    asked = {"prompt": PROMPTS[0], "max_tokens": NEW, "frequency_penalty": 0.5}
    clients = [
        frontend.post({**asked, "logit_bias": {str(token): value for token, value in bias.items()}}, COMPLETIONS)
        for bias in biases
    ]
    frontend.run()
    found = [whole(client.document["choices"][0]["text"]) for client in clients]
    for bias, text in zip(biases, found, strict=True):
        said: list[int] = []
        while len(said) < NEW and tokenizer.sep_token_id not in said:
            with torch.inference_mode():
                scores = loaded(torch.tensor([given + said])).logits[0, -1]
            scores = scores.clone()
            for token in {*bias, *said}:
                scores[token] += bias.get(token, 0) - 0.5 * said.count(token)
            said.append(int(scores.argmax()))
        assert text == whole(tokenizer.decode(said, skip_special_tokens=True))
    assert len(set(found)) == len(biases)
    drawn = {**asked, "temperature": 2, "logit_bias": {str(plain[0]): 100}, "frequency_penalty": 0}
    one = frontend.ask({**drawn, "max_tokens": 1}, COMPLETIONS).document
    assert one["choices"][0]["text"] == tokenizer.decode([plain[0]])


@pytest.fixture(scope="module")
def logprobs(model):
    """What the model holds likely behind a prompt and tokens, (vocabulary), and the tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model).eval()

    def held(ids):
        with torch.inference_mode():
            return loaded(torch.tensor([ids])).logits[0, -1].log_softmax(-1)

    return held, tokenizer


@pytest.mark.parametrize("more", [{}, {"stop": "never"}, {"stream": True}, {"n": 2, "logprobs": 1}])
def test_a_prompt_may_be_its_tokens(frontend, model, more):
    """As lm-eval's local-completions sends it by default."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    asked = {"max_tokens": NEW, "temperature": 0, **more}
    texts = PROMPTS[:1] if more.get("stream") else PROMPTS[:3]
    tokens = [tokenizer(text)["input_ids"] for text in texts]
    found = []
    for prompt in (list(texts), tokens, *tokens[: len(tokens) == 1]):
        client = frontend.ask({"prompt": prompt, **asked}, COMPLETIONS)
        assert client.status == 200, client.body
        said = client.events[:-1] if more.get("stream") else [client.document]
        found.append("".join(choice["text"] for one in said for choice in one["choices"]))
    assert len(set(found)) == 1


def named(tokenizer, token):
    """A token, of which a part of a character has no text of its own, as OpenAI names it."""
    [piece] = tokenizer.convert_ids_to_tokens([token])
    content = bytes(logprobs_of.BYTES[letter] for letter in piece) if not piece.startswith("<") else piece.encode()
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


@pytest.mark.parametrize(
    "more", [{}, {"temperature": 1.5, "seed": 3}, {"frequency_penalty": 1.5}, {"stop": "never"}]
)
def test_how_likely_a_continuation_is(frontend, logprobs, more):
    """By the model itself, however its tokens are taken."""
    held, tokenizer = logprobs
    asked = {"prompt": PROMPTS[:2], "max_tokens": NEW, "logprobs": 3, **more}
    beside = frontend.post({"prompt": "a", "max_new_tokens": NEW})
    answered = Completion.model_validate(frontend.ask(asked, COMPLETIONS).document)
    frontend.run(beside)
    for prompt, choice in zip(PROMPTS, answered.choices, strict=False):
        ids, told = tokenizer(prompt, add_special_tokens=False)["input_ids"], choice.logprobs
        assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset)
        for text, logprob, tops in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
            wanted = held(ids)
            likely = {named(tokenizer, token): float(wanted[token]) for token in wanted.topk(3).indices.tolist()}
            assert likely == pytest.approx({one: tops[one] for one in likely}, abs=1e-4)
            assert tops[text] == logprob and len(tops) == len(likely | {text: 0})
            [*_, token] = [one for one in range(len(wanted)) if abs(float(wanted[one]) - logprob) < 1e-4]
            ids.append(token)
        assert sum(len(one.logprobs.tokens) for one in answered.choices) == answered.usage.completion_tokens
        assert whole(choice.text) == whole(tokenizer.decode(ids[-len(told.tokens) :], skip_special_tokens=True))


@pytest.mark.parametrize("tops", [None, 0, 2, 20])
def test_how_likely_a_chats_answer_is(frontend, logprobs, tops):
    held, tokenizer = logprobs
    asked = {"messages": messages("a"), "max_tokens": NEW, "logprobs": True, "top_logprobs": tops, "n": 2}
    answered = ChatCompletion.model_validate(frontend.ask(asked, CHAT).document)
    rendered = tokenizer.apply_chat_template(messages("a"), add_generation_prompt=True, return_dict=True)
    for choice in answered.choices:
        ids = list(rendered["input_ids"])
        for one in choice.logprobs.content:
            wanted = held(ids)
            ids.append(int(wanted.argmax()))
            assert one.token == tokenizer.decode(ids[-1:])
            assert one.logprob == pytest.approx(float(wanted.max()), abs=1e-4)
            likely = [float(value) for value in wanted.topk(tops or 0).values]
            assert [top.logprob for top in one.top_logprobs] == pytest.approx(likely, abs=1e-4)
        said = b"".join(bytes(one.bytes) for one in choice.logprobs.content)
        assert whole(said.decode("utf-8", "replace")) == whole(choice.message.content)
        assert 2 * len(choice.logprobs.content) == answered.usage.completion_tokens
    for nothing in ({}, {"logprobs": False}, {"top_logprobs": 0}):
        plain = frontend.ask({"messages": messages("a"), "max_tokens": NEW, **nothing}, CHAT).document
        assert "logprobs" not in plain["choices"][0]


@pytest.mark.parametrize(
    ("path", "document", "status", "says"),
    [
        ("", b"{", 400, "not valid JSON"),
        ("", b"", 400, "JSON"),
        ("", [], 400, "not a JSON object"),
        ("", {}, 422, "either prompt or messages"),
        ("", {"prompt": 7}, 422, "prompt: expected a string"),
        ("", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, 422, "either"),
        ("", {"prompt": "a", "max_new_tokens": 0}, 422, "max_new_tokens"),
        ("", {"prompt": "a", "max_new_tokens": 65}, 422, "the limit is 64"),
        ("", {"prompt": "a", "temperature": 3}, 422, "temperature"),
        ("", {"prompt": "a", "topp": 1}, 422, "did you mean top_p"),
        ("", {"prompt": "a", "seed": "7", "temperature": 1}, 422, "seed: expected a whole number"),
        ("", {"prompt": "a", "presence_penalty": 3}, 422, "presence_penalty: expected a number from -2 to 2"),
        (COMPLETIONS, {"prompt": "a", "frequency_penalty": "1"}, 400, "frequency_penalty: expected a number from"),
        (COMPLETIONS, {"prompt": "a", "repetition_penalty": 0}, 400, "repetition_penalty: expected a number from"),
        (COMPLETIONS, {"prompt": "a", "min_p": 2}, 400, "min_p: expected a number from 0 to 1"),
        (COMPLETIONS, {"prompt": "a", "seed": True}, 400, "seed: expected a whole number"),
        *(
            (
                COMPLETIONS,
                {"prompt": "a", "logit_bias": bias},
                400,
                "logit_bias: expected an object of tokens from 0",
            )
            for bias in (
                [],
                5,
                "5",
                {"5": 101},
                {"-1": 1},
                {"a": 1},
                {"5": "1"},
                {"5": True},
                {"5": None},
                {"1e9": 1},
            )
        ),
        (
            COMPLETIONS,
            {"prompt": "a", "logit_bias": {str(10**7): 1}},
            400,
            "logit_bias: expected an object of tokens",
        ),
        (COMPLETIONS, {"prompt": "a", "logit_bias": {"5": 1, "05": 1}}, 400, "logit_bias: expected an object"),
        (CHAT, {"messages": [{"role": "user", "content": "a"}], "stop": 5}, 400, "stop: expected a string, or"),
        (CHAT, {"messages": [{"role": "user", "content": "a"}], "stop": ["a", 5]}, 400, "a list of strings"),
        (COMPLETIONS, {"prompt": "a", "stop": ["a"] * 17}, 400, "stop: 17 strings; the limit is 16"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "a"}], "store": True},
            400,
            "store: this engine does not do this",
        ),
        ("", {"prompt": "a " * 600}, 400, "the model reads at most 512"),
        ("", {"messages": []}, 422, "messages"),
        ("", {"messages": [{"role": "wizard", "content": "a"}]}, 400, "messages[0].role"),
        (CHAT, b"[", 400, "JSON"),
        (CHAT, {}, 400, "messages"),
        (CHAT, {"messages": []}, 400, "at least one message"),
        (CHAT, {"messages": [{"role": "user"}]}, 400, "messages[0].content"),
        (CHAT, {"messages": [{"role": "user", "content": "a", "name": 7}]}, 400, "messages[0].name"),
        (CHAT, {"messages": [{"role": "user", "content": "a", "contnet": "b"}]}, 400, "did you mean content"),
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": [called(DEEP)]}]}, 400, "arguments are JSON"),
        (CHAT, {"messages": [{"role": "user", "content": "a"}], "temperature": 3}, 400, "temperature"),
        (CHAT, {"messages": [{"role": "user", "content": "a"}], "max_tokens": 0}, 400, "max_tokens"),
        (CHAT, {"messages": [{"role": "user", "content": "a"}], "n": 65}, 400, "at most"),
        (CHAT, {"messages": [{"role": "user", "content": "a"}], "wrong": 2}, 400, "wrong: this engine"),
        (CHAT, {"messages": [{"role": "user", "content": "a"}], "model": "other"}, 404, "only tiny, org/tiny"),
        (CHAT, {"messages": [{"role": "user", "content": "a"}], "max_tokens": 65}, 400, "the limit is 64"),
        (CHAT, {"messages": [{"role": "user", "content": "a"}], "tools": 5}, 400, "tools: this engine"),
        (CHAT, {"messages": [{"role": "user", "content": "a"}], "tool_choice": "required"}, 400, "tool_choice"),
        (CHAT, {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": "x"}, 400, "an object"),
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": "x"}]}, 400, "messages[0].tool_calls"),
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": [{}]}]}, 400, "messages[0].tool_calls"),
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": [called("{")]}]}, 400, "arguments are JSON"),
        (COMPLETIONS, {"prompt": [1, "a"]}, 400, "a string, a list of tokens, or a list of such prompts"),
        (COMPLETIONS, {"prompt": [1, True]}, 400, "a list of tokens"),
        (COMPLETIONS, {"prompt": [[1, 2], [3, 10**6]]}, 400, "tokens from 0 to "),
        (COMPLETIONS, {"prompt": [-1]}, 400, "tokens from 0 to "),
        (COMPLETIONS, {"prompt": []}, 400, "the prompt has no tokens"),
        (COMPLETIONS, {"prompt": [[]]}, 400, "the prompt has no tokens"),
        (COMPLETIONS, {"prompt": [5] * 600}, 400, "the model reads at most 512"),
        (COMPLETIONS, {"prompt": ["a", [5] * 600], "stream": True}, 400, "the model reads at most 512"),
        (COMPLETIONS, {"prompt": ["a", [-1]], "stream": True}, 400, "tokens from 0 to "),
        (COMPLETIONS, {"prompt": "a", "logprobs": 21}, 400, "logprobs: expected a whole number from 0 to 20"),
        (COMPLETIONS, {"prompt": "a", "logprobs": True}, 400, "logprobs: expected a whole number"),
        (COMPLETIONS, {"prompt": "a", "logprobs": True, "stream": True}, 400, "logprobs: expected a whole number"),
        (CHAT, {"messages": [{"role": "user", "content": "a"}], "logprobs": 1}, 400, "logprobs: expected true"),
        (CHAT, {"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}, 400, "top_logprobs: expected"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": "2"},
            400,
            "top_logprobs: expected a whole number",
        ),
        ("load_model", {"model": "x"}, 404, "no such path"),
        ("reset", {}, 404, "no such path"),
        ("v1/responses/resp_1", b"", 404, "no such path"),
        ("v1/responses/resp_1/cancel", {}, 404, "no such path"),
    ],
)
def test_bad_input_is_refused_in_the_protocols_own_shape(frontend, path, document, status, says):
    answered = frontend.ask(document, path)
    error = answered.document["error"]
    assert answered.status == status, answered.body
    assert says in error["message"]
    assert ("param" in error) == path.startswith("v1/")


def test_thousands_of_wrong_names_are_not_all_compared_with_the_known(frontend, monkeypatch):
    """Each takes as long as a step of a small model, and all streams wait for it."""
    compared = []
    monkeypatch.setattr(openai_requests, "nearest", lambda name, known: compared.append(name))
    wrong = {f"wrong{number}": 1 for number in range(10_000)}
    assert frontend.ask({"messages": messages("a"), **wrong}, CHAT).status == 400
    assert 0 < len(compared) <= MOST_PROBLEMS


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "continue_final_message", "tools", "padding"])
def test_a_client_says_nothing_of_how_templates_are_run(frontend, name):
    asked = {"messages": messages("a"), "chat_template_kwargs": {name: "{% for a in range(9) %}{% endfor %}"}}
    answered = frontend.ask(asked, CHAT)
    assert answered.status == 400 and f"clients to say: {name}" in answered.document["error"]["message"]


def test_a_conversation_goes_on_with_what_was_answered(frontend):
    """As clients send it back, with all that is null; and with words that ask for nothing."""
    said = {"role": "assistant", "content": "b", "tool_calls": None, "refusal": None, "audio": None}
    whole = [*messages("a"), said, *messages("c")]
    plain = [*messages("a"), {"role": "assistant", "content": "b"}, *messages("c")]
    empty = {"tool_choice": "auto", "response_format": {"type": "text"}, "n": 1, "logprobs": False}
    answers = [
        frontend.ask({"messages": conversation, "max_tokens": NEW, **more}, CHAT)
        for conversation, more in (
            (plain, {}),
            (whole, empty),
            ([*plain[:1], {**said, "tool_calls": []}, plain[2]], {}),
        )
    ]
    thought = {**said, "content": None, "reasoning_content": "b"}  # and was cut off before it said anything
    assert frontend.ask({"messages": [*plain[:1], thought, plain[2]]}, CHAT).status == 200
    assert len({answer.document["choices"][0]["message"]["content"] for answer in answers}) == 1


def test_what_is_said_beside_a_call_is_read(frontend):
    """And whatever a template may show of a message."""
    asked = {"role": "assistant", "tool_calls": [called("{}")]}
    sizes = [
        frontend.ask({"messages": [*messages("a"), {**asked, "content": said}], "max_tokens": 1}, CHAT).document[
            "usage"
        ]["prompt_tokens"]
        for said in ("", "a wonderful story", [{"type": "text", "text": "a wonderful story"}])
    ]
    assert sizes[0] < sizes[1] == sizes[2]


@pytest.mark.parametrize(
    "nothing",
    [
        {"stop": []},
        {"logit_bias": {}},
        {"tools": []},
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": False},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
        {"top_logprobs": 0, "presence_penalty": 0.0},
        {"modalities": ["text"]},
        {"seed": 1234, "temperature": 0},  # lm-eval 0.4's local-chat-completions
        {"seed": 7},  # of a model that takes the likeliest token by itself
        {"top_k": -1, "min_p": 0, "repetition_penalty": 1.0},  # vLLM's words for nothing
        {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
    ],
)
def test_what_asks_for_nothing_is_no_reason_to_refuse(frontend, nothing):
    assert frontend.ask({"messages": messages("a"), "max_tokens": 1, **nothing}, CHAT).status == 200


def test_a_list_of_one_prompt_is_that_prompt(frontend):
    """As langchain-openai 1.7's OpenAI sends it, with what asks for nothing."""
    asked = {"frequency_penalty": 0, "logprobs": None, "n": 1, "presence_penalty": 0, "seed": None}
    asked |= {"max_tokens": NEW, "temperature": 0, "top_p": 1}
    texts = [frontend.ask({"prompt": prompt, **asked}, COMPLETIONS).document for prompt in ("a", ["a"])]
    assert texts[0]["choices"] == texts[1]["choices"]


@pytest.mark.parametrize("more", [{}, {"stop": "never said"}])
def test_several_prompts_and_several_answers(frontend, alone, more):
    """langchain-openai 1.7's OpenAI sends twenty prompts at once."""
    prompts = [PROMPTS[0], PROMPTS[1]]
    asked = {"prompt": prompts, "n": 2, "max_tokens": NEW, "temperature": 0, **more}
    answered = frontend.ask(asked, COMPLETIONS).document
    wanted = [alone(prompt, chat=False) for prompt in prompts]
    texts = [whole(choice["text"]) for choice in answered["choices"]]
    assert texts == [whole(text) for text, _, _ in wanted for _ in range(2)]
    assert [choice["index"] for choice in answered["choices"]] == [0, 1, 2, 3]
    read, said = sum(size for _, size, _ in wanted), 2 * sum(new for _, _, new in wanted)
    assert answered["usage"] == {"prompt_tokens": read, "completion_tokens": said, "total_tokens": read + said}
    asked = {"messages": messages(PROMPTS[0]), "max_tokens": NEW, "n": 8, "temperature": 2, **more}
    drawn = frontend.ask(asked, CHAT).document
    assert len({choice["message"]["content"] for choice in drawn["choices"]}) > 1 and len(drawn["choices"]) == 8
    assert drawn["usage"]["prompt_tokens"] == alone(PROMPTS[0])[1]


@pytest.mark.parametrize("more", [{}, {"stop": "never said"}, {"logprobs": 1}])
def test_streams_of_several_prompts_and_answers_are_one(frontend, alone, more):
    prompts = [PROMPTS[0], PROMPTS[1]]
    asked = {"prompt": prompts, "n": 2, "max_tokens": NEW, "temperature": 0, "stream": True, **more}
    *chunks, last, done = frontend.ask({**asked, "stream_options": {"include_usage": True}}, COMPLETIONS).events
    whole_one = frontend.ask({**asked, "stream": False}, COMPLETIONS).document
    assert (done, last["choices"], last["usage"]) == ("[DONE]", [], whole_one["usage"])
    assert len({chunk["id"] for chunk in (*chunks, last)}) == 1
    said = [choice for chunk in chunks for choice in chunk["choices"]]
    for index, (choice, wanted) in enumerate(zip(whole_one["choices"], (0, 0, 1, 1), strict=True)):
        mine = [one for one in said if one["index"] == index]
        assert whole("".join(one["text"] for one in mine)) == whole(choice["text"])
        assert whole(choice["text"]) == whole(alone(prompts[wanted], chat=False)[0])
        assert [one["finish_reason"] for one in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]
        if "logprobs" in more:
            assert [x for one in mine for x in (one.get("logprobs") or {}).get("tokens", [])] == choice[
                "logprobs"
            ]["tokens"]
    plain = frontend.ask(asked, COMPLETIONS).events
    assert all("usage" not in event for event in plain[:-1]) and plain[-1] == "[DONE]"


def test_a_stream_of_several_chats_that_is_left_frees_them(service, frontend):
    client = frontend.post({"messages": messages("a"), "n": 3, "max_tokens": 64, "stream": True}, CHAT)
    while not client.pieces:
        frontend.round()
    assert {choice["index"] for event in client.events for choice in event["choices"]} == {0, 1, 2}
    frontend.leave(client)
    while frontend.live:
        frontend.round()
    settled(service)


def test_one_of_several_streams_that_is_refused_begins_none(service, frontend):
    refused = frontend.ask({"prompt": ["a"] * 4 + [[5] * 600], "max_tokens": 64, "stream": True}, COMPLETIONS)
    assert refused.status == 400
    settled(service)


@pytest.mark.parametrize("more", [{}, {"stop": "never said"}, {"temperature": 1.5, "seed": 3}])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_streams_logprobs_are_the_whole_answers(frontend, path, more):
    asked = {"max_tokens": NEW, **more}
    if path == CHAT:
        asked |= {"messages": messages(PROMPTS[0]), "logprobs": True, "top_logprobs": 2}
    else:
        asked |= {"prompt": PROMPTS[0], "logprobs": 2}
    [choice] = frontend.ask(asked, path).document["choices"]
    *events, _ = frontend.ask({**asked, "stream": True}, path).events
    if path == CHAT:
        for event in events:
            ChatCompletionChunk.model_validate(event)
    told = [event["choices"][0]["logprobs"] for event in events if event["choices"][0].get("logprobs")]
    assert len(told) > NEW // 2  # each beside the text that it is of
    for name, wanted in choice["logprobs"].items():
        assert [one for logprobs in told for one in logprobs[name]] == wanted


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_ends_where_a_stop_string_begins(service, frontend, alone, stream):
    """And the engine goes on for nobody. smolagents 1.26's agents send them, and AI SDK 6's completions."""
    text, size, new = alone(PROMPTS[0])
    stop = text[8:11]
    wanted = text[: text.index(stop)]
    asked = {"messages": messages(PROMPTS[0]), "max_tokens": 64, "stop": ["never said", stop], "stream": stream}
    chat = frontend.ask({**asked, "stream_options": {"include_usage": True}}, CHAT)
    native = frontend.ask({"prompt": PROMPTS[0], "stop": stop, "stream": stream})
    if stream:
        *chunks, ended, last, done = chat.events
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == wanted
        assert (done, ended["choices"][0]["finish_reason"]) == ("[DONE]", "stop")
        assert "".join(event["text"] for event in native.events[:-1]) == wanted
    else:
        last = chat.document
        message = {"role": "assistant", "content": wanted}
        assert last["choices"] == [{"index": 0, "finish_reason": "stop", "message": message}]
        assert (native.document["response"], native.document["finish_reason"]) == (wanted, "stop")
    assert last["usage"]["prompt_tokens"] == size and 0 < last["usage"]["completion_tokens"] < new
    settled(service)


def test_a_stop_string_ends_a_completion_too(frontend, alone):
    text, _, _ = alone(PROMPTS[0], chat=False)
    asked = {"prompt": PROMPTS[0], "max_tokens": NEW}
    cut = frontend.ask({**asked, "stop": text[5:7]}, COMPLETIONS).document
    assert cut["choices"] == [{"index": 0, "finish_reason": "stop", "text": text[: text.index(text[5:7])]}]
    kept = frontend.ask({**asked, "stop": ["never said", ""]}, COMPLETIONS).document
    assert whole(kept["choices"][0]["text"]) == whole(text)
    assert kept["choices"][0]["finish_reason"] == "length" and kept["object"] == "text_completion"


@pytest.mark.parametrize("pieces", [["ab", "c", "d"], ["a", "b", "cd"], ["abcd"]])
@pytest.mark.parametrize(
    ("strings", "said"),
    [
        (["cd"], "ab"),
        (["bcx"], "abcd"),
        (["abc", "b"], "a"),
        (["b", "bc"], "a"),
        (["d", "abcde"], "abc"),
        (["abcd"], ""),
    ],
)
def test_a_stop_string_is_found_in_whatever_pieces_it_comes(strings, said, pieces):
    queue, ends = Queue(), []
    until = Until(queue, strings, lambda: ends.append(True))
    for piece in (*pieces, None):
        until.put_nowait(piece)
    *told, last = [queue.get_nowait() for _ in range(queue.qsize())]
    assert "".join(told) == said and last is None and bool(ends) == (said != "abcd")


def test_top_k_of_all_is_no_limit(frontend):
    """As vLLM has it: 0 and -1 are all tokens, so the draw is not the likeliest one each time."""
    asked = {"messages": messages("a"), "max_tokens": NEW, "temperature": 2}
    for top_k in (0, -1):
        answers = [frontend.ask({**asked, "top_k": top_k}, CHAT).document for _ in range(8)]
        assert len({answer["choices"][0]["message"]["content"] for answer in answers}) > 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, f'{{"messages": [{{"role": "user", "content": "a"}}], "chat_template_kwargs": {DEEP}}}'),
        ("", f'{{"messages": [{{"role": "user", "content": "a", "x": {DEEP}}}]}}'),
    ],
)
def test_deep_nesting_is_the_clients_mistake(frontend, path, body):
    assert frontend.ask(body.encode(), path).status == 400


def test_gauges_come_to_rest(service, frontend):
    """Whoever scales by them would see the last busy moment until somebody asks again."""
    asked = [frontend.post({"prompt": "a", "max_new_tokens": 64}) for _ in range(4)]
    wing(service).gauges._told = 0.0
    frontend.round()
    assert not wing(service).gauges.at_rest
    frontend.run(*asked)
    end = time.monotonic() + 5
    while not wing(service).gauges.at_rest:
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("request_", "status", "says"),
    [
        (frames.form({'{"prompt": "a"}': b""}), 400, "send JSON, as content-type"),
        (frames.post(b"x", **{"Content-Encoding": "gzip"}), 415, "only identity"),
        (frames.post(b'{"prompt": "' + b"a" * 1_100_000 + b'"}'), 413, "the limit is"),
    ],
)
def test_bodies_that_are_not_read(frontend, request_, status, says):
    frontend.live["bad"] = client = Client(request_)
    frontend.run(client)
    assert client.status == status and says in client.document["error"]["message"]


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1e-40},
        {"temperature": 0.001, "top_p": 1e-6},
        {"temperature": 2, "top_k": 10**9},
        {"temperature": 2, "top_p": 1},
        {"top_k": 1},
    ],
)
def test_no_sampling_ends_the_engine(service, frontend, alone, sampling):
    assert frontend.ask({"prompt": PROMPTS[0], "max_new_tokens": NEW, **sampling}).status == 200
    answered = frontend.ask({"prompt": PROMPTS[0], "max_new_tokens": NEW}).document
    assert answered["response"] == alone(PROMPTS[0])[0] and not wing(service).application.dead()


@pytest.mark.parametrize(
    ("path", "document", "says"),
    [
        (COMPLETIONS, {"prompt": ""}, "the prompt has no tokens"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "parts of text"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "wizardry"}]},
            "the chat template refuses these messages: no wizardry",
        ),
    ],
)
def test_what_the_engine_cannot_read(frontend, path, document, says):
    answered = frontend.ask(document, path)
    assert (answered.status, answered.document["error"]["param"]) == (400, None)
    assert says in answered.document["error"]["message"]


def test_a_request_has_to_fit_into_the_engines_memory(tmp_path):
    tiny_models.chatter(tmp_path / "model", positions=4096)
    frontend = Frontend(worker.start(tmp_path, task="text-generation", cache_tokens=512))
    answered = frontend.ask({"prompt": "a " * 2000})
    assert answered.status == 400 and "reads at most 512" in answered.document["error"]["message"]
    assert frontend.ask({"prompt": "a " * 100, "max_new_tokens": 1000}).document["finish_reason"] in (
        "length",
        "stop",
    )


@pytest.mark.parametrize("warm_up", [True, False])
def test_it_generates_before_it_is_ready_unless_it_is_not_to(model, monkeypatch, warm_up):
    asked, begin = [], Application.begin
    monkeypatch.setattr(Application, "begin", lambda self, ask: asked.append(ask.path) or begin(self, ask))
    frontend = Frontend(worker.start(model.parent, task="text-generation", warm_up=warm_up))
    assert asked == ["/v1/completions"] * warm_up
    assert frontend.ask({"prompt": "a", "max_new_tokens": 2}).status == 200


def test_a_model_without_a_template_continues_its_prompt(tmp_path):
    model = tiny_models.chatter(tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    frontend = Frontend(worker.start(tmp_path, task="text-generation"))
    native = frontend.ask({"prompt": PROMPTS[0], "max_new_tokens": NEW}).document
    completed = frontend.ask({"prompt": PROMPTS[0], "max_tokens": NEW}, COMPLETIONS).document
    assert native["response"] == completed["choices"][0]["text"]
    chat = frontend.ask({"messages": messages("a")}, CHAT)
    assert chat.status == 400 and "no chat template" in chat.document["error"]["message"]


def test_bad_and_good_share_a_round(frontend, alone):
    good = [frontend.post({"prompt": prompt, "max_new_tokens": NEW}) for prompt in PROMPTS]
    bad = [frontend.post({"prompt": 7}), frontend.post(b"{", CHAT)]
    frontend.run()
    assert [client.status for client in bad] == [422, 400]
    assert [client.document["response"] for client in good] == [alone(prompt)[0] for prompt in PROMPTS]


def test_an_answer_that_is_too_large_is_its_requests_alone(service, frontend, alone, monkeypatch):
    """TorchServe would kill the worker for it (CodecUtils.java:26)."""
    monkeypatch.setattr(
        rounds, "SIGN_SECONDS", 60.0
    )  # however slow it is, its status is not out before it has one

    def limit(size):
        handler = replace(wing(service).config.handler, max_response_bytes=size)
        monkeypatch.setattr(wing(service), "config", replace(wing(service).config, handler=handler))

    limit(10)
    for path, asked in (("", {"prompt": "a"}), (CHAT, {"messages": messages("a")})):
        for stream in (False, True):
            answered = frontend.ask({**asked, "stream": stream}, path)
            error = answered.document["error"]
            assert (
                answered.status == 413
                and "the limit is 10" in error["message"]
                and ("param" in error) == bool(path)
            )
    limit(1_000_000)
    begun = frontend.post({"prompt": "a", "max_new_tokens": 64, "stream": True})
    while not begun.pieces:
        frontend.round()
    limit(1)
    frontend.run()
    assert begun.events[-1]["error"]["type"] == "server_error"
    settled(service)


def test_a_frontend_that_was_slow_ends_what_was_let_go(service, frontend):
    """After a silence its requests come on as if they were new, with nothing."""
    begun = frontend.post({"prompt": "a", "max_new_tokens": 64, "stream": True})
    while not begun.pieces:
        frontend.round()
    settled(service)
    frontend.run()
    assert begun.events[-1]["error"]["type"] == "server_error"


def test_a_defect_is_its_requests_alone(service, frontend, alone, monkeypatch):
    good = frontend.post({"prompt": PROMPTS[0], "max_new_tokens": NEW})
    bad = frontend.post({"messages": messages("a")}, CHAT)
    broken = frontend.post({"prompt": "b", "stream": True, "max_new_tokens": 64})
    frontend.round()
    rows = list(wing(service).live.values())

    def defect(*_):
        raise KeyError("secret")

    rows[1].route = replace(rows[1].route, whole=defect)
    while not broken.pieces:
        frontend.round()
    rows[2].route = replace(rows[2].route, piece=defect)
    frontend.run()
    assert good.document["response"] == alone(PROMPTS[0])[0]
    assert bad.status == 500 and b"secret" not in bad.body and bad.document["error"]["type"] == "server_error"
    assert broken.events[-1]["error"]["type"] == "server_error"
    settled(service)


def test_a_figure_that_cannot_be_had_fails_no_round(service, frontend, alone, monkeypatch):
    looked = []
    broken = replace(wing(service).engine, load=lambda: looked.append(1) or {}["nothing"])
    monkeypatch.setattr(wing(service), "engine", broken)
    monkeypatch.setattr(wing(service).gauges, "_told", 0.0)
    answered = frontend.ask({"prompt": PROMPTS[0], "max_new_tokens": NEW}).document
    assert answered["response"] == alone(PROMPTS[0])[0] and looked


def test_an_engine_that_is_gone_ends_the_worker(service, frontend, monkeypatch):
    ended = []
    monkeypatch.setattr("os._exit", ended.append)
    monkeypatch.setattr(wing(service).application, "dead", lambda: True)
    frontend.ask({"prompt": "a", "max_new_tokens": 2})
    assert set(ended) == {1}
    ended.clear()
    end = time.monotonic() + 5
    while not ended:  # also where nobody asks
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_round_with_nothing_to_say_answers_nobody(frontend):
    client = frontend.post({"prompt": "a", "max_new_tokens": 64})
    frontend.round()
    assert not client.pieces
    frontend.run(client)


@pytest.mark.parametrize(
    ("choice", "begun"),
    [
        ({"delta": {"role": "assistant", "content": ""}}, False),
        ({"delta": {}, "finish_reason": "stop"}, False),
        ({"delta": {"content": "a"}}, True),
        ({"delta": {"role": "assistant", "reasoning": "a"}}, True),
        ({"delta": {"tool_calls": [{"index": 0}]}}, True),
        ({"message": {"role": "assistant", "content": "a"}}, True),
        ({"text": "a"}, True),
        ({"text": ""}, False),
    ],
)
def test_a_model_has_begun_once_it_says_something(choice, begun):
    """From then on a stream's pieces can wait, whatever they are of."""
    usage = Usage()
    usage.note({"choices": [choice]})
    assert usage.begun is begun


@pytest.mark.parametrize(
    ("piece", "found"),
    [
        (b'data: {"error": {"message": "no", "code": 400}}\n\ndata: [DONE]\n\n', 400),
        (b'data: {"error": {"message": "no", "code": 7}}\n\n', 500),
        (b'data: {"error": "no "quotes""}\n\n', 500),
        (b'data: {"error": {"message": "no"', None),
        (b'data: {"choices": []}\n\n', None),
    ],
)
def test_a_stream_that_begins_with_an_error_is_a_whole_answer(piece, found):
    assert (refused(piece) or [None])[0] == found


def test_an_engines_error_is_of_bounded_length():
    assert len(bounded(b'{"error": {"message": "' + b"a" * 10_000 + b'", "code": 400}}')) < 1000
    assert bounded(b'{"error": {"message": "a"}}') == b'{"error": {"message": "a"}}'


@pytest.mark.parametrize(
    ("frontend_does", "busy"),
    [
        ("child.wait()", False),
        # Not by asking after the child: waitpid(2) calls a thread asleep for a moment that does not wait.
        ("end = lambda: os._exit(child.wait())\nthreading.Thread(target=end).start()\nwhile True: pass", True),
    ],
)
def test_a_frontend_that_is_busy_may_have_a_round(frontend_does, busy):
    worker_does = (
        "import threading, time; from handler.generation.frontend import may_have_a_round\n"
        "watch = threading.Thread(target=lambda: (time.sleep(0.5), print(may_have_a_round())))\n"
        "watch.start(); watch.join()"
    )
    child = f"child = subprocess.Popen([sys.executable, '-c', {worker_does!r}])"
    code = f"import os, subprocess, sys, threading; {child}\n{frontend_does}"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == [str(busy)]
