"""vLLM behind the real server: clients, and what is left when something is killed."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import requests

from client import ManagementClient
from tests.support import archives, tiny_models
from tests.support.openai_clients import twelve_responses_say, twenty_four_say
from tests.support.reference import generated
from tests.support.rounds import PROMPTS, whole
from tests.support.serving import served

pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
]  # tests/handler/test_vllm.py has the same engine without a server

NEW = 16
VLLM = "handler.vllm={enforce_eager: true, kv_cache_memory_bytes: 50000000, max_model_len: 512}"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_models.chatter(tmp_path_factory.mktemp("chat") / "model", hidden=128)


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    flags = (
        "--set=handler.engine=vllm",
        f"--set={VLLM}",
        "--set=handler.max_new_tokens=500",
        "--set=batchSize=32",
    )
    archives.build_model(store, "chat", model, "text-generation", *flags)
    with served(store, ["chat.mar"]) as running:
        yield running


def worker(server):
    [model] = ManagementClient(server.management_url).models()
    [process] = model.workers
    return psutil.Process(process.pid)


def engines(server):
    return [process for process in worker(server).children(recursive=True) if process.name().startswith("VLLM")]


def test_the_openai_client_async_and_streaming(server, model):
    wanted = {prompt: whole(generated(model, prompt, NEW)[0]) for prompt in PROMPTS}

    for clients_say in (twenty_four_say, twelve_responses_say):
        for prompt, said in clients_say(f"{server.inference_url}/predictions/chat/1.0/v1", NEW):
            assert whole(said) == wanted[prompt]


def stream_and_kill(server, process):
    """Streams are under way when a process is killed: each ends soon, and none as if it were whole."""
    url = f"{server.inference_url}/predictions/chat/1.0/v1/completions"
    asked = {"model": "chat", "prompt": "a", "max_tokens": 500, "ignore_eos": True, "stream": True}
    with ThreadPoolExecutor(8) as threads:
        begun = threads.map(lambda _: requests.post(url, json=asked, timeout=60, stream=True), range(8))
    streams = [response.iter_lines() for response in begun]
    assert all(next(filter(None, lines)).startswith(b"data: {") for lines in streams)  # after signs of life
    process.kill()
    killed = time.monotonic()
    ended = 0  # before that
    for lines in streams:
        try:
            said = [line for line in lines if line]
        except requests.RequestException:
            continue  # the connection was cut, which is an answer in the middle of a stream
        if any(b'"finish_reason":"length"' in line for line in said):
            ended += 1
        else:
            assert b"data: [DONE]" not in said or any(b'"error"' in line for line in said)
    assert ended < 8
    assert time.monotonic() - killed < 20


def test_whatever_is_killed_everybody_is_answered_and_nothing_is_left(server):
    for killed in (lambda: engines(server)[0], lambda: worker(server)):
        ManagementClient(server.management_url).ready("chat", timeout=600)
        url = f"{server.inference_url}/predictions/chat"
        assert requests.post(url, json={"prompt": "a", "max_new_tokens": 2}, timeout=60).status_code == 200
        before = engines(server)
        assert len(before) == 1
        stream_and_kill(server, killed())
        _, left = psutil.wait_procs(before, timeout=20)
        assert not left
