"""The gateway in front of the server: what gets through, where it goes, and what becomes of it in bad times."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import huggingface_hub
import numpy as np
import openai
import psutil
import pytest
import requests
import tritonclient.http
from langchain_openai import ChatOpenAI

from client import ManagementClient
from serving.gateway import keys
from tests.support import archives, tiny_models
from tests.support.load import TEXTS, Load
from tests.support.raw import raw, status_of
from tests.support.rounds import whole
from tests.support.serving import Serving, served

pytestmark = pytest.mark.server

TEXT = {"text": "a film"}
HUB_NAME = "microsoft/Phi-3-mini-4k-instruct"


@pytest.fixture(scope="module")
def store(tiny, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    model = tiny["text-classification"] / "model"
    archives.build_model(store, "tiny", model, "text-classification", "--version=2.0").rename(store / "next.mar")
    archives.build_model(store, "tiny", model, "text-classification")
    chatter = tiny_models.chatter(tmp_path_factory.mktemp("chat") / "model")
    called = f"--set=handler.served_model_names=[{HUB_NAME}]"
    archives.build_model(store, "chat", chatter, "text-generation", called)
    return store


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """Name -> key; `file` is the file of their hashes."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    made = {"ann": keys.new("ann", "inference"), "root": keys.new("root", "inference,administration")}
    file.write_text("".join(f"{line}\n" for _, line in made.values()))
    return {**{name: token for name, (token, _) in made.items()}, "file": file}


@pytest.fixture(scope="module")
def server(store, tokens, tmp_path_factory):
    file = tmp_path_factory.mktemp("gateway") / "gateway.yaml"
    told = {
        "keys": str(tokens["file"]),
        "administration": True,
        "models": {"tiny": {"canary": {"version": "2.0", "weight": 0}}},
        "health": ["/custom/health"],
        "predict": ["/v1/endpoints/1/deployedModels/2:predict"],
    }
    file.write_text(json.dumps(told))
    with served(store, ["tiny.mar", "next.mar", "chat.mar"], "--gateway", str(file)) as running:
        yield running


@pytest.fixture
def ask(server, tokens):
    """A request with a key, to a path."""

    def send(path, document=None, method=None, who="ann", **headers):
        url = f"{server.gateway_url}{path}"
        headers = {"Authorization": f"Bearer {tokens.get(who, who)}", **headers}
        how = method or ("GET" if document is None else "POST")
        return requests.request(how, url, json=document, headers=headers, timeout=60)

    return send


# -- batches


def test_one_answer_of_a_batch_comes_in_two_pieces(ask, server, tokens):
    """So that the next batch can gather; whoever speaks HTTP/1.0 gets it whole."""
    texts = ["a film", "good", "the battery died", "a wonderful story"] * 50
    alone = {text: ask("/predictions/tiny", {"text": text}).json()["probabilities"] for text in set(texts)}
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda text: ask("/predictions/tiny", {"text": text}), texts))
    assert {answer.status_code for answer in answers} == {200}
    for text, answer in zip(texts, answers, strict=True):
        np.testing.assert_allclose(answer.json()["probabilities"], alone[text], atol=1e-5)
    assert 0 < sum("transfer-encoding" in answer.headers for answer in answers) < 100
    assert not any("ts_stream_next" in answer.headers for answer in answers)
    body = json.dumps(TEXT).encode()
    head = (
        f"POST /predictions/tiny HTTP/1.0\r\nAuthorization: Bearer {tokens['ann']}\r\nContent-Length: {len(body)}"
    )
    with ThreadPoolExecutor(16) as threads:
        found = list(
            threads.map(lambda _: raw(server.port_base + 5, f"{head}\r\n\r\n".encode() + body), range(100))
        )
    for answer in found:
        lines, _, document = answer.partition(b"\r\n\r\n")
        assert status_of(answer) == 200 and b"chunked" not in lines.lower() and json.loads(document)["label"]


# -- routes


@pytest.mark.parametrize(
    "path",
    [
        "/predict",
        "/invocations",
        "/",
        "/v1/endpoints/1/deployedModels/2:predict",
        "/predictions/tiny",
        "/predictions/tiny/1.0",
        "/predictions/tiny/2.0",
        "/v1/models/tiny:predict",
    ],
)
def test_every_way_to_a_prediction(ask, path):
    answer = ask(path, TEXT)
    assert answer.status_code == 200 and answer.json()["label"].startswith("LABEL_")


@pytest.mark.parametrize("path", ["/health", "/ping", "/readyz", "/v2/health/ready", "/livez", "/custom/health"])
def test_health_needs_no_key(server, path):
    assert requests.get(server.gateway_url + path, timeout=5).status_code == 200
    assert requests.head(server.gateway_url + path, timeout=5).status_code == 200


def test_the_seeds_requests_to_classify(ask, server):
    """PredictRequest, InferenceRequest, and curl with nothing but a host."""
    found = ask("/predict", {"texts": ["a film", "b"], "model_name": "default"}).json()
    assert len(found["predictions"]) == 2
    assert ask("/predict", {"text": "a", "request_id": "7"}).json()["label"]
    assert requests.get(f"{server.gateway_url}/", timeout=5).status_code == 200


def test_the_seeds_way_to_generate(ask):
    answer = ask("/generate", {"prompt": "a", "max_new_tokens": 4}).json()
    assert answer["output_token_count"] <= 4 and "response" in answer


def test_the_seeds_way_to_stream(server, tokens):
    """Its client's own lines, with our URL and key."""
    headers = {"Authorization": f"Bearer {tokens['ann']}"}
    asked = {"prompt": "hello", "max_tokens": 8, "temperature": 0.7}
    response = requests.post(f"{server.gateway_url}/generate-stream", headers=headers, json=asked, stream=True)
    told = [line[6:] for line in response.iter_lines() if line.startswith(b"data: ")]
    assert told[-1] == b"[DONE]" and "".join(json.loads(piece)["text"] for piece in told[:-1])


def test_text_is_generated_by_kserves_protocols(ask, server, tokens):
    """And by Vertex AI's and Triton's, which are the same."""
    asked = {"instances": ["a", {"prompt": "a", "temperature": 0}], "parameters": {"max_tokens": 4}}
    found = ask("/v1/models/chat:predict", asked).json()["predictions"]
    assert found[0] == found[1] and found[0]["output_token_count"] <= 4
    assert ask("/generate", asked).json()["predictions"] == found
    wanted = {"text_input": "a", "parameters": {"max_tokens": 8, "temperature": 0}}
    answers = [
        ask(path, wanted).json() for path in ("/v2/models/chat/generate", "/v2/models/chat/versions/1.0/generate")
    ]
    assert answers[0] == answers[1] and answers[0]["text_output"] and answers[0]["model_name"] == "chat"
    headers = {"Authorization": f"Bearer {tokens['ann']}"}
    for path in ("/v2/models/chat/generate_stream", "/predictions/chat/1.0/v2/generate_stream"):
        response = requests.post(server.gateway_url + path, headers=headers, json=wanted, stream=True, timeout=30)
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith(b"data: ")]
        text = "".join(event["text_output"] for event in events)
        assert whole(text) == whole(answers[0]["text_output"]) and events[-1]["done"]
    assert ask("/v2/models/tiny/generate", wanted).status_code == 404
    assert ask("/v2/models/chat/infer", wanted).status_code == 404


def test_the_seeds_way_with_langchain(server, tokens):
    """Its client's own lines, with our URL and key, and a model's name that is the hub's."""
    url, token = server.gateway_url, tokens["ann"]
    chat = ChatOpenAI(
        model="microsoft/Phi-3-mini-4k-instruct", openai_api_base=f"{url}/v1", openai_api_key=token, max_tokens=8
    )
    answer = chat.invoke("hello")
    assert answer.content and answer.usage_metadata["output_tokens"] <= 8
    assert "".join(piece.text for piece in chat.stream("hello"))


def test_a_model_is_found_by_what_it_is_called_on_the_hub(ask):
    for model, status in (("chat", 200), (HUB_NAME, 200), ("microsoft/other", 404)):
        asked = {"model": model, "prompt": "a", "max_tokens": 1}
        assert ask("/v1/completions", asked).status_code == status, model
        asked = {"model": model, "input": "a", "max_output_tokens": 1}
        assert ask("/v1/responses", asked).status_code == status, model


def test_the_seeds_triton_client(server, tokens, ask):
    """As its TritonClient does: readiness, tokenized input, logits; and metadata and texts."""
    client = tritonclient.http.InferenceServerClient(server.gateway_url.partition("//")[2])
    headers = {"Authorization": f"Bearer {tokens['ann']}"}
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("tiny")
    metadata = client.get_model_metadata("tiny", headers=headers)
    assert metadata["name"] == "tiny" and {"input_ids", "text"} <= {given["name"] for given in metadata["inputs"]}
    ids, mask = np.array([[2, 5, 6, 3]]), np.ones((1, 4), dtype=np.int64)
    inputs = [
        tritonclient.http.InferInput("input_ids", ids.shape, "INT64"),
        tritonclient.http.InferInput("attention_mask", mask.shape, "INT64"),
    ]
    inputs[0].set_data_from_numpy(ids)
    inputs[1].set_data_from_numpy(mask)
    outputs = [tritonclient.http.InferRequestedOutput("logits")]
    found = client.infer("tiny", inputs, outputs=outputs, headers=headers).as_numpy("logits")
    assert found.shape[0] == 1 and np.isfinite(found).all()
    text = tritonclient.http.InferInput("text", [1], "BYTES")
    text.set_data_from_numpy(np.array(["a film"], dtype=object))
    label = client.infer("tiny", [text], headers=headers).as_numpy("label")[0]
    assert label.decode() == ask("/predict", TEXT).json()["label"]


def test_the_hubs_client(server, tokens, ask, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    url = f"{server.gateway_url}/predictions/tiny/1.0/v1/hub"
    best, *_ = huggingface_hub.InferenceClient(url, token=tokens["ann"]).text_classification(TEXT["text"])
    assert best.label == ask("/predict", TEXT).json()["label"]
    generating = huggingface_hub.InferenceClient(f"{server.gateway_url}/generate", token=tokens["ann"])
    said = generating.text_generation("hello", max_new_tokens=8)
    assert whole(said) == "".join(generating.text_generation("hello", max_new_tokens=8, stream=True))


def test_the_openai_client(server, tokens):
    client = openai.OpenAI(base_url=f"{server.gateway_url}/v1", api_key=tokens["ann"], max_retries=0)
    messages = [{"role": "user", "content": "hello"}]
    answer = client.chat.completions.create(model="chat", messages=messages, max_tokens=8, temperature=0)
    pieces = client.chat.completions.create(
        model="chat", messages=messages, max_tokens=8, temperature=0, stream=True
    )
    said = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert whole(said) == whole(answer.choices[0].message.content)
    asked = {"model": "chat", "input": "hello", "max_output_tokens": 8, "temperature": 0}
    assert client.responses.create(**asked).output_text == answer.choices[0].message.content
    events = list(client.responses.create(**asked, stream=True))
    assert whole(events[-1].response.output_text) == whole(said)
    assert [model.id for model in client.models.list()] == ["chat", HUB_NAME]
    direct = openai.OpenAI(base_url=f"{server.gateway_url}/predictions/chat/1.0/v1", api_key=client.api_key)
    assert client.models.retrieve("chat").id == direct.models.retrieve("chat").id == "chat"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=messages)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.gateway_url}/v1", api_key="wrong").models.list()
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.gateway_url}/v1", api_key="wrong").responses.create(**asked)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_1")


def test_a_model_says_whether_it_is_ready(server, ask):
    assert requests.get(f"{server.gateway_url}/v2/models/tiny/ready", timeout=5).json()["ready"] is True
    assert requests.get(f"{server.gateway_url}/v2/models/absent/ready", timeout=5).status_code == 404
    assert ask("/v1/models/tiny").json()["ready"] is True


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/predict", 405),
        ("PUT", "/predictions/tiny", 405),
        ("OPTIONS", "/predictions/tiny", 405),
        ("DELETE", "/health", 405),
        ("POST", "/predictions/absent", 404),
        ("POST", "/predictions/tiny/3.0", 404),
        ("POST", "/explanations/tiny", 404),
        ("POST", "/workflows", 404),
        ("POST", "/wfpredict/x", 404),
        ("GET", "/metrics", 404),
        ("GET", "/api-description", 404),
        ("POST", "/models", 405),
        ("POST", "/predictions/tiny/1.0/load_model", 404),
        ("POST", "//predict", 404),
        ("POST", "/predict/", 404),
        ("POST", "/predict%2f", 404),
        ("POST", "/predictions/tiny/../../models", 404),
        ("POST", "/predictions/tiny%2f1.0", 404),
        ("POST", "/predictions/tiny/1.0/v1/../../x", 404),
        ("POST", "/predictions/tiny/1.0/v1//models", 404),
        ("POST", "/predictions/tiny/1.0/v1/models/", 404),
        ("POST", "/predictions/%74iny", 404),
        ("POST", "/predict;a=b", 404),
        ("POST", "/predict%00", 404),
        ("POST", "/predict?model_name=chat", 400),
        ("POST", "/" + "a" * 600, 414),
    ],
)
def test_nothing_else_gets_through(server, tokens, method, path, status):
    body = b'{"text": "a"}' if method in ("POST", "PUT") else b""
    key = tokens["ann"]
    head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(body)}"
    assert status_of(raw(server.port_base + 5, head.encode() + b"\r\n\r\n" + body)) == status


HIDDEN = b'POST /predictions/tiny HTTP/1.1\r\nHost: a\r\nContent-Length: 13\r\n\r\n{"text": "a"}'


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 1e3\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"X\x00: a\r\n",
        b"Upgrade: h2c\r\nContent-Length: 0\r\n",
        b"A: " + b"a" * 70_000 + b"\r\n",
        b"".join(b"A%d: a\r\n" % number for number in range(100)),
    ],
)
def test_smuggling_is_refused(server, tokens, lines):
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + tokens["ann"].encode() + b"\r\n"
    answer = raw(server.port_base + 5, head + lines + b"\r\n" + HIDDEN)
    assert 400 <= status_of(answer) < 500
    assert b"HTTP/1.1 200" not in answer and b"LABEL" not in answer


def test_both_lengths_leave_no_room_between_the_two(server, tokens):
    """RFC 9112, 6.3: chunked wins and the other goes; what follows the last chunk is a request of its own."""
    key = tokens["ann"].encode()
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + key
    both = b"\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert status_of(raw(server.port_base + 5, head + both + HIDDEN)) in (400, 411)


def test_a_request_takes_no_headers_of_torchserves_own(ask):
    assert ask("/predict", TEXT, describe="True", explain="True", url_path="v1/models").json()["label"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "multipart/form-data; boundary=a"}, 415),
        ({"Content-Type": "Application/X-WWW-Form-Urlencoded"}, 415),
        ({"Content-Length": "6553501"}, 413),
        ({"Transfer-Encoding": "chunked"}, 411),
    ],
)
def test_bodies_that_are_not_taken(server, tokens, headers, status):
    lines = "".join(f"{name}: {value}\r\n" for name, value in {"Content-Length": "1", **headers}.items())
    if "Transfer-Encoding" in headers:
        lines = "Transfer-Encoding: chunked\r\n"
    head = f"POST /predict HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {tokens['ann']}\r\n{lines}\r\n"
    assert status_of(raw(server.port_base + 5, head.encode())) == status


def test_headers_are_refused_before_netty_breaks_off(ask):
    told = [ask("/predict", TEXT, a="a" * size).status_code for size in (7_000, *range(7_500, 8_200, 20), 10_000)]
    assert set(told) == {200, 431} and told == sorted(told)


# -- keys


def test_who_may_do_what(server, ask):
    assert ask("/predict", TEXT, who="nobody").status_code == 401
    assert ask("/predict", TEXT, who="nobody").headers["WWW-Authenticate"] == "Bearer"
    assert requests.post(f"{server.gateway_url}/predict", json=TEXT, timeout=5).status_code == 401
    assert ask("/models").status_code == 403
    assert {model["modelName"] for model in ask("/models", who="root").json()["models"]} == {"tiny", "chat"}


def test_administrators_load_and_unload(server, ask, tokens):
    assert ask("/models/more/load", {}, who="ann").status_code == 403
    assert ask("/models/more/load?model_path=../x.mar", {}, who="root").status_code == 400
    assert ask("/models/more/load?model_path=tiny.mar&x=y", {}, who="root").status_code == 400
    assert ask("/models/more/load", {}, who="root").status_code == 400
    head = (
        f"POST /models/more/load?model_path=tiny.mar HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {tokens['root']}"
    )
    # as `curl -X POST` does
    loaded = raw(server.port_base + 5, f"{head}\r\nConnection: close\r\n\r\n".encode(), 60)
    assert status_of(loaded) == 200, loaded
    assert ask("/predictions/more", TEXT).json()["label"]
    assert ask("/models/more", method="DELETE", who="root").status_code == 200
    assert ask("/predictions/more", TEXT).status_code == 404


def test_keys_change_while_requests_go_on(server, ask, tokens):
    headers = {"Authorization": f"Bearer {tokens['ann']}"}
    load = Load(f"{server.gateway_url}/predict", 1, keep_alive=True, body=TEXT, headers=headers)
    before = tokens["file"].read_text()
    token, line = keys.new("late", "inference")
    try:
        assert ask("/predict", TEXT, who=token).status_code == 401
        tokens["file"].write_text(before + "nonsense\n")
        wait_for(lambda: "the keys stay as they were" in server.output())
        assert ask("/predict", TEXT).status_code == 200
        tokens["file"].write_text(before + line + "\n")
        wait_for(lambda: ask("/predict", TEXT, who=token).status_code == 200)
        tokens["file"].write_text(before)
        wait_for(lambda: ask("/predict", TEXT, who=token).status_code == 401)
        assert ask("/predict", TEXT).status_code == 200
    finally:
        tokens["file"].write_text(before)
        outcomes = load.end()
    assert set(outcomes) == {"200"}, outcomes


def wait_for(holds, seconds=20):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_no_key_is_in_the_log_or_reaches_the_worker(server, ask, tokens):
    ask("/predict", TEXT)
    assert tokens["ann"] not in server.output()


# -- what is seen


def test_a_request_is_one_line_of_json_with_the_clients_own_id(server, ask):
    own, trace = f"mine-{uuid.uuid4()}", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = ask("/predict", TEXT, **{"X-Request-Id": own, "traceparent": trace})
    assert answer.headers["x-request-id"] == own
    wait_for(lambda: f'"id":"{own}"' in server.output())
    line = next(line for line in server.output().splitlines() if own in line and line.startswith("{"))
    told = json.loads(line)
    assert (told["status"], told["key"], told["path"], told["traceparent"]) == (200, "ann", "/predict", trace)
    wait_for(lambda: f" ms: {own}:200" in server.output())  # the handler's own line
    generated = f"gen-{uuid.uuid4()}"
    ask("/generate", {"prompt": "a", "max_new_tokens": 2}, **{"X-Request-Id": generated})
    wait_for(lambda: f": 200 id={generated} seconds=" in server.output())
    assert ask("/predict", TEXT, **{"X-Request-Id": 'a"b'}).headers["x-request-id"] != 'a"b'


def test_prometheus(server):
    page = requests.get(server.exporter_url, timeout=5).text
    assert 'haproxy_backend_http_responses_total{proxy="m.tiny",code="2xx"}' in page
    assert requests.get(server.exporter_url.replace("/metrics", "/stats"), timeout=5).status_code == 404


# -- canary


def versions(ask, count, **headers):
    """The versions that answered."""
    return [ask("/predictions/tiny", TEXT, **headers).headers["x-model-version"] for _ in range(count)]


def weight(server, percent, model="tiny"):
    command = [sys.executable, "-m", "serving.gateway", "weight", model, str(percent)]
    environment = {**os.environ, "TMPDIR": str(server.temp)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_canary_by_weight_sticky_and_changed_while_it_runs(server, ask):
    assert versions(ask, 20) == ["1.0"] * 20
    assert weight(server, 50).returncode == 0
    found = versions(ask, 60)
    assert 10 < found.count("2.0") < 50
    for client in ("a", "b", "c", "d"):
        assert len(set(versions(ask, 10, **{"X-Sticky": client}))) == 1
    assert ask("/predictions/tiny/1.0", TEXT).headers["x-model-version"] == "1.0"
    assert weight(server, 100).returncode == 0
    assert versions(ask, 20) == ["2.0"] * 20
    assert weight(server, 0).returncode == 0
    assert versions(ask, 20) == ["1.0"] * 20
    refused = weight(server, 300)
    assert refused.returncode != 0 and "300" in refused.stderr
    assert "chat has no canary" in weight(server, 10, "chat").stderr


# -- bad times


class Watch:
    """What /health has said, ten times a second: when, and the status, which is 0 where nobody listens."""

    def __init__(self, server: Serving) -> None:
        self.server = server
        self.seen: list[tuple[float, float, int]] = []
        self.ended = False
        self.thread = threading.Thread(target=self._look)
        self.thread.start()

    def _look(self) -> None:
        while not self.ended:
            begun = time.monotonic()
            self.seen.append((begun, time.monotonic(), self.server.health()))
            time.sleep(0.1)

    def end(self) -> None:
        self.ended = True
        self.thread.join()


def failures(predictions: list[tuple[float, float, int]]) -> list[tuple[float, float]]:
    """From the answer to the first that failed until the next that did not was asked for."""
    found, since = [], None
    for begun, ended, status in predictions:
        if status == 200 and since is not None:
            found.append((since, begun))
            since = None
        elif status != 200 and since is None:
            since = ended
    return [*found, (since, float("inf"))] if since is not None else found


def test_readiness_is_true_through_a_start_a_workers_death_and_a_stop(store):
    server = Serving(store, ["tiny.mar"], "--gateway")
    predictions: list[tuple[float, float, int]] = []

    def predict():
        begun = time.monotonic()
        try:
            status = requests.post(f"{server.gateway_url}/predict", json=TEXT, timeout=60).status_code
        except requests.ConnectionError:
            status = 0
        predictions.append((begun, time.monotonic(), status))
        return status

    watch = Watch(server)
    try:
        server._start()
        while predict() != 200:
            time.sleep(0.02)
        wait_for(lambda: server.health() == 200)
        victim = ManagementClient(server.management_url).describe("tiny").workers[0].pid
        os.kill(victim, signal.SIGKILL)
        while predict() == 200:  # until the worker's death is seen
            pass
        while predict() != 200:
            time.sleep(0.02)
        wait_for(lambda: watch.seen[-1][2] == 200)
        stopper = threading.Thread(target=server.stop)
        stopper.start()
        while predict() == 200:
            pass
        stopper.join()
    finally:
        watch.end()
        if server._launcher is not None:
            server.stop()
    looks = [begun for begun, _, status in watch.seen if status == 200]
    assert looks and not [look for begun, ended in failures(predictions) for look in looks if begun < look < ended]
    told = [status for _, _, status in watch.seen]
    assert [
        status for status, before in zip(told, [None, *told], strict=False) if status != before and status
    ] == [
        503,
        200,
        503,
        200,
        503,
    ]


def gateway_file(folder, **told):
    """A gateway's configuration."""
    path = folder / "gateway.yaml"
    path.write_text(json.dumps(told))
    return str(path)


def test_a_server_that_is_killed_costs_nobody_an_answer(store, tmp_path):
    with Serving(store, ["tiny.mar"]) as other:
        there = {name: getattr(other, f"{name}_url").partition("//")[2] for name in ("inference", "management")}
        told = gateway_file(tmp_path, servers={"other": there})
        with Serving(store, ["tiny.mar"], "--gateway", told) as server:
            wait_for(lambda: page_has(server, 'haproxy_server_status{proxy="m.tiny",server="other",state="UP"} 1'))
            load = Load(f"{server.gateway_url}/predict", 12, keep_alive=True, body=TEXT)
            assert load.answered.wait(30)
            time.sleep(1)
            java = next(process for process in other.processes() if process.name() == "java")
            java.kill()
            psutil.wait_procs([java], timeout=10)
            time.sleep(2)
            outcomes = load.end()
            took = {
                json.loads(line)["server"] for line in server.output().splitlines() if line.startswith('{"time"')
            }
            assert took == {"m.tiny/local", "m.tiny/other"}
            assert set(outcomes) == {"200"}, outcomes


def page_has(server, line):
    return line in requests.get(server.exporter_url, timeout=5).text


def test_a_stop_under_load_answers_all_that_was_accepted(store):
    with Serving(store, ["tiny.mar"], "--gateway") as server:
        loads = [Load(f"{server.gateway_url}/predict", 8, keep_alive) for keep_alive in (True, False)]
        assert all(load.answered.wait(30) for load in loads)
        time.sleep(1)
        server.stop()
    assert server.status == 0
    for load in loads:
        outcomes = load.join()
        assert set(outcomes) == {"200", "refused"} and outcomes["refused"] == 8, outcomes


def test_limits(store, tmp_path):
    told = gateway_file(
        tmp_path,
        models={"tiny": {"max_in_flight": 1}},
        limits={"queue": 2, "queue_seconds": 30, "requests_per_address": 60},
    )
    with Serving(store, ["tiny.mar"], "--gateway", told) as server:
        url = f"{server.gateway_url}/predict"
        with ThreadPoolExecutor(24) as threads:
            asked = [threads.submit(requests.post, url, json=TEXTS) for _ in range(24)]
            while not all(one.done() for one in asked):
                assert server.health() == 200
                time.sleep(0.05)
            answers = [one.result() for one in asked]
        statuses = Counter(answer.status_code for answer in answers)
        assert set(statuses) == {200, 503} and statuses[200] >= 3, statuses
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert refused.headers["Retry-After"] == "1" and refused.json()["error"]["type"] == "Overloaded"
        answers = [requests.post(url, json=TEXT, timeout=60) for _ in range(60)]
        assert answers[0].status_code == 200 and answers[-1].status_code == 429
        assert answers[-1].headers["Retry-After"] == "10"
        assert server.health() == 200
