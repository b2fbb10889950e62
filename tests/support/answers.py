"""What a good answer holds, task by task: (scenario, document, the reference's answer) -> assertions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


def ranking(scenario: Any, document: Mapping[str, Any], ranked: Sequence[Mapping[str, Any]]) -> None:
    """Ranked is as CrossEncoder.rank answers."""
    results = document["results"]
    assert [entry["index"] for entry in results] == [entry["corpus_id"] for entry in ranked]
    assert [entry.get("text") for entry in results] == [entry.get("text") for entry in ranked]
    np.testing.assert_allclose(
        [entry["score"] for entry in results], [entry["score"] for entry in ranked], atol=1e-4
    )


def zero_shot(scenario: Any, document: Mapping[str, Any], judged: Sequence[Mapping[str, Any]]) -> None:
    """Judged is as transformers' pipeline answers, one for each text."""
    predictions = document.get("predictions", [document])
    for prediction, expected in zip(predictions, judged, strict=True):
        assert prediction.keys() == {"labels", "scores"}
        assert prediction["labels"] == expected["labels"]
        np.testing.assert_allclose(prediction["scores"], expected["scores"], atol=1e-4)


def entities(scenario: Any, document: Mapping[str, Any], expected: list) -> None:
    """What the pipeline answers for each text."""
    for prediction, found in zip(document.get("predictions", [document]), expected, strict=True):
        assert set(prediction) == {"entities"}
        assert_scored(prediction["entities"], found)


def answers(scenario: Any, document: Mapping[str, Any], expected: list) -> None:
    """What transformers 4 answered to each question; all of it where the scenario asks for `top_k`."""
    for prediction, found in zip(document.get("predictions", [document]), expected, strict=True):
        listed = {"answers": found} if scenario.raw.get("listed") else {}
        assert_scored(prediction, {**found[0], **listed})


def fillings(scenario: Any, document: Mapping[str, Any], expected: list) -> None:
    """What the pipeline answers to each text: a list, or a list for each of several masks."""
    predictions = document["predictions"] if "model_name" in document else [document["predictions"]]
    assert_scored(predictions, expected)


CHECKS: dict[str, Callable[[Any, Mapping[str, Any], Any], None]] = {
    "text-classification": classification,
    "feature-extraction": embeddings,
    "text-ranking": ranking,
    "zero-shot-classification": zero_shot,
    "token-classification": entities,
    "question-answering": answers,
    "fill-mask": fillings,
}


def assert_scored(answered: Any, expected: Any) -> None:
    """Equal documents, but for scores that may differ by 1e-4."""
    assert _without_scores(answered) == _without_scores(expected)
    np.testing.assert_allclose(_scores(answered), _scores(expected), atol=1e-4)


def _without_scores(document: Any) -> Any:
    if isinstance(document, list):
        return [_without_scores(item) for item in document]
    if isinstance(document, dict):
        return {name: _without_scores(value) for name, value in document.items() if name != "score"}
    return document


def _scores(document: Any) -> list[float]:
    if isinstance(document, list):
        return [score for item in document for score in _scores(item)]
    if isinstance(document, dict):
        own = [float(document["score"])] if "score" in document else []
        return own + _scores(list(document.values()))
    return []


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
