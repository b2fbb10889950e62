"""Encoded prompts over the real server: large answers in pieces, in every form, beside small ones."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests
import torch
from safetensors.torch import load_file, save_file

from client import InferenceClient, ManagementClient, Refused
from tests.handler.test_prompt_encoding import LAYERS, SYSTEM, flux2
from tests.support import archives, diffusion, tiny_models
from tests.support.serving import ROOT, served

pytestmark = pytest.mark.server

LENGTH, HIDDEN = 512, 256  # 1.6 MB an answer in float32
LIMIT = 20_000_000
PROMPTS = ["a wonderful story", "", "the film [IMG]was not good", "a " * 600]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_models.prompt_encoder(tmp_path_factory.mktemp("prompts") / "model", hidden=HIDDEN)


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    settings = {
        "layers": LAYERS,
        "max_length": LENGTH,
        "system_message": SYSTEM,
        "remove": ["[IMG]"],
        "max_response_bytes": LIMIT,
    }
    flags = [f"--set=handler.{name}={json.dumps(value)}" for name, value in settings.items()]
    archives.build_model(store, "prompts", model, "prompt-encoding", *flags)
    with served(store, ["prompts.mar"]) as running:
        yield running


@pytest.fixture(scope="module")
def expected(model):
    """(prompts, length, width): diffusers' own."""
    return torch.from_numpy(flux2(model.parent, PROMPTS, LENGTH)[0])


def assert_near(found, wanted):
    """Within 1e-5 of the largest value: batches of another shape add up in another order."""
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_the_client_gives_tensors_back(server, expected):
    with InferenceClient(server.inference_url) as client:
        encoded = client.encode_prompt("prompts", PROMPTS)
    assert_near(encoded.prompt_embeds, expected)
    torch.testing.assert_close(encoded.text_ids, diffusion.text_ids(expected))
    assert encoded.truncated == (False, False, False, True)


def test_every_form_says_the_same(server, expected):
    url = f"{server.inference_url}/predictions/prompts"
    body = {"prompt": PROMPTS[0]}
    listed = requests.post(url, json=body, timeout=60)
    raw = requests.post(url, json=body, headers={"Accept": "application/octet-stream"}, timeout=60)
    assert (listed.headers["content-type"], raw.headers["content-type"]) == (
        "application/json",
        "application/octet-stream",
    )
    values = np.frombuffer(raw.content, np.float32).reshape(json.loads(raw.headers["shape"]))
    np.testing.assert_array_equal(np.array(listed.json()["prompt_embeds"], np.float32), values)
    assert_near(torch.from_numpy(values.copy())[0], expected[0])


def test_large_and_small_answers_share_a_batch(server, expected):
    """Sixteen at once: large ones in pieces, refusals, and answers of one row."""
    client = InferenceClient(server.inference_url)

    def ask(number):
        if number % 4 == 3:
            with pytest.raises(Refused) as refused:
                client.predict("prompts", {"prompt": 7})
            return refused.value.status
        compact = number % 4 == 2
        return client.encode_prompt("prompts", PROMPTS[number % 4], compact=compact).prompt_embeds

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(ask, range(32)))
    for number, answer in enumerate(answers):
        if number % 4 == 3:
            assert answer == 422
        else:
            wanted = expected[number % 4][-answer.shape[1] :]
            assert_near(answer[0], wanted)


def test_what_travels_compact_is_padded_by_the_client(server):
    with InferenceClient(server.inference_url) as client:
        whole = client.encode_prompt("prompts", PROMPTS)
        compact = client.encode_prompt("prompts", PROMPTS, compact=True)
        short = client.encode_prompt("prompts", "a wonderful story", compact=True, max_sequence_length=30).padded()
    padded = compact.padded()
    assert_near(padded.prompt_embeds, whole.prompt_embeds)
    assert torch.equal(padded.text_ids, whole.text_ids) and padded.tokens == whole.tokens
    assert short.prompt_embeds.shape[:2] == (1, 30) and whole.padded() is whole


def test_a_client_that_goes_away_in_the_middle_harms_nobody(server):
    url = f"{server.inference_url}/predictions/prompts"
    before = [worker.pid for model in ManagementClient(server.management_url).models() for worker in model.workers]
    for _ in range(4):
        with requests.post(
            url, json={"prompt": "a"}, headers={"Accept": "application/octet-stream"}, stream=True, timeout=60
        ) as response:
            next(response.iter_content(1000))
    assert requests.post(url, json={"prompt": "a", "compact": True}, timeout=60).status_code == 200
    after = [worker.pid for model in ManagementClient(server.management_url).models() for worker in model.workers]
    assert before == after


def verify(server, model, *more):
    command = [sys.executable, "-m", "client", "verify", "prompts", "--model", model, *more]
    urls = ["--inference-url", server.inference_url, "--management-url", server.management_url]
    return subprocess.run([*command, *urls], capture_output=True, text=True, check=False, cwd=ROOT)


def test_verify_says_how_near_it_is(server, model, tmp_path):
    ended = verify(server, model)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("4 prompts: ") and "cosine at least 1.0000" in ended.stdout
    (tmp_path / "prompts").write_text("a\nb\n")
    assert verify(server, model, "--prompts", tmp_path / "prompts").stdout.startswith("2 prompts: ")


def test_verify_fails_where_the_model_is_another(server, tmp_path):
    other = tiny_models.prompt_encoder(tmp_path / "other", hidden=HIDDEN)
    weights = load_file(other / "model.safetensors")
    [name] = [name for name in weights if "language_model" in name and "layers.3.mlp.down_proj" in name]
    save_file({**weights, name: weights[name] * 1.01}, other / "model.safetensors")
    ended = verify(server, other)
    assert ended.returncode == 1 and "is not the reference in float32" in ended.stderr
    ended = verify(server, tmp_path)
    assert ended.returncode == 2 and "holds no config.json" in ended.stderr


def test_what_would_be_too_large_is_refused(server):
    with pytest.raises(Refused, match=f"the limit is {LIMIT}"), InferenceClient(server.inference_url) as client:
        client.encode_prompt("prompts", ["a"] * 20)


def test_an_accept_that_cannot_be_met(server):
    url = f"{server.inference_url}/predictions/prompts"
    response = requests.post(url, json={"prompt": "a"}, headers={"Accept": "image/png"}, timeout=60)
    assert response.status_code == 406 and "safetensors" in response.json()["error"]["message"]
