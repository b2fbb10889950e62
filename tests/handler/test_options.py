"""What makes a model faster: what it changes in the answers, and where it is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from handler import devices, loading
from handler.config import ConfigError, read_config
from handler.errors import LoadError, OutOfMemory
from tests.support import frames, reference, tiny_models, worker

TEXTS = ["a wonderful story", "the battery died", "a", "the acting is wonderful and the plot is not", ""]


@pytest.fixture
def home(tmp_path):
    tiny_models.encoder(tmp_path / "model")
    return tmp_path


def embed(service, texts):
    rows = [frames.post(json.dumps({"text": text}).encode()) for text in texts]
    answers = [json.loads(response.body) for response in frames.predict(service, rows)]
    return np.array([answer["embeddings"][0] for answer in answers], np.float32)


def test_int8_is_near_and_is_int8(home):
    service = worker.start(home, None, task="feature-extraction", quantize="int8")
    answered = embed(service, TEXTS)
    expected = reference.mean_embeddings(home / "model", TEXTS)
    cosines = (answered * expected).sum(1) / (np.linalg.norm(answered, axis=1) * np.linalg.norm(expected, axis=1))
    assert cosines.min() > 0.99
    assert np.abs(answered - expected).max() > 1e-6, "nothing was quantized"


def test_int8_leaves_the_head_as_it_is(tmp_path):
    tiny_models.classifier(tmp_path / "model")
    service = worker.start(tmp_path, None, task="text-classification", quantize="int8")
    model = service.handler.pipeline.task.encoder.loaded.model
    assert type(model.classifier) is torch.nn.Linear
    assert not [layer for layer in model.base_model.modules() if type(layer) is torch.nn.Linear]


def test_int8_makes_no_number_of_nan_and_keeps_it_from_the_neighbours(tmp_path):
    tiny_models.classifier(tmp_path / "model")
    service = worker.start(tmp_path, None, task="text-classification", quantize="int8", lanes=1)
    texts = ("a wonderful story", "not the battery died", "not good")
    alone = [frames.answer(service, text=text)[1]["probabilities"] for text in (texts[0], texts[2])]
    worker.poison(service, "battery")
    first, poisoned, last = frames.predict(service, [frames.ask(text=text) for text in texts])
    assert poisoned.status == 500 and b"NonFiniteOutput" in poisoned.body
    found = [json.loads(response.body)["probabilities"] for response in (first, last)]
    np.testing.assert_allclose(found, alone, atol=1e-6)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_what_was_asked_for(home, attention):
    service = worker.start(home, task="feature-extraction", attention=attention)
    assert service.handler.pipeline.task.encoder.loaded.model.config._attn_implementation == attention
    np.testing.assert_allclose(embed(service, TEXTS), reference.mean_embeddings(home / "model", TEXTS), atol=1e-4)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_answers_the_same_and_compiles_nothing_once_it_is_ready(home):
    compiled = torch._dynamo.utils.counters["stats"]
    torch._dynamo.reset()
    compiled.clear()
    service = worker.start(home, task="feature-extraction", compile=True, lanes=2, threads=2)
    at_ready = compiled["unique_graphs"]
    assert at_ready > 0, "nothing was compiled"
    words = ["a", "wonderful", "story", "the", "battery", "died", "after", "the", "plot"]
    draw = np.random.default_rng(0)
    batches = [[" ".join(draw.choice(words, draw.integers(1, 60))) for _ in range(n)] for n in (1, 2, 3, 9, 40)]
    for texts in batches:
        answered = embed(service, texts)
        np.testing.assert_allclose(answered, reference.mean_embeddings(home / "model", texts), atol=1e-4)
    assert compiled["unique_graphs"] == at_ready


def test_compile_without_a_compiler(home, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(loading.shutil, "which", lambda name: None)
    with pytest.raises(LoadError, match=r"C\+\+ compiler"):
        worker.start(home, task="feature-extraction", compile=True)


@pytest.mark.parametrize(
    ("handler", "server", "wrong"),
    [
        ({"quantize": "int8", "dtype": "bfloat16"}, {}, "handler.dtype: bfloat16"),
        ({"quantize": "int8", "compile": True}, {}, "handler.compile: True"),
        ({"quantize": "int8"}, {"deviceType": "gpu"}, "deviceType: gpu"),
        ({"compile": True, "warm_up": False}, {}, "handler.warm_up: False"),
        ({"quantize": "int4"}, {}, "one of int8"),
        ({"dtype": "float8"}, {}, "one of float32, bfloat16, float16"),
        ({"attention": "flash"}, {}, "one of sdpa, eager"),
    ],
)
def test_what_does_not_go_together(handler, server, wrong):
    with pytest.raises(ConfigError, match=wrong):
        read_config({**server, "handler": {"task": "feature-extraction", **handler}})


# -- devices


def test_a_gpu_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LoadError, match="TorchServe sees no GPU"):
        devices.choose(None, "gpu")
    with pytest.raises(LoadError, match="PyTorch cannot use CUDA"):
        devices.choose(0, "gpu")


def test_float32_is_float32():
    """On a GPU, importing BaseHandler makes it TF32 (base_handler.py:48)."""
    torch.set_float32_matmul_precision("high")
    devices.choose(None, None)
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_gpu_that_only_torchserve_sees_is_said(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.choose(0, None).type == "cpu"
    assert "computing on the CPU" in caplog.text


@pytest.mark.parametrize(
    "words", ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"]
)
def test_a_librarys_lack_of_memory_is_no_lost_device(words):
    with pytest.raises(OutOfMemory), devices.failures():
        raise RuntimeError(words)


def test_a_forward_without_memory_gives_back_what_it_held():
    class Held:
        alive = True

        def __del__(self):
            Held.alive = False

    def forward():
        held = Held()
        raise torch.OutOfMemoryError(f"CUDA out of memory {bool(held)}")

    try:
        with devices.failures():
            forward()
    except OutOfMemory:
        assert not Held.alive  # before the smaller batch is tried
