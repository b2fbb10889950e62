"""Rounds over vLLM's own engine, which runs here on the CPU."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import psutil
import pytest
import torch
from openai.types.responses import Response
from prometheus_client import REGISTRY
from transformers import AutoTokenizer

from handler.config import ConfigError, read_config
from handler.errors import LoadError
from handler.generation import rounds
from handler.generation.guard import LOOK_SECONDS
from handler.generation.vllm_arguments import read_arguments
from handler.generation.vllm_engine import _choose_gpus
from tests.support import tiny_models, worker
from tests.support.reference import generated, last_hidden_state
from tests.support.rounds import (
    NEW,
    PROMPTS,
    Frontend,
    a_response_says_what_a_chat_says,
    a_speakers_name_is_read,
    messages,
    settled,
    thirty_two_say_what_each_says_alone,
    whole,
    wing,
)

CHAT, COMPLETIONS, EMBEDDINGS = "v1/chat/completions", "v1/completions", "v1/embeddings"
RESPONSES = "v1/responses"
NAMED = {"type": "function", "function": {"name": "f"}}
IMAGE = {"type": "input_image", "image_url": "http://127.0.0.1:1/a.png"}
VALUE = {"type": "json_object", "value": {"type": "object"}}  # as huggingface_hub 2.4 sends a schema
NEGATIVE = {"type": "string", "minLength": -1}
UNIQUE = {"type": "array", "uniqueItems": True}
SMALL = {"enforce_eager": True, "kv_cache_memory_bytes": 50_000_000, "max_model_len": 512}
ADAPTED = {"enable_lora": True, "lora_modules": [{"name": "parrot", "path": "adapters/parrot"}]}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    made = tiny_models.chatter(tmp_path_factory.mktemp("chat") / "model", hidden=128)  # heads of 32, its least
    tiny_models.adapter(made, made / "adapters" / "parrot")
    return made


@pytest.fixture(scope="module")
def service(model):
    logging.getLogger().setLevel(logging.INFO)  # as TorchServe's worker sets it
    vllm = {**SMALL, **ADAPTED, "enable_auto_tool_choice": True, "tool_call_parser": "pythonic"}
    return worker.start(model.parent, task="text-generation", engine="vllm", max_new_tokens=64, vllm=vllm)


@pytest.fixture
def frontend(service):
    return Frontend(service)


@pytest.fixture(scope="module")
def alone(model):
    """prompt -> what transformers' `generate` makes of it, greedily, template and all."""
    return partial(generated, model, new=NEW)


def test_its_requests_are_logged_and_measured(service, frontend):
    """Metrics are lines of the worker's log; something that vLLM imports turns all but errors off."""
    root = logging.getLogger()
    assert root.isEnabledFor(logging.INFO)
    lines = logging.StreamHandler(stream := io.StringIO())
    root.addHandler(lines)
    try:
        wing(service).gauges._told = 0.0
        assert frontend.ask({"prompt": "a secret", "max_new_tokens": 4, "stream": True}).status == 200
    finally:
        root.removeHandler(lines)
    logged = stream.getvalue()
    assert "tokens_out=4" in logged and "HandlerFirstTokenSeconds" in logged and "HandlerCacheUsed" in logged
    assert "secret" not in logged


def test_it_says_what_transformers_says(frontend, alone):
    for prompt in PROMPTS:
        text, size, new = alone(prompt)
        answered = frontend.ask({"prompt": prompt, "max_new_tokens": NEW}).document
        assert whole(answered.pop("response")) == whole(text)
        assert answered == {
            "input_token_count": size,
            "output_token_count": new,
            "finish_reason": "length" if new == NEW else "stop",
        }
    text, _, _ = alone(PROMPTS[0], chat=False)
    completed = frontend.ask({"prompt": PROMPTS[0], "max_tokens": NEW, "temperature": 0}, COMPLETIONS).document
    assert whole(completed["choices"][0]["text"]) == whole(text) and completed["model"] == "tiny"


def test_thirty_two_at_once_say_what_each_says_alone(frontend, alone):
    thirty_two_say_what_each_says_alone(frontend, alone)


def test_a_speakers_name_is_read(frontend, model):
    a_speakers_name_is_read(frontend, model)


def test_instances_and_text_input(frontend, alone):
    instances = [PROMPTS[0], {"prompt": PROMPTS[1], "seed": 7, "temperature": 1}, {"messages": messages("a")}]
    answered = frontend.ask({"instances": instances, "parameters": {"max_new_tokens": NEW}}).document
    asked = [{"prompt": PROMPTS[0]}, *instances[1:]]
    assert answered["predictions"] == [frontend.ask({**one, "max_new_tokens": NEW}).document for one in asked]
    refused = frontend.ask({"instances": ["a", "a " * 2000]})
    assert refused.status == 400 and refused.document["error"].startswith("instances[1]: ")
    text = frontend.ask({"text_input": PROMPTS[0], "max_tokens": NEW}, "v2/generate").document["text_output"]
    streamed = frontend.ask({"text_input": PROMPTS[0], "max_tokens": NEW}, "v2/generate_stream").events
    assert text == alone(PROMPTS[0], chat=False)[0]
    assert whole("".join(event["text_output"] for event in streamed)) == whole(text) and streamed[-1]["done"]


def test_a_response_is_a_chats_answer(frontend):
    a_response_says_what_a_chat_says(frontend)


@pytest.mark.parametrize("stream", [True, False])
def test_a_responses_schema_and_a_call_that_it_has_to_make(frontend, stream):
    enum = {"enum": ["yes", "no"]}
    asked = {"input": "a", "temperature": 0, "stream": stream}

    def answered(**more):
        client = frontend.ask({**asked, **more}, RESPONSES)
        document = client.events[-1]["response"] if stream else client.document
        return Response.model_validate(document, strict=True)

    judged = answered(text={"format": {"type": "json_schema", "name": "answer", "schema": enum}})
    assert json.loads(judged.output_text) in enum["enum"] and judged.status == "completed"
    parameters = {"type": "object", "properties": {"a": enum}, "required": ["a"], "additionalProperties": False}
    function = {"type": "function", "name": "f", "parameters": parameters}
    [call] = answered(tools=[function], tool_choice={"type": "function", "name": "f"}).output
    assert (call.type, call.name) == ("function_call", "f") and json.loads(call.arguments)["a"] in enum["enum"]


def test_what_the_protocol_has_and_transformers_engine_has_not(frontend, alone):
    text, size, _ = alone(PROMPTS[1])
    ask = {"messages": messages(PROMPTS[1]), "max_tokens": NEW}
    two = frontend.ask({**ask, "n": 2, "logprobs": True, "seed": 7, "temperature": 1}, CHAT).document
    assert len(two["choices"]) == 2 and two["choices"][0]["logprobs"]["content"]
    again = frontend.ask({**ask, "n": 2, "seed": 7, "temperature": 1}, CHAT).document
    assert [c["message"]["content"] for c in two["choices"]] == [c["message"]["content"] for c in again["choices"]]
    stop = text[5:7]
    stopped = frontend.ask({"prompt": PROMPTS[1], "max_new_tokens": NEW, "stop": stop}).document
    assert stopped["response"] == text[: text.index(stop)] and stopped["finish_reason"] == "stop"
    stream = frontend.ask({**ask, "stream": True, "temperature": 0}, CHAT)
    *chunks, last = stream.events
    assert last == "[DONE]" and not any(chunk.get("usage") for chunk in chunks)
    asked = {"stream": True, "stream_options": {"include_usage": True}, "user": "me"}
    *_, last, _ = frontend.ask({**ask, **asked}, CHAT).events
    assert last["choices"] == [] and last["usage"]["prompt_tokens"] == size
    assert [model["id"] for model in frontend.ask(b"", "v1/models").document["data"]] == ["tiny", "parrot"]


def test_many_prompts_a_bias_and_a_schema(model, frontend, alone):
    asked = {"max_tokens": NEW, "temperature": 0}
    two = frontend.ask({**asked, "prompt": list(PROMPTS[:2])}, COMPLETIONS).document
    said = {choice["index"]: whole(choice["text"]) for choice in two["choices"]}
    assert said == {index: whole(alone(PROMPTS[index], chat=False)[0]) for index in range(2)}
    token = AutoTokenizer.from_pretrained(model).encode("z", add_special_tokens=False)[0]
    biased = frontend.ask({**asked, "prompt": "a", "logit_bias": {str(token): 100}}, COMPLETIONS).document
    assert biased["choices"][0]["text"] == NEW * "z"
    schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"enum": ["yes", "no"]}}}
    judged = frontend.ask({**asked, "messages": messages("a"), "response_format": schema}, CHAT).document
    assert json.loads(judged["choices"][0]["message"]["content"]) in ("yes", "no")


def test_hugging_faces_parameters_that_transformers_engine_has_not(model, frontend):
    def said(inputs, **parameters):
        asked = {"inputs": inputs, "parameters": {"max_new_tokens": NEW, **parameters}}
        return [one["generated_text"] for one in frontend.ask(asked).document]

    assert said("a film", grammar={"type": "regex", "value": "(yes|no)"})[0] in ("yes", "no")
    assert json.loads(said("a", grammar={"type": "json", "value": {"enum": ["x", "y"]}})[0]) in ("x", "y")
    tokens = AutoTokenizer.from_pretrained(model)(PROMPTS[0])["input_ids"][-2:]
    of_tokens = frontend.ask({"prompt": tokens, "max_tokens": NEW, "temperature": 0}, COMPLETIONS).document
    assert said(PROMPTS[0], truncate=2) == [of_tokens["choices"][0]["text"]] != said(PROMPTS[0])
    assert said(PROMPTS[0], adapter_id="parrot") != said(PROMPTS[0], adapter_id="tiny") == said(PROMPTS[0])
    drawn = [said("a", num_return_sequences=3, do_sample=True, seed=7) for _ in range(2)]
    assert drawn[0] == drawn[1] and len(set(drawn[0])) > 1
    assert said(PROMPTS[0], repetition_penalty=0.01) != said(PROMPTS[0])  # what was said is said again


def test_hugging_faces_streams_and_lists(frontend, alone):
    text = whole(alone(PROMPTS[1], chat=False)[0])
    parameters = {"max_new_tokens": NEW}
    *events, last = frontend.ask({"inputs": PROMPTS[1], "parameters": parameters, "stream": True}).events
    assert whole(last["generated_text"]) == text
    assert last["generated_text"] == "".join(event["token"]["text"] for event in events)
    answers = frontend.ask({"inputs": list(PROMPTS[:2]), "parameters": parameters}).document
    wanted = [whole(alone(prompt, chat=False)[0]) for prompt in PROMPTS[:2]]
    assert [whole(answer["generated_text"]) for [answer] in answers] == wanted
    asked = {"inputs": PROMPTS[1], "parameters": {**parameters, "stop": [text[5:7]], "details": True}}
    for stream in (True, False):
        answered = frontend.ask({**asked, "stream": stream})
        details = (answered.events[-1] if stream else answered.document[0])["details"]
        assert details["finish_reason"] == "stop_sequence" and 0 < details["generated_tokens"] < NEW
    refused = frontend.ask({"inputs": "a " * 600, "stream": True})
    assert refused.status == 400 and refused.document["error_type"] == "validation"


def test_no_tools_are_no_reason_to_refuse(frontend):
    nothing = {"tools": [], "tool_choice": "auto", "parallel_tool_calls": False, "top_k": -1, "min_p": 0}
    assert frontend.ask({"messages": messages("a"), "max_tokens": 1, **nothing}, CHAT).status == 200


def test_a_completions_stream_tells_its_usage(frontend, alone):
    text, size, new = alone(PROMPTS[0], chat=False)
    asked = {"prompt": PROMPTS[0], "max_tokens": NEW, "temperature": 0, "stream": True}
    *chunks, last, done = frontend.ask({**asked, "stream_options": {"include_usage": True}}, COMPLETIONS).events
    assert whole("".join(chunk["choices"][0]["text"] for chunk in chunks)) == whole(text)
    assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"], done) == (size, new, "[DONE]")


def test_an_adapter_says_what_its_merged_weights_say(model, frontend, alone, tmp_path):
    merged = tiny_models.merged(model, model / "adapters" / "parrot", tmp_path / "model")
    asked = {"max_tokens": NEW, "temperature": 0}
    clients = {
        (prompt, name): frontend.post({**asked, "model": name, "messages": messages(prompt)}, CHAT)
        for prompt in PROMPTS
        for name in ("parrot", "tiny")
    }
    frontend.run()
    for (prompt, name), client in clients.items():
        assert client.document["model"] == name
        own, adapted = alone(prompt)[0], generated(merged, prompt, NEW)[0]
        said = client.document["choices"][0]["message"]["content"]
        assert own != adapted and whole(said) == whole(adapted if name == "parrot" else own)


@pytest.mark.parametrize(
    ("path", "document", "status", "says"),
    [
        ("", {"prompt": "a", "max_new_tokens": 65}, 422, "the limit is 64"),
        ("", {"prompt": "a " * 600}, 400, "maximum context length is 512 tokens. However, your prompt contains 6"),
        (CHAT, {"messages": []}, 400, "at least one message"),
        (CHAT, {"messages": [{"role": "wizard", "content": "a"}]}, 400, "messages[0].role"),
        (CHAT, {"messages": messages("a"), "temperature": 3}, 400, "temperature"),
        (CHAT, {"messages": messages("a"), "max_tokens": 0}, 400, "max_tokens"),
        (CHAT, {"messages": messages("a"), "wrong": 0}, 400, "wrong: this engine does not do this"),
        (CHAT, {"messages": messages("a"), "kv_transfer_params": {}}, 400, "kv_transfer_params"),
        (CHAT, {"messages": messages("a"), "tempersture": 1}, 400, "did you mean temperature"),
        (CHAT, {"messages": [{**messages("a")[0], "name": 7}]}, 400, "messages[0].name: expected a string"),
        (CHAT, {"messages": messages("wizardry")}, 400, "no wizardry"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "parts of text"),
        (CHAT, {"messages": messages("a"), "model": "other"}, 404, "only tiny, parrot is served"),
        (COMPLETIONS, {"prompt": ""}, 400, "empty"),
        (COMPLETIONS, {"prompt": {"a": 1}}, 400, "prompt"),
        (COMPLETIONS, {"prompt": "a", "prompt_embeds": "AAAA"}, 400, "prompt_embeds"),
        (COMPLETIONS, {"prompt": ["a"] * 33, "n": 2}, 400, "at most 64 answers"),
        (CHAT, {"messages": messages("a"), "max_tokens": 65}, 400, "the limit is 64"),
        (CHAT, {"messages": messages("a"), "structured_outputs": {"grammar": "root ::="}}, 400, "Invalid grammar"),
        (CHAT, {"messages": messages("a"), "structured_outputs": {"grammar": "root ::= root"}}, 400, "no answer"),
        (COMPLETIONS, {"prompt": "a", "structured_outputs": {"regex": "a{1000}{1000}"}}, 400, "regex"),
        (COMPLETIONS, {"prompt": "a", "structured_outputs": {"json": NEGATIVE}}, 400, "cannot be kept to"),
        (COMPLETIONS, {"prompt": "a", "structured_outputs": {"json": UNIQUE}}, 400, "not supported by xgrammar"),
        (
            CHAT,
            {"messages": messages("a"), "structured_outputs": "x"},
            400,
            "structured_outputs: expected an object",
        ),
        (CHAT, {"messages": messages("a"), "tools": [{}], "tool_choice": NAMED}, 400, "tools: expected"),
        (CHAT, {"messages": messages("a"), "response_format": VALUE}, 400, "a schema is given as json_schema"),
        (CHAT, {"messages": messages("a"), "logit_bias": {"99999999": 1}}, 400, "99999999"),
        (CHAT, {"messages": messages("a"), "logit_bias": {"99999999": 1}, "stream": True}, 400, "99999999"),
        (CHAT, {"messages": messages("a"), "return_token_offsets": True}, 400, "return_token_offsets"),
        (EMBEDDINGS, {"input": "a"}, 404, "no such path"),
        (RESPONSES, {"input": "a", "max_output_tokens": 65}, 400, "max_output_tokens: 65; the limit is 64"),
        (RESPONSES, {"input": "a", "store": True}, 400, "store: nothing is kept here"),
        (RESPONSES, {"input": "a", "background": True}, 400, "background: nothing is kept here"),
        (RESPONSES, {"input": "a", "previous_response_id": "resp_1"}, 400, "nothing is kept here"),
        (RESPONSES, {"input": "a", "tools": [{"type": "code_interpreter"}]}, 400, "a list of functions"),
        (RESPONSES, {"input": "a", "tools": [{"type": "mcp", "server_label": "a"}]}, 400, "a list of functions"),
        (RESPONSES, {"input": [{"role": "user", "content": [IMAGE]}]}, 400, "input[0].content"),
        (RESPONSES, {"input": "a", "logit_bias": {"99999999": 1}}, 400, "99999999"),
        (RESPONSES, {"input": "a", "logit_bias": {"99999999": 1}, "stream": True}, 400, "99999999"),
        (RESPONSES, {"input": "a", "request_id": "mine"}, 400, "request_id: this engine does not do this"),
        (RESPONSES, {"input": "a", "enable_response_messages": True}, 400, "enable_response_messages"),
        (RESPONSES, {"input": "a " * 600}, 400, "maximum context length is 512 tokens"),
        (RESPONSES, {"input": "a", "model": "other"}, 404, "only tiny, parrot is served"),
        ("v1/responses/resp_1", b"", 404, "no such path"),
        ("v1/responses/resp_1/cancel", {}, 404, "no such path"),
        ("tokenize", {"prompt": "a"}, 404, "no such path"),
        ("v1/load_lora_adapter", {}, 404, "no such path"),
    ],
)
def test_bad_input_is_refused_in_the_protocols_own_shape(frontend, path, document, status, says):
    answered = frontend.ask(document, path)
    error = answered.document["error"]
    assert answered.status == status, answered.body
    assert says in error["message"]
    assert ("param" in error) == path.startswith("v1/")


def test_a_cap_over_the_context_is_no_reason_to_refuse(service, frontend, monkeypatch):
    served = replace(wing(service).served, limits=replace(wing(service).served.limits, new_tokens=1024))
    monkeypatch.setattr(wing(service), "served", served)
    assert frontend.ask({"prompt": "a"}).status == 200


def test_logprobs_beyond_the_limit_cost_the_worker_nothing(service, frontend, monkeypatch):
    monkeypatch.setattr(
        rounds, "SIGN_SECONDS", 60.0
    )  # however slow it is, its status is not out before it has one
    handler = replace(wing(service).config.handler, max_response_bytes=10_000)
    monkeypatch.setattr(wing(service), "config", replace(wing(service).config, handler=handler))
    asked = {"messages": messages("a"), "logprobs": True, "top_logprobs": 20, "max_tokens": 32, "n": 4}
    answered = frontend.ask(asked, CHAT)
    assert answered.status == 413 and "the limit is 10000" in answered.document["error"]["message"]


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_is_cancelled(service, frontend, monkeypatch, stream, path):
    monkeypatch.setattr(rounds, "SIGN_SECONDS", 0.0)

    def generated_tokens():
        return REGISTRY.get_sample_value("vllm:generation_tokens_total", {"engine": "0", "model_name": "tiny"})

    before = generated_tokens()
    said = {"messages": messages("a"), "max_tokens": 64} if path == CHAT else {"input": "a"}
    left = [frontend.post({**said, "ignore_eos": True, "stream": stream}, path) for _ in range(8)]
    frontend.round()
    for client in left[1:]:
        frontend.leave(client)
    frontend.run()
    settled(service)
    assert generated_tokens() - before < 8 * 64


def arguments(model, **vllm):
    document = {"handler": {"task": "text-generation", "engine": "vllm", "vllm": vllm, "max_new_tokens": 64}}
    return read_arguments(vllm, model, read_config(document), "tiny")


def test_arguments_are_those_of_vllms_own_parser(model):
    given = arguments(
        model,
        max_model_len=256,
        gpu_memory_utilization=0.5,
        enforce_eager=True,
        enable_prefix_caching=False,
        quantization="fp8",
        tensor_parallel_size=2,
        compilation_config={"mode": 0},
        **ADAPTED,
    )
    assert (given.max_model_len, given.gpu_memory_utilization, given.enforce_eager) == (256, 0.5, True)
    assert (given.enable_prefix_caching, given.quantization, given.tensor_parallel_size) == (False, "fp8", 2)
    assert [(one.name, one.path) for one in given.lora_modules] == [("parrot", str(model / "adapters/parrot"))]
    assert (given.max_num_seqs, given.served_model_name, given.dtype) == (64, ["tiny"], "float32")


@pytest.mark.parametrize(("said", "backend"), [({}, "xgrammar"), ({"backend": "guidance"}, "guidance")])
def test_one_backend_keeps_answers_to_their_formats(model, said, backend):
    """With `auto` it would be that of the first format that anybody asks for."""
    given = arguments(model, structured_outputs_config=said)
    assert given.structured_outputs_config.backend == backend


def test_without_it_one_line_says_what_to_install(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm.entrypoints.launchers.api_server", None)
    with pytest.raises(LoadError, match=r"^handler.engine vllm needs vLLM .*requirements-vllm.txt$"):
        worker.start(model.parent, task="text-generation", engine="vllm")


def test_every_wrong_argument_is_named_at_once(model):
    with pytest.raises(ConfigError) as refused:
        arguments(
            model,
            max_model_length=256,
            tensor_parallel_size="two",
            trust_remote_code=True,
            distributed_executor_backend="some.module.Executor",
            port=80,
            dtype="float16",
            lora_modules=[{"name": "sql", "path": "../../sql"}],
        )
    found = {problem.key: str(problem) for problem in refused.value.problems}
    assert "did you mean max_model_len?" in found["handler.vllm.max_model_length"]
    assert "'two'" in found["handler.vllm.tensor_parallel_size"]
    assert "refused" in found["handler.vllm.trust_remote_code"] and "refused" in found["handler.vllm.port"]
    assert "expected one of mp, uni" in found["handler.vllm.distributed_executor_backend"]
    assert "handler.dtype" in found["handler.vllm.dtype"]
    assert "is not in the archive" in found["handler.vllm.lora_modules"]
    assert "expected true" in found["handler.vllm.enable_lora"]
    assert len(found) == 8
    with pytest.raises(ConfigError, match=r"adapters has no adapter_config.json"):
        arguments(model, enable_lora=True, lora_modules=[{"name": "sql", "path": "adapters"}])


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"engine": "vllm", "cache_tokens": 1024}, "handler.cache_tokens: 1024: is to be left out"),
        ({"engine": "vllm", "attention": "eager"}, "handler.attention: eager"),
        ({"vllm": {"max_model_len": 1}}, "not for engine transformers"),
        ({"max_text_bytes": 7}, "handler.max_text_bytes: 7: is to be left out"),
        ({"engine": "vllm", "vllm": 7}, "a mapping of vLLM's arguments"),
    ],
)
def test_settings_of_the_other_engine_are_refused(section, says):
    with pytest.raises(ConfigError, match=says):
        read_config({"handler": {"task": "text-generation", **section}})


@pytest.mark.parametrize(
    ("server", "vllm", "before", "after"),
    [
        ({}, {}, None, "1"),
        ({"deviceIds": [2, 3]}, {"tensor_parallel_size": 2}, None, "2,3"),
        ({}, {"tensor_parallel_size": 2}, None, None),
        ({}, {}, "5,7", "7"),
    ],
)
def test_it_sees_the_gpus_that_it_is_to_take(monkeypatch, server, vllm, before, after):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that it is as it was when this test has ended
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if before:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    handler = {"task": "text-generation", "engine": "vllm", "vllm": vllm}
    _choose_gpus(read_config({**server, "handler": handler}), torch.device("cuda", 1))
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == after


def test_an_engine_that_is_killed_is_gone(service, frontend, monkeypatch):
    """The last test of this engine, which is no more."""
    ended = []
    monkeypatch.setattr("os._exit", ended.append)
    client = frontend.post({"prompt": "a", "max_new_tokens": 64, "stream": True})
    while not client.pieces:
        frontend.round()
    cores = [process for process in psutil.Process().children(recursive=True) if "VLLM" in process.name()]
    assert cores and os.getpid() not in [process.pid for process in cores]
    for process in cores:
        process.kill()
    end = time.monotonic() + 20
    while not ended:
        assert time.monotonic() < end
        frontend.round()
    assert client.status == 200 and "error" in client.events[-2] and client.done
    wing(service)._silent = -math.inf  # its watch would end the process, which here is the tests'


@pytest.mark.parametrize("looks", [2, 0])
def test_a_worker_that_is_killed_while_it_loads_leaves_no_process(looks):
    """As TorchServe kills one that takes longer than startupTimeout; also what it has only just started."""
    code = (
        "import subprocess, time\n"
        "from handler.generation.guard import guard\n"
        "held = guard()\n"
        "engine = ['sh', '-c', 'sleep 60 & echo $!; wait']\n"
        "child = subprocess.Popen(engine, stdout=subprocess.PIPE, text=True)\n"
        "print(child.pid, child.stdout.readline(), flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as worker_:
        left = [psutil.Process(int(pid)) for pid in worker_.stdout.readline().split()]
        time.sleep(looks * LOOK_SECONDS)
        worker_.kill()
    assert len(left) == 2
    gone, alive = psutil.wait_procs(left, timeout=10)
    assert not alive and len(gone) == 2


def test_a_pooling_model_embeds(model):
    """One more engine; it takes the other's place in vLLM's metrics, so that it has to come after."""
    vllm = {**SMALL, "runner": "pooling", "convert": "embed"}
    service = worker.start(model.parent, task="text-generation", engine="vllm", vllm=vllm, max_items=4)
    frontend = Frontend(service)
    texts = [prompt for prompt in PROMPTS if prompt]
    answered = frontend.ask({"model": "tiny", "input": texts}, EMBEDDINGS).document
    assert [one["index"] for one in answered["data"]] == [0, 1, 2] and answered["model"] == "tiny"
    for text, one in zip(texts, answered["data"], strict=True):
        np.testing.assert_allclose(one["embedding"], last_hidden_state(model, text), atol=1e-5)
    for path, says in (
        ("", "this model generates no text"),
        (CHAT, "no such path"),
        (COMPLETIONS, "no such path"),
    ):
        refused = frontend.ask({"prompt": "a"}, path)
        assert refused.status == 404 and says in refused.document["error"]["message"]
    many = frontend.ask({"input": 5 * ["a"]}, EMBEDDINGS)
    assert many.status == 400 and "input: 5 texts; the limit is 4" in many.document["error"]["message"]
    assert frontend.ask({"input": [1, 2, 3, 4, 5]}, EMBEDDINGS).status == 200  # one text, as tokens
    packed = frontend.ask({"input": "a", "encoding_format": "bytes"}, EMBEDDINGS)
    assert packed.status == 400 and "float, base64" in packed.document["error"]["message"]
    wrong = frontend.ask({"input": "a", "dimension": 7}, EMBEDDINGS)
    assert wrong.status == 400 and "did you mean dimensions" in wrong.document["error"]["message"]
