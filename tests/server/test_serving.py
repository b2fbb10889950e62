"""Real TorchServe, real archives, HTTP: what a client sees."""

from __future__ import annotations

import random
import re
import socket
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import requests

from client import InferenceClient, ManagementClient, MetricsClient, Refused
from tests.support import archives, scenarios
from tests.support.serving import served

pytestmark = pytest.mark.server

# Task -> the model's name, which is the task's where TorchServe does not take it for its own /token.
NAMES = {task: "entities" if task == "token-classification" else task for task in scenarios.TASKS}
SETTINGS = [f"--set=handler.{name}={value}" for name, value in scenarios.LIMITS.items()]
CASES = [
    pytest.param(task, scenario, id=f"{task}-{scenario}")
    for task in scenarios.TASKS
    for scenario in scenarios.of(task)
]


@pytest.fixture(scope="module")
def server(tiny, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    for task in scenarios.TASKS:
        archives.build_model(store, NAMES[task], tiny[task] / "model", task, *SETTINGS)
    archives.build_model(
        store,
        "small",
        tiny["feature-extraction"] / "model",
        "feature-extraction",
        "--set=handler.max_response_bytes=5000",
    )
    archives.build_model(
        store,
        "remembering",
        tiny["text-classification"] / "model",
        "text-classification",
        "--set=handler.cache_bytes=1000000",
    )
    with served(store, [f"{name}.mar" for name in (*NAMES.values(), "small", "remembering")]) as running:
        yield running


def send(server, task, scenario):
    body, headers = scenario.http()
    url = f"{server.inference_url}/predictions/{NAMES[task]}"
    return requests.post(url, data=body, headers=headers, timeout=60)


def check(task, response, scenario, reference):
    expected = reference(scenario) if scenario.status == 200 else None
    scenarios.check_answer(
        task,
        scenario,
        response.status_code,
        response.headers["content-type"],
        response.content,
        reference=expected,
    )


@pytest.mark.parametrize(("task", "scenario"), CASES)
def test_alone(server, workers_stay, references, task, scenario):
    check(task, send(server, task, scenario), scenario, references[task])


@pytest.mark.parametrize("task", scenarios.TASKS)
def test_sixty_four_at_once(server, workers_stay, references, task):
    """Good requests and every kind of bad one share batches; each gets what it would have got alone."""
    pool = [s for s in scenarios.of(task) if len(s.body) < 1_000_000]
    good = [s for s in pool if s.status == 200]
    chosen = random.Random(3).choices(good, k=40) + random.Random(4).choices(pool, k=24)
    random.Random(5).shuffle(chosen)
    with ThreadPoolExecutor(64) as threads:
        responses = list(threads.map(lambda scenario: send(server, task, scenario), chosen))
    for response, scenario in zip(responses, chosen, strict=True):
        check(task, response, scenario, references[task])
        assert "content-length" in response.headers, "HTTP/1.0 knows no other end"
    sizes = [
        sample.value for sample in MetricsClient(server.metrics_url).metrics() if sample.name == "HandlerBatches"
    ]
    assert sizes, "the handler's metrics are there"


def test_get_is_told_what_is_expected(server, workers_stay):
    response = requests.get(f"{server.inference_url}/predictions/text-classification", timeout=10)
    assert response.status_code == 400 and "JSON object" in response.json()["error"]["message"]


def test_an_uploaded_file(server, workers_stay):
    url = f"{server.inference_url}/predictions/text-classification"
    response = requests.post(url, files={"data": ("a.txt", b"a wonderful story", "text/plain")}, timeout=10)
    assert response.json() == requests.post(url, json={"text": "a wonderful story"}, timeout=10).json()


def test_explanations_are_not_offered(server, workers_stay):
    response = requests.post(
        f"{server.inference_url}/explanations/text-classification", json={"text": "a"}, timeout=10
    )
    assert response.status_code == 404


def test_an_answer_over_the_limit(server, workers_stay):
    client = InferenceClient(server.inference_url)
    with pytest.raises(Refused) as refused:
        client.predict("small", ["a wonderful story"] * 100)
    assert refused.value.status == 413
    assert len(client.predict("small", ["a wonderful story"])["embeddings"]) == 1


def test_describe_shows_the_task(server, workers_stay):
    [model] = requests.get(
        f"{server.management_url}/models/text-classification?customized=true", timeout=10
    ).json()
    assert model["customizedMetadata"]["task"] == "text-classification"


def test_metrics(server):
    InferenceClient(server.inference_url).predict(
        "text-classification", ["a", "a much longer text than the other"]
    )
    samples = MetricsClient(server.metrics_url).metrics()
    names = {sample.name for sample in samples}
    assert {"HandlerRequests", "HandlerBatchSize", "HandlerPaddingRatio_bucket", "HandlerTokens"} <= names
    steps = {sample.labels["Step"] for sample in samples if sample.name == "HandlerStepSeconds_count"}
    assert steps == {"parse", "encode", "forward", "decode", "write"}


def test_the_hit_ratio_of_remembered_answers(server):
    client = InferenceClient(server.inference_url)
    answers = [client.predict("remembering", "a wonderful story") for _ in range(4)]
    assert all(answer == answers[0] for answer in answers)
    values = {
        sample.name: sample.value
        for sample in MetricsClient(server.metrics_url).metrics()
        if sample.name.startswith("HandlerCache") and sample.labels["ModelName"] == "remembering"
    }
    assert (values["HandlerCacheHits"], values["HandlerCacheMisses"]) == (3, 1)
    assert (values["HandlerCacheHitRatio_sum"], values["HandlerCacheHitRatio_count"]) == (3, 4)
    assert 0 < values["HandlerCacheBytes"] <= 1_000_000


# -- safe as shipped


def test_only_loopback_is_listened_on(server):
    listening = {
        connection.laddr.ip
        for process in server.processes()
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


def test_models_cannot_be_registered_or_removed(server):
    management = ManagementClient(server.management_url)
    for call in (lambda: management.register("small.mar"), lambda: management.unregister("small")):
        with pytest.raises(Refused) as refused:
            call()
        assert refused.value.status == 405


@pytest.mark.parametrize("scheme", ["http://127.0.0.1:{port}/a.war", "file://{path}/a.war"])
def test_workflows_fetch_nothing(server, tmp_path, scheme):
    """The model API being off does not close POST /workflows; allowed_urls does."""
    (tmp_path / "a.war").write_bytes(b"PK")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(1)
        url = scheme.format(port=listener.getsockname()[1], path=tmp_path)
        response = requests.post(f"{server.management_url}/workflows", params={"url": url}, timeout=10)
        assert 400 <= response.status_code < 500
        with pytest.raises(TimeoutError):
            listener.accept()


def test_a_log_line_is_for_the_operator(server):
    requests.post(
        f"{server.inference_url}/predictions/text-classification", json={"text": "secretword"}, timeout=10
    )
    requests.post(f"{server.inference_url}/predictions/text-classification", data=b'{"secretword', timeout=10)
    output = server.output()
    assert "secretword" not in output and "Traceback" not in output
    assert len(re.findall("serving text-classification on", output)) == 2  # and the one that remembers


def test_a_body_over_the_servers_limit(server, workers_stay):
    url = f"{server.inference_url}/predictions/text-classification"
    response = requests.post(url, data=b"a" * 6_600_000, timeout=30)
    assert response.status_code == 413


def test_many_large_bodies_at_once(server, workers_stay):
    """The frontend holds each about three times; its heap has to have room for that."""
    url = f"{server.inference_url}/predictions/text-classification"
    body = b'{"text": "' + b"a" * 6_000_000 + b'"}'
    headers = {"content-type": "application/json"}
    with ThreadPoolExecutor(64) as threads:
        posts = [threads.submit(requests.post, url, data=body, headers=headers, timeout=120) for _ in range(64)]
        statuses = {post.result().status_code for post in posts}
    assert statuses == {413}
    assert requests.post(url, json={"text": "a"}, timeout=10).status_code == 200


def test_the_shipped_limits_agree(server):
    from handler.config import HandlerConfig
    from serving.__main__ import ROOT
    from serving.gateway.render import DEFAULT_IN_FLIGHT

    lines = [line.partition("=") for line in (ROOT / "config.properties").read_text().splitlines()]
    properties = {name: value for name, _, value in lines}
    limits = HandlerConfig(task="text-classification")
    assert limits.max_response_bytes < int(properties["max_response_size"])
    assert limits.max_body_bytes < int(properties["max_request_size"])
    assert int(properties["job_queue_size"]) == DEFAULT_IN_FLIGHT
