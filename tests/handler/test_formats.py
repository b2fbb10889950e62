"""Answers of the transformers engine that keep to a format: a schema, an expression, a choice."""

from __future__ import annotations

import json
import logging
import random
import re
import sys

import jsonschema
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from handler.generation import formats
from tests.support import tiny_models, worker
from tests.support.reference import generated
from tests.support.rounds import PROMPTS, Frontend, messages, settled, whole

CHAT, COMPLETIONS, RESPONSES = "v1/chat/completions", "v1/completions", "v1/responses"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["good", "bad"]}, "maxItems": 2},
    },
    "required": ["name", "count", "tags"],
    "additionalProperties": False,
}
CHOICES = ["not good", "not at all", 'the "best"', "a\\b", "c\nd", "ü/\u65e5", "100%"]
BOMB = {"regex": "(a{1000}){1000}"}  # an automaton of a million states, as it is followed
NEW = 400


def of_schema(schema):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_models.chatter(tmp_path_factory.mktemp("chat") / "model", positions=2048)


@pytest.fixture(scope="module")
def service(model):
    return worker.start(model.parent, task="text-generation", max_new_tokens=NEW)


@pytest.fixture
def frontend(service):
    return Frontend(service)


def said(client):
    """Text and reason of an answer, whole or streamed, of either path."""
    assert client.status == 200, client.body
    if not client.pieces[0].content_type.startswith("text/event-stream"):
        [choice] = client.document["choices"]
        return choice["message"]["content"] if "message" in choice else choice["text"], choice["finish_reason"]
    choices = [event["choices"][0] for event in client.events[:-1] if event["choices"]]
    pieces = [one["delta"].get("content") or "" if "delta" in one else one["text"] for one in choices]
    return "".join(pieces), choices[-1]["finish_reason"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    "how",
    [
        {"temperature": 0},
        {"temperature": 1.5, "seed": 3},
        {
            "temperature": 1.5,
            "seed": 4,
            "top_k": 5,
            "min_p": 0.01,
            "frequency_penalty": 1,
            "repetition_penalty": 1.3,
        },
    ],
)
def test_an_answer_keeps_to_its_schema(frontend, path, how, stream):
    asked = {"messages": messages("a story")} if path == CHAT else {"prompt": "a story"}
    for format_ in ({"response_format": of_schema(SCHEMA)}, {"structured_outputs": {"json": json.dumps(SCHEMA)}}):
        text, reason = said(frontend.ask({**asked, **how, **format_, "stream": stream}, path))
        jsonschema.validate(json.loads(text), SCHEMA)
        assert reason == "stop"


def test_any_object_is_one_as_far_as_it_goes(frontend):
    client = frontend.ask(
        {"prompt": "a", "max_tokens": 9, "response_format": {"type": "json_object"}}, COMPLETIONS
    )
    text, reason = said(client)
    assert text.startswith("{") and reason == "length"


def test_it_is_the_likeliest_that_it_may_say(model, frontend):
    """As `generate` gives it that is told at each token which may come."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model).eval()
    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    end, special = loaded.generation_config.eos_token_id, set(tokenizer.all_special_ids)
    tokens = {
        token: bytes(map(letters.get, name))
        for name, token in tokenizer.get_vocab().items()
        if token not in special
    }
    choices = [choice.encode() for choice in CHOICES]
    for prompt in PROMPTS[:3]:
        ids = tokenizer(prompt, return_tensors="pt")

        def may_come(_, so_far, begun=ids["input_ids"].shape[1]):
            text = b"".join(tokens[token] for token in so_far[begun:].tolist())
            goes_on = [
                token for token, piece in tokens.items() if any(c.startswith(text + piece) for c in choices)
            ]
            return goes_on + [end] * (text in choices)

        with torch.inference_mode():
            answer = loaded.generate(**ids, max_new_tokens=20, do_sample=False, prefix_allowed_tokens_fn=may_come)
        wanted = tokenizer.decode(answer[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        asked = {"prompt": prompt, "temperature": 0, "structured_outputs": {"choice": CHOICES}}
        assert said(frontend.ask(asked, COMPLETIONS)) == (wanted, "stop")


@pytest.mark.parametrize(("cache", "puts_off"), [(32_768, False), (1024, True)])
def test_a_crowd_of_which_each_keeps_to_its_own(tmp_path, monkeypatch, model, cache, puts_off):
    """Also where memory has room for a few: then the engine puts some off, and goes on with copies of them."""
    copied, copy = [], formats.Format.__deepcopy__
    monkeypatch.setattr(formats.Format, "__deepcopy__", lambda *one: copied.append(one) or copy(*one))
    (tmp_path / "model").symlink_to(model)
    frontend = Frontend(worker.start(tmp_path, task="text-generation", max_new_tokens=NEW, cache_tokens=cache))
    draw = random.Random(7)
    free = {prompt: generated(model, prompt, 24, chat=False)[0] for prompt in PROMPTS[:3]}
    date, long = r"\d{4}-(0[1-9]|1[0-2])", "[ab]{300}"  # over a page of the engine's memory, of 256 tokens
    kinds = (
        ({"structured_outputs": {"choice": CHOICES}}, lambda text, _: text in CHOICES),
        ({"structured_outputs": {"regex": date}}, lambda text, _: re.fullmatch(date, text)),
        ({"structured_outputs": {"regex": long}}, lambda text, _: re.fullmatch(long, text)),
        (
            {"response_format": of_schema(SCHEMA)},
            lambda text, _: not jsonschema.validate(json.loads(text), SCHEMA),
        ),
        ({"temperature": 0, "max_tokens": 24}, lambda text, prompt: whole(text) == whole(free[prompt])),
    )
    asked = []
    for number in range(50):
        format_, fits = kinds[number % 5]
        prompt = draw.choice([*free])
        how = draw.choice([{"temperature": 0}, {"temperature": 1.2, "seed": number}])
        client = frontend.post({"prompt": prompt, **how, **format_, "stream": number % 3 == 0}, COMPLETIONS)
        asked.append((client, prompt, fits))
    frontend.run(seconds=600)
    for client, prompt, fits in asked:
        text, _ = said(client)
        assert fits(text, prompt), text
    assert bool(copied) == puts_off


@pytest.mark.parametrize("stream", [False, True])
def test_a_thought_that_the_prompt_begins_has_none_of_it(tmp_path, stream):
    """As Qwen 3.5's templates do."""
    fields = {
        "thinking": {"open": "<think>", "close": "</think>", "content": "text"},
        "content": {"close": "<sep>", "content": "text"},
    }
    model = tiny_models.parsed(tiny_models.chatter(tmp_path / "model", positions=2048), fields)
    path = model / "chat_template.jinja"
    path.write_text(path.read_text() + "{% if add_generation_prompt %}<think>{% endif %}")
    service = worker.start(tmp_path, task="text-generation", max_new_tokens=NEW)
    asked = {"messages": messages("a"), "stream": stream}
    for format_, content in (({"structured_outputs": {"choice": CHOICES}}, CHOICES), ({"max_tokens": 9}, [""])):
        text, _ = said(Frontend(service).ask({**asked, **format_}, CHAT))
        assert text in content


def test_every_way_to_ask_for_one(frontend):
    grammar = {"type": "json", "value": {"enum": ["x", "y"]}}
    [one] = frontend.ask({"inputs": "a", "parameters": {"grammar": grammar}}).document
    assert json.loads(one["generated_text"]) in ("x", "y")
    text = {"format": {"type": "json_schema", "name": "answer", "schema": {"enum": ["yes", "no"]}}}
    answered = frontend.ask({"input": "a", "text": text}, RESPONSES).document
    assert json.loads(answered["output"][-1]["content"][0]["text"]) in ("yes", "no")
    several = frontend.ask(
        {"prompt": ["a", "b"], "n": 2, "structured_outputs": {"regex": "[ab]{3}"}}, COMPLETIONS
    ).document
    assert len(several["choices"]) == 4
    assert all(re.fullmatch("[ab]{3}", choice["text"]) for choice in several["choices"])
    for nothing in ({"response_format": {"type": "text"}}, {"response_format": None}):
        asked = {"prompt": "a", "max_tokens": 4, "temperature": 0}
        plain, formed = (said(frontend.ask({**asked, **more}, COMPLETIONS)) for more in ({}, nothing))
        assert plain == formed


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            {"response_format": {"type": "xml"}},
            "response_format: expected a type of text, json_object or json_schema",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema: expected an object"),
        ({"response_format": of_schema({"type": "nothing"})}, "cannot be kept to: Invalid type: nothing"),
        ({"response_format": of_schema({"not": {}})}, 'cannot be kept to: Unimplemented keys: ["not"]'),
        ({"response_format": of_schema({"enum": []})}, "cannot be kept to"),
        ({"response_format": of_schema({"$ref": "https://example.com/schema"})}, "cannot be kept to"),
        (
            {"response_format": of_schema({"items": {"maxItems": 10_000_000}})},
            "maxItems of at most 20000 together",
        ),
        (
            {"response_format": of_schema({"anyOf": 3000 * [{"minItems": 9}]})},
            "maxItems of at most 20000 together",
        ),
        ({"response_format": of_schema([])}, "the schema: expected an object"),
        ({"structured_outputs": {}}, "structured_outputs: expected one of json, regex, choice, json_object"),
        ({"structured_outputs": {"json": "{"}}, "the schema is no JSON"),
        ({"structured_outputs": {"regex": "(a", "json": None}}, "unclosed group"),
        ({"structured_outputs": {"regex": 7}}, "structured_outputs.regex: expected a string"),
        ({"structured_outputs": {"regex": r"(?=a)b"}}, "look-around"),
        ({"structured_outputs": {"choice": ["a", ""]}}, "expected a list of at most 1000 strings"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs.json_object: expected true"),
        ({"structured_outputs": {"grammar": "root ::= 'a'"}}, "structured_outputs: expected one of"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "expected one of"),
        (
            {"response_format": of_schema(json.loads('{"items":' * 200 + "true" + "}" * 200))},
            "recursion limit exceeded",
        ),
    ],
)
def test_what_no_answer_can_keep_to_is_refused(service, frontend, asked, says):
    refused = frontend.ask({"prompt": "a", **asked}, COMPLETIONS)
    assert refused.status == 400 and says in refused.document["error"]["message"]
    settled(service)


def test_who_asks_for_too_much_harms_nobody(service, frontend, caplog):
    asked = {"prompt": "a", "max_tokens": 20, "temperature": 0}
    before = said(frontend.ask(asked, COMPLETIONS))
    beside = frontend.post({**asked, "structured_outputs": {"choice": CHOICES}}, COMPLETIONS)
    streamed = frontend.post({**asked, "structured_outputs": BOMB, "stream": True}, COMPLETIONS)
    refused = frontend.ask({**asked, "structured_outputs": BOMB}, COMPLETIONS)
    frontend.run()
    assert refused.document["error"]["message"] == formats.UNFOLLOWED
    assert any("error" in event for event in streamed.events)
    assert said(beside)[0] in CHOICES and said(frontend.ask(asked, COMPLETIONS)) == before
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    settled(service)


def test_a_model_whose_answers_have_no_end_keeps_to_none(tmp_path, caplog):
    model = tiny_models.endless(tiny_models.chatter(tmp_path / "model"))
    frontend = Frontend(worker.start(model.parent, task="text-generation"))
    assert "answers cannot be kept to a format" in caplog.text
    schema = {"type": "json_schema", "name": "answer", "schema": SCHEMA}
    for path, asked, status in (
        (COMPLETIONS, {"prompt": "a", "response_format": {"type": "json_object"}}, 400),
        (CHAT, {"messages": messages("a"), "structured_outputs": {"regex": "a"}}, 400),
        (RESPONSES, {"input": "a", "text": {"format": schema}}, 400),
        ("", {"inputs": "a", "parameters": {"grammar": {"type": "regex", "value": "a"}}}, 422),
    ):
        refused = frontend.ask(asked, path)
        assert refused.status == status and b"this engine does not do this" in refused.body
    asked = {"prompt": "a", "max_tokens": 2, "response_format": {"type": "text"}}
    assert frontend.ask(asked, COMPLETIONS).status == 200


def test_a_tokenizer_whose_pieces_are_no_bytes_has_none(tmp_path, caplog):
    tiny_models.classifier(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")  # WordPiece's
    assert formats.find(tokenizer, len(tokenizer), [3]) is None
    assert "cannot be kept to a format" in caplog.text


def test_without_llguidance_there_are_none(monkeypatch, caplog, model):
    monkeypatch.setitem(sys.modules, "llguidance.hf", None)
    assert formats.find(AutoTokenizer.from_pretrained(model), 330, [3]) is None
    assert "llguidance" in caplog.text
