"""Generation over the real server, with the clients that people have."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Literal

import grpc
import huggingface_hub
import openai
import psutil
import pydantic
import pytest
import requests
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI

from client import ManagementClient
from handler.generation.measures import GAUGE_SECONDS
from serving.signals import TWICE_SECONDS
from tests.support import archives, tiny_models
from tests.support.grpc import Inference
from tests.support.openai_clients import twelve_responses_say, twenty_four_say
from tests.support.reference import generated
from tests.support.rounds import PROMPTS, messages, whole
from tests.support.serving import Serving, served

pytestmark = pytest.mark.server

NEW = 24
LONG = 3000  # tokens of an answer that takes many seconds
FLAGS = ("--set=batchSize=32", "--set=handler.max_new_tokens=400", "--set=jobQueueSize=100")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_models.shown_tools(tiny_models.chatter(tmp_path_factory.mktemp("chat") / "model", positions=2048))


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    archives.build_model(store, "chat", model, "text-generation", *FLAGS)
    with served(store, ["chat.mar"], "--drain-seconds=600") as running:  # a slow machine has as long as it takes
        yield running


@pytest.fixture(scope="module")
def lasting_store(tmp_path_factory):
    """A model that goes on and on."""
    store = tmp_path_factory.mktemp("lasting")
    model = tiny_models.endless(tiny_models.chatter(store / "model", positions=2 * LONG))
    archives.build_model(store, "chat", model, "text-generation", f"--set=handler.max_new_tokens={LONG}")
    return store


@pytest.fixture(scope="module")
def lasting(lasting_store):
    with served(lasting_store, ["chat.mar"], "--gateway") as running:
        yield running


@pytest.fixture(scope="module")
def wanted(model):
    """prompt -> what `generate` answers to it alone."""
    return {prompt: generated(model, prompt, NEW)[0] for prompt in PROMPTS}


@pytest.fixture
def chat(server):
    url = f"{server.inference_url}/predictions/chat/1.0/v1"
    with openai.OpenAI(base_url=url, api_key="-", max_retries=0) as client:
        yield client


class Verdict(pydantic.BaseModel):
    """What to say of something."""

    model_config = pydantic.ConfigDict(extra="forbid")  # or a model of random weights would say more
    verdict: Literal["good", "bad"]
    score: Annotated[int, pydantic.Field(ge=0, le=9)]


def native(server, **fields):
    return requests.post(f"{server.inference_url}/predictions/chat", json=fields, timeout=60, stream=True)


def worker_pid(server):
    [model] = ManagementClient(server.management_url).models()
    [worker] = model.workers
    return worker.pid


def test_the_openai_client(chat, wanted):
    assert [model.id for model in chat.models.list()] == ["chat"] == [chat.models.retrieve("chat").id]
    for prompt in PROMPTS:
        answer = chat.chat.completions.create(model="chat", messages=messages(prompt), max_tokens=NEW)
        assert answer.choices[0].message.content == wanted[prompt] and answer.model == "chat"
        stream = chat.chat.completions.create(model="chat", messages=messages(prompt), max_tokens=NEW, stream=True)
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
        assert "".join(pieces) == whole(wanted[prompt])
    with pytest.raises(openai.NotFoundError, match="only chat is served"):
        chat.chat.completions.create(model="other", messages=messages("a"))
    with pytest.raises(openai.BadRequestError, match="temperature"):
        chat.chat.completions.create(model="chat", messages=messages("a"), temperature=3)


def test_the_openai_client_reads_what_keeps_to_its_own_types(chat):
    asked = {"model": "chat", "messages": messages("a"), "temperature": 1.5}
    for _ in range(3):
        answer = chat.chat.completions.parse(**asked, response_format=Verdict)
        assert isinstance(answer.choices[0].message.parsed, Verdict)
    answer = chat.responses.parse(model="chat", input="a", temperature=1.5, text_format=Verdict)
    assert isinstance(answer.output_parsed, Verdict)
    with pytest.raises(openai.BadRequestError, match="this format cannot be kept to"):
        chat.chat.completions.create(
            **asked, response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}
        )


def test_langchain_has_tools_called(server):
    url = f"{server.inference_url}/predictions/chat/1.0/v1"
    model = ChatOpenAI(model="chat", base_url=url, api_key="-", temperature=1.5, max_retries=0)
    for method in ("function_calling", "json_schema"):
        assert isinstance(model.with_structured_output(Verdict, method=method).invoke("a"), Verdict)
    for choice in ("any", "Verdict"):
        caller = model.bind_tools([Verdict], tool_choice=choice, parallel_tool_calls=False)
        asked = caller.invoke("a")
        [call] = asked.tool_calls
        assert Verdict(**call["args"]) and call["name"] == "Verdict" and not asked.content
        [piece] = [piece for piece in caller.stream("a") if piece.tool_calls]
        assert Verdict(**piece.tool_calls[0]["args"])
        answer = model.invoke(
            [HumanMessage("a"), asked, ToolMessage("noted", tool_call_id=call["id"])], max_tokens=5
        )
        assert answer.content


def test_a_stream_of_several_answers_and_how_likely_they_are(chat, wanted):
    said, told = defaultdict(str), defaultdict(list)
    asked = {
        "n": 3,
        "max_tokens": NEW,
        "logprobs": True,
        "top_logprobs": 1,
        "stream_options": {"include_usage": True},
    }
    stream = chat.chat.completions.create(model="chat", messages=messages(PROMPTS[0]), stream=True, **asked)
    for chunk in stream:
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
            told[choice.index] += choice.logprobs.content if choice.logprobs else []
    assert said == dict.fromkeys(range(3), whole(wanted[PROMPTS[0]]))
    assert chunk.usage.completion_tokens == sum(map(len, told.values())) == 3 * len(told[0])


def test_the_asynchronous_openai_client(server, wanted):
    for clients_say in (twenty_four_say, twelve_responses_say):
        for prompt, said in clients_say(f"{server.inference_url}/predictions/chat/1.0/v1", NEW):
            assert whole(said) == whole(wanted[prompt])


def test_the_openai_clients_responses(chat, wanted):
    asked = {"model": "chat", "max_output_tokens": NEW}
    conversation = [{"role": "user", "content": "a"}]
    for more in (
        {"input": PROMPTS[0]},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": PROMPTS[0]}]}]},
    ):
        answer = chat.responses.create(**asked, **more)
        assert answer.output_text == wanted[PROMPTS[0]] and answer.model == "chat"
        stream = chat.responses.create(**asked, **more, stream=True)
        assert "".join(event.delta for event in stream if event.type == "response.output_text.delta") == whole(
            wanted[PROMPTS[0]]
        )
    for _ in range(2):  # with all that was answered, as it came
        answer = chat.responses.create(**asked, input=conversation, instructions="be kind", store=False)
        conversation += [*answer.output, {"role": "user", "content": "b"}]
    assert answer.instructions == "be kind" and answer.usage.input_tokens > NEW
    with chat.responses.stream(**asked, input="a") as stream:  # its own reading of the events
        said = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert said == whole(chat.responses.create(**asked, input="a").output_text)
    for bad, says in (
        ({"input": "a", "store": True}, "nothing is kept here"),
        ({"input": "a", "previous_response_id": "resp_1"}, "nothing is kept here"),
        ({"input": "a", "tools": [{"type": "web_search"}]}, "tools: expected a list of functions"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://a/b"}]}]},
            "of text",
        ),
        ({"input": "wizardry", "stream": True}, "no wizardry"),
    ):
        with pytest.raises(openai.BadRequestError, match=says):
            chat.responses.create(model="chat", **bad)
    with pytest.raises(openai.NotFoundError, match="only chat is served"):
        chat.responses.create(model="other", input="a")
    for call in (chat.responses.retrieve, chat.responses.cancel, chat.responses.delete):
        with pytest.raises(openai.APIStatusError) as refused:
            call("resp_1")
        assert refused.value.status_code in (404, 405)


def test_a_native_stream_comes_piece_by_piece(server, wanted):
    with native(server, prompt=PROMPTS[1], max_new_tokens=NEW, stream=True) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        events = [line.removeprefix("data: ") for line in response.iter_lines(decode_unicode=True) if line]
    assert events[-1] == "[DONE]" and len(events) > 3
    assert "".join(json.loads(event)["text"] for event in events[:-1]) == whole(wanted[PROMPTS[1]])


@pytest.mark.parametrize("path", ["/predictions/chat", "/predictions/chat/1.0/v1/hub"])
def test_the_hubs_client(server, model, path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    client = huggingface_hub.InferenceClient(server.inference_url + path)
    said = client.text_generation(PROMPTS[1], max_new_tokens=NEW)
    assert said == generated(model, PROMPTS[1], NEW, chat=False)[0]
    *pieces, last = client.text_generation(PROMPTS[1], max_new_tokens=NEW, stream=True, details=True)
    assert "".join(piece.token.text for piece in pieces) == last.generated_text == whole(said) and len(pieces) > 3
    assert "".join(client.text_generation(PROMPTS[1], max_new_tokens=NEW, stream=True)) == whole(said)
    detailed = client.text_generation(PROMPTS[1], max_new_tokens=NEW, details=True)
    assert detailed.generated_text == said and detailed.details.generated_tokens == last.details.generated_tokens
    with pytest.raises(huggingface_hub.errors.ValidationError, match="temperature"):
        client.text_generation("a", temperature=3)


@pytest.mark.parametrize("path", ["/v1/models/chat:predict", "/predictions/chat"])
def test_each_instance_gets_its_prediction(server, wanted, path):
    asked = {"instances": [*PROMPTS], "parameters": {"max_new_tokens": NEW}}
    answered = requests.post(f"{server.inference_url}{path}", json=asked, timeout=60)
    said = [prediction["response"] for prediction in answered.json()["predictions"]]
    assert said == [wanted[prompt] for prompt in PROMPTS]


def test_grpc_gets_whole_answers(server, wanted):
    """Unary, and as a stream of one piece, whose end nobody named would kill the worker."""
    before = worker_pid(server)
    asked = {"prompt": PROMPTS[0], "max_new_tokens": NEW}
    with grpc.insecure_channel(server.grpc_address) as channel:
        inference = Inference(channel)
        [streamed] = inference.stream("chat", data=json.dumps(asked).encode())
        whole_ = inference.predict("chat", data=json.dumps(asked).encode())
        assert {json.loads(one)["response"] for one in (streamed, whole_)} == {wanted[PROMPTS[0]]}
        for call in (inference.predict, lambda *a, **k: next(inference.stream(*a, **k))):
            refused = json.loads(call("chat", data=json.dumps({**asked, "stream": True}).encode()))
            assert "ask over HTTP" in refused["error"]["message"]
            assert "error" in json.loads(call("chat", x=b"\xff"))
    assert worker_pid(server) == before


def test_two_hundred_for_thirty_two_places(server, wanted):
    """All are answered in order, or refused because the queue is full; none hangs."""

    def ask(number):
        response = native(server, prompt=PROMPTS[number % 4], max_new_tokens=NEW)
        return number, response.status_code, response.content

    with ThreadPoolExecutor(200) as threads:
        answers = list(threads.map(ask, range(200)))
    statuses = [status for _, status, _ in answers]
    assert set(statuses) <= {200, 503} and statuses.count(200) >= 132
    for number, status, body in answers:
        if status == 200:
            assert json.loads(body)["response"] == wanted[PROMPTS[number % 4]]


def test_who_leaves_harms_nobody(server, wanted):
    before = worker_pid(server)
    for _ in range(3):
        left = [native(server, prompt="a", max_new_tokens=400, stream=True) for _ in range(32)]
        for response in left:
            next(response.iter_content(10))
            response.close()
        answered = native(server, prompt=PROMPTS[0], max_new_tokens=NEW).json()
        assert answered["response"] == wanted[PROMPTS[0]]
    assert worker_pid(server) == before


def until(holds, seconds=30.0):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("gateway", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_is_noticed_within_two_seconds(lasting, gateway, stream):
    """All that was asked for would take many more."""
    body = json.dumps({"prompt": "a", "max_new_tokens": LONG, "stream": stream}).encode()
    head = f"POST /predictions/chat HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    port = lasting.port_base + (5 if gateway else 0)
    left = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
    for connection in left:
        connection.sendall(head + body)
    until(lambda: metrics(lasting).get("HandlerLive") == 8)
    for connection in left:
        connection.close()
    until(lambda: metrics(lasting)["HandlerRunning"] == 0, 2 + 2 * GAUGE_SECONDS)


@pytest.mark.parametrize("gateway", [True, False])
def test_a_whole_answer_that_takes_long_is_read_by_the_openai_client(lasting, gateway):
    url = f"{lasting.gateway_url}/v1" if gateway else f"{lasting.inference_url}/predictions/chat/1.0/v1"
    with openai.OpenAI(base_url=url, api_key="-", max_retries=0) as client:
        said = client.chat.completions.with_raw_response.create(
            model="chat", messages=messages("a"), max_tokens=LONG // 2
        )
    assert said.text.startswith("\n\n") and said.headers["content-type"].startswith("application/json")
    assert said.parse().usage.completion_tokens == LONG // 2


def test_a_worker_that_dies_answers_everybody_at_once(server):
    with ThreadPoolExecutor(8) as threads:
        asked = [
            threads.submit(lambda: native(server, prompt="a", max_new_tokens=400).status_code) for _ in range(8)
        ]
        time.sleep(0.3)
        os.kill(worker_pid(server), signal.SIGKILL)
        killed = time.monotonic()
        statuses = [one.result(30) for one in asked]
        assert time.monotonic() - killed < 10
    assert set(statuses) <= {200, 500, 503, 507}
    ManagementClient(server.management_url).ready("chat")
    assert native(server, prompt="a", max_new_tokens=2).status_code == 200


def test_memory_is_no_more_than_was_asked_for(server):
    """Left to itself the engine takes nearly all of the machine's."""
    assert psutil.Process(worker_pid(server)).memory_info().rss < 2e9


def test_a_worker_ends_with_its_frontend(model, tmp_path):
    """It ends by sys.exit, which would wait for every thread of the engine."""
    archives.build_model(tmp_path, "chat", model, "text-generation", *FLAGS)
    with Serving(tmp_path, ["chat.mar"]) as running:
        assert native(running, prompt="a", max_new_tokens=2).status_code == 200
        worker = psutil.Process(worker_pid(running))
        [java] = [one for one in running.processes() if one.name() == "java"]
        java.kill()
        _, left = psutil.wait_procs([worker], timeout=20)
        assert not left


def metrics(server):
    """Name -> value, of what the handler tells and the page shows."""
    page = requests.get(f"{server.metrics_url}/metrics", timeout=10).text
    found = {}
    for line in page.splitlines():
        if line.startswith("Handler") and not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            found[name.partition("{")[0]] = float(value)
    return found


def test_what_it_took_is_measured_and_logged_without_its_text(server):
    before = metrics(server)
    for _ in range(3):
        with native(server, prompt="they sent another one", max_new_tokens=NEW, stream=True) as response:
            assert b"[DONE]" in response.content
    time.sleep(1.2)
    native(server, prompt="they sent another one", max_new_tokens=2)
    time.sleep(0.5)
    found = metrics(server)
    new = {name: value - before.get(name, 0) for name, value in found.items()}
    assert new["HandlerRequests"] == 4 and new["HandlerNewTokens"] <= 3 * NEW + 2
    assert new["HandlerPromptTokens"] > 4 * 3
    assert new["HandlerFirstTokenSeconds_count"] == 3 and new["HandlerAnswerSeconds_count"] == 4
    assert new["HandlerTokenSeconds_count"] == 3
    assert 0 < new["HandlerFirstTokenSeconds_sum"] < new["HandlerAnswerSeconds_sum"]
    assert {"HandlerLive", "HandlerRunning", "HandlerWaiting"} <= found.keys() and 0 <= found[
        "HandlerCacheUsed"
    ] <= 1
    logged = [line for line in server.output().splitlines() if " tokens_out=" in line]
    assert any(": 200 seconds=" in line and f"tokens_out={NEW}" in line for line in logged)
    assert "another one" not in server.output()


def test_a_client_that_does_not_read_slows_nobody(server, wanted):
    """Its answers wait in the frontend and in the kernel; the rounds go on."""
    asked = {"prompt": "a", "max_new_tokens": 400, "stream": True}
    idle = [native(server, **asked) for _ in range(8)]
    started = time.monotonic()
    for _ in range(4):
        assert native(server, prompt=PROMPTS[0], max_new_tokens=NEW).json()["response"] == wanted[PROMPTS[0]]
    took = time.monotonic() - started
    for response in idle:
        assert b"[DONE]" in response.content  # nothing of it is lost
        response.close()
    assert took < 30


def test_a_stop_lets_every_stream_end(server):
    """The last test of this server, which is no more."""
    family = server.processes()
    asked = {"prompt": "a story", "max_new_tokens": 400, "stream": True}
    streams = [native(server, **asked).iter_lines() for _ in range(8)]
    assert all(next(filter(None, lines)).startswith(b"data: {") for lines in streams)  # after signs of life
    os.kill(server.supervisor, signal.SIGTERM)
    refused = 0
    while not refused:  # a few may come in before it has shut its door
        try:
            refused += native(server, prompt="a", max_new_tokens=1).status_code == 503
        except requests.ConnectionError:
            refused += 1
    assert [[line for line in lines if line][-1] for lines in streams] == [b"data: [DONE]"] * 8
    _, left = psutil.wait_procs(family, timeout=60)
    assert not left


def test_a_second_signal_waits_for_nobody(lasting_store):
    """Nor does a third one leave anything behind."""
    with Serving(lasting_store, ["chat.mar"], "--gateway", "--drain-seconds=600") as server:
        asked = {"prompt": "a story", "max_new_tokens": LONG}
        lines = requests.post(f"{server.gateway_url}/generate-stream", json=asked, stream=True).iter_lines()
        assert next(filter(None, lines)).startswith(b"data: {")
        server.processes()  # `stop` proves that they have ended
        for _ in "ab":  # as one that a launcher sends to its child and to the group
            os.kill(server.supervisor, signal.SIGTERM)
        while "stopping: waiting for what was accepted" not in server.output():
            time.sleep(0.05)
        time.sleep(TWICE_SECONDS)
        assert next(filter(None, lines)).startswith(b"data: {") and "at once" not in server.output()
        os.kill(server.supervisor, signal.SIGINT)
        while "stopping at once" not in server.output():
            time.sleep(0.01)
        os.kill(server.supervisor, signal.SIGINT)
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            list(lines)
        assert server._launcher.wait(60) == 1
        assert os.listdir(server.temp) == [server.log.name]
        assert "Traceback" not in server.output()
