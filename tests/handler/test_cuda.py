"""On a GPU, what a CPU cannot show; with TESTS_ON=cuda the other files of this directory run there as well."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
import torch
from transformers import LlamaModel

from handler.generation import transformers_engine
from tests.support import archives, frames, scenarios, tiny_models, worker
from tests.support.reference import generated
from tests.support.rounds import NEW, PROMPTS, Frontend, whole
from tests.support.serving import served

pytestmark = pytest.mark.cuda

MIB = 1 << 20
CLOSE = {"float32": 1e-4, "bfloat16": 0.08, "float16": 0.01}  # absolute, of scores and of tiny models' vectors


def numbers(document):
    """All numbers of a JSON document, in order."""
    if isinstance(document, dict):
        document = [value for name, value in document.items() if not name.endswith("time_ms")]
    if isinstance(document, list):
        return [number for part in document for number in numbers(part)]
    return [document] if isinstance(document, float) else []


@pytest.mark.parametrize("dtype", list(CLOSE))
@pytest.mark.parametrize("task", ["feature-extraction", "text-classification", "text-ranking"])
def test_a_gpu_answers_what_a_cpu_answers(tiny, task, dtype):
    asked = [scenario.frame() for scenario in scenarios.of(task) if scenario.status == 200]
    wanted = frames.predict(worker.start(tiny[task], None, task=task, **scenarios.LIMITS), asked)
    found = frames.predict(worker.start(tiny[task], 0, task=task, dtype=dtype, **scenarios.LIMITS), asked)
    for one, other in zip(found, wanted, strict=True):
        assert one.status == other.status == 200
        mine, theirs = numbers(json.loads(one.body)), numbers(json.loads(other.body))
        assert sorted(mine) == pytest.approx(sorted(theirs), abs=CLOSE[dtype]) and mine


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_encoded_prompts_in_half_precision(tmp_path, dtype):
    tiny_models.prompt_encoder(tmp_path / "model")
    asked = {"prompt": list(PROMPTS), "compact": True}
    states = []
    for gpu, kind in ((None, "float32"), (0, dtype)):
        service = worker.start(tmp_path, gpu, task="prompt-encoding", layers=[1, 3], max_length=64, dtype=kind)
        states.append(torch.tensor(numbers(frames.answer(service, **asked)[1]["prompt_embeds"])))
    assert torch.nn.functional.cosine_similarity(states[0], states[1], dim=0) > 0.999


@pytest.fixture
def limited():
    """Holds this process to so much of the GPU's memory beyond what it has."""

    def limit(more):
        gc.collect()
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + more) / total)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_what_does_not_fit_at_once_is_split(tmp_path, limited):
    tiny_models.encoder(tmp_path / "model", max_position_embeddings=512)
    path = tmp_path / "model" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 512}))
    told = {"task": "feature-extraction", "attention": "eager", "max_batch_tokens": 128 * 512, "warm_up": False}
    service = worker.start(tmp_path, 0, max_items=64, **told)
    asked = {"texts": [f"{'film ' * 500}{'not ' * number}" for number in range(64)]}
    _, wanted = frames.answer(service, asked)
    task = service.handler.pipeline.task
    stock, tried = task.forward, []
    task.forward = lambda rows: tried.append(len(rows)) or stock(rows)
    limited(160 * MIB)  # scores of 64 x 4 x 512 x 512 float32 are 256 MiB, and softmax makes as many again
    status, found = frames.answer(service, asked)
    assert status == 200 and tried[0] == 64 and 1 < min(tried) < 64, tried
    assert numbers(found) == pytest.approx(numbers(wanted), abs=1e-5)
    limited(MIB)
    refused = frames.predict(service, [frames.post(json.dumps({"text": "film " * 500}).encode())])
    assert refused[0].status == 507
    limited(1024 * MIB)
    assert frames.answer(service, asked)[0] == 200


LOST = """
import torch
from handler.devices import failures
with failures():
    torch.zeros(2, device="cuda")[torch.tensor([5], device="cuda")].cpu()
"""


def test_a_lost_device_ends_the_process():
    ended = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and ended.stderr.splitlines()[-1].startswith("the device is gone"), ended.stderr


LOSING = """
import torch

class Losing:
    def __init__(self, directory, options, device):
        self.table = torch.zeros(2, device=device)

    def run(self, texts):
        places = torch.tensor([9 if text == "lose" else 1 for text in texts], device=self.table.device)
        return [{"found": number} for number in self.table[places].tolist()]
"""


@pytest.mark.server
def test_a_worker_that_loses_its_device_is_replaced(tmp_path):
    (tmp_path / "store").mkdir()
    tiny_models.encoder(tmp_path / "model")
    (tmp_path / "losing.py").write_text(LOSING)
    (tmp_path / "model-config.yaml").write_text("handler:\n  task: losing:Losing\n")
    (tmp_path / "recipe.yaml").write_text('name: losing\nversion: "1.0"\n')
    built = archives.build(str(tmp_path), "--export-path", str(tmp_path / "store"))
    assert built.returncode == 0, built.stderr
    with served(tmp_path / "store", [f"losing={Path(built.stdout.strip()).name}"]) as server:
        url = f"{server.inference_url}/predictions/losing"
        assert requests.post(url, json={"text": "a"}, timeout=60).json()
        lost = requests.post(url, json={"text": "lose"}, timeout=60)
        assert lost.status_code >= 500
        end = time.monotonic() + 60
        while requests.post(url, json={"text": "a"}, timeout=60).status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.5)


@pytest.fixture(scope="module")
def chatter(tmp_path_factory):
    return tiny_models.chatter(tmp_path_factory.mktemp("cuda") / "model")


def wanted_of(model, prompts):
    """What `generate` says to each greedily."""
    return [whole(generated(model, prompt, NEW)[0]) for prompt in prompts]


def said(frontend, prompts, tokens=NEW, **asked):
    """What is answered to all of them at once."""
    clients = [frontend.post({"prompt": prompt, "max_new_tokens": tokens, **asked}) for prompt in prompts]
    frontend.run()
    assert all(client.status == 200 for client in clients), clients[0].body
    return [whole(client.document["response"]) for client in clients]


def test_steps_that_no_graph_can_hold_are_launched_one_by_one(chatter, monkeypatch, caplog):
    stock = LlamaModel.forward

    def syncs(self, input_ids=None, *arguments, **more):
        assert input_ids.max().item() >= 0  # the CPU waits for the GPU, as where it chooses experts
        return stock(self, input_ids, *arguments, **more)

    wanted = wanted_of(chatter, PROMPTS)
    monkeypatch.setattr(LlamaModel, "forward", syncs)
    frontend = Frontend(worker.start(chatter.parent, 0, task="text-generation"))
    assert "cannot be made into CUDA graphs" in caplog.text
    assert said(frontend, PROMPTS) == wanted


def test_graphs_that_were_forgotten_are_made_again(chatter, monkeypatch):
    stock = transformers_engine.kept_graphs
    made = []
    monkeypatch.setattr(
        transformers_engine, "kept_graphs", lambda sampler: made.append(stock(sampler, 2)) or made[-1]
    )
    frontend = Frontend(worker.start(chatter.parent, 0, task="text-generation"))
    prompts = [f"{'a wonderful story ' * (number + 1)}" for number in range(12)]
    wanted = wanted_of(chatter, prompts)
    assert torch.cuda.is_available()  # else there are none
    for _ in range(2):
        assert [said(frontend, [prompt])[0] for prompt in prompts] == wanted
        assert said(frontend, prompts) == wanted
    assert len(made[-1]._storage) <= 2


def test_who_draws_does_not_disturb_who_does_not(chatter):
    frontend = Frontend(worker.start(chatter.parent, 0, task="text-generation"))
    asked = [
        {"temperature": 1.0, "top_k": 5} if number % 2 else {"temperature": 0}
        for number in range(4 * len(PROMPTS))
    ]
    clients = [
        frontend.post({"prompt": PROMPTS[number % len(PROMPTS)], "max_new_tokens": NEW, **more})
        for number, more in enumerate(asked)
    ]
    frontend.run()
    answers = [whole(client.document["response"]) for client in clients]
    assert answers[::2] == wanted_of(chatter, PROMPTS[::2]) * 4
    assert len(set(answers[1::2])) > 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_generation_in_half_precision(chatter, dtype):
    frontend = Frontend(worker.start(chatter.parent, 0, task="text-generation", dtype=dtype))
    together, again = said(frontend, PROMPTS * 4), said(frontend, PROMPTS)
    assert all(together) and again == together[: len(PROMPTS)]
