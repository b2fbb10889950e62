"""A worker whose answers are not the golden ones is never READY."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file, save_file

from client import InferenceClient
from tests.support import archives, tiny_models
from tests.support.serving import Serving
from tests.support.torchserve import ServerFailed

pytestmark = pytest.mark.server


def test_other_weights_are_not_served(tmp_path):
    model, store = tiny_models.classifier(tmp_path / "model"), tmp_path / "store"
    store.mkdir()
    flags = ("--golden", "--archive-format", "no-archive", "--set=maxRetryTimeoutInSec=1")
    archives.build_model(store, "judge", model, "text-classification", *flags)
    with Serving(store, ["judge"]) as running:
        assert InferenceClient(running.inference_url).predict("judge", "a film")["label"].startswith("LABEL_")
        assert "3 golden answers hold" in running.output()
    weights = load_file(model / "model.safetensors")  # which the archive is a link to
    weights["classifier.weight"] *= -1
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    refused = "3 of 3 golden answers do not hold: golden answer 1: "
    with pytest.raises(ServerFailed, match=refused):
        Serving(store, ["judge"], fails_with=refused).__enter__()
