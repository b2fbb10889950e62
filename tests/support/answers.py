"""What a good answer holds, task by task: (scenario, document, the reference's answer) -> assertions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def classification(scenario: Any, document: Mapping[str, Any], probabilities: np.ndarray) -> None:
    """Probabilities are (texts, labels) float32."""
    predictions = document.get("predictions", [document])
    for prediction, expected in zip(predictions, probabilities, strict=True):
        _check_classification(prediction, expected, scenario.raw.get("top_k"))


def embeddings(scenario: Any, document: Mapping[str, Any], vectors: np.ndarray) -> None:
    """Vectors are (texts, size) float32."""
    np.testing.assert_allclose(document["embeddings"], vectors, atol=1e-4)


CHECKS: dict[str, Callable[[Any, Mapping[str, Any], Any], None]] = {
    "text-classification": classification,
    "feature-extraction": embeddings,
}


def _check_classification(prediction: Mapping[str, Any], probabilities: np.ndarray, top_k: int | None) -> None:
    best = int(probabilities.argmax())
    assert (prediction["prediction"], prediction["label"]) == (best, f"LABEL_{best}")
    np.testing.assert_allclose(prediction["confidence"], probabilities[best], atol=1e-4)
    if top_k is None:
        np.testing.assert_allclose(prediction["probabilities"], probabilities, atol=1e-4)
    else:
        order = np.argsort(-probabilities)[:top_k]
        assert [entry["prediction"] for entry in prediction["top_k"]] == list(order)
        np.testing.assert_allclose(
            [entry["confidence"] for entry in prediction["top_k"]], probabilities[order], atol=1e-4
        )
