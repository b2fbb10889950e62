"""Padding changes nothing: a batch's answers against transformers, one text at a time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from handler.errors import LoadError
from tests.support import frames, reference, tiny_models, worker

TEXTS = ("a wonderful story that works", "not good at all", "the battery died after a week and", "good")


def probabilities(home: Path) -> np.ndarray:
    """Of all texts, from one forward."""
    service = worker.start(home, task="text-classification", lanes=1)
    calls: list[int] = []
    forward = service.handler.pipeline.task.forward
    service.handler.pipeline.task.forward = lambda rows: calls.append(len(rows)) or forward(rows)
    [response] = frames.predict(service, [frames.post(json.dumps({"texts": TEXTS}).encode())])
    assert response.status == 200, response.body
    assert calls == [len(TEXTS)]
    return np.array([each["probabilities"] for each in json.loads(response.body)["predictions"]])


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
@pytest.mark.parametrize(
    ("pad_id", "pad_token"),
    [
        pytest.param(3, None, id="the tokenizer has none"),
        pytest.param(3, "<pad>", id="the tokenizer has another"),
        pytest.param(None, "<pad>", id="the config has none"),
        pytest.param(None, None, id="neither has any"),
        pytest.param(-1, "<pad>", id="the config has none of the vocabulary"),
        pytest.param(0, "<pad>", id="both have the same"),
    ],
)
def test_decoders_that_classify_by_the_last_token(tmp_path, kind, pad_id, pad_token):
    model = tiny_models.decoder_classifier(tmp_path / "model", kind, pad_id, pad_token)
    np.testing.assert_allclose(probabilities(tmp_path), reference.probabilities(model, TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(tiny_models.classifier, id="bert"),
        pytest.param(lambda home: tiny_models.decoder_classifier(home, "gpt2", 0, "<pad>"), id="gpt2"),
        pytest.param(lambda home: tiny_models.decoder_classifier(home, "qwen2", 0, "<pad>"), id="qwen2"),
        pytest.param(tiny_models.last_classifier, id="xlnet"),
    ],
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_whatever_side_the_tokenizer_pads_on(tmp_path, make, side):
    model = make(tmp_path / "model")
    if side == "left":
        tiny_models.pad_on_the_left(model)
    np.testing.assert_allclose(probabilities(tmp_path), reference.probabilities(model, TEXTS), atol=1e-5)


def test_embeddings_whose_tokenizer_pads_on_the_left(tmp_path):
    model = tiny_models.pad_on_the_left(tiny_models.encoder(tmp_path / "model"))
    service = worker.start(tmp_path, task="feature-extraction", lanes=1)
    [response] = frames.predict(service, [frames.post(json.dumps({"texts": TEXTS}).encode())])
    found = json.loads(response.body)["embeddings"]
    np.testing.assert_allclose(found, reference.mean_embeddings(model, TEXTS), atol=1e-5)


def test_a_classifier_that_nothing_can_pad(tmp_path):
    tiny_models.decoder_classifier(tmp_path / "model", "gpt2", None, None)
    path = tmp_path / "model" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": None}))
    with pytest.raises(LoadError, match="pad_token_id"):
        worker.start(tmp_path, task="text-classification")
