"""text-classification: which label a text has, or which labels."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from handler.batch import Slot
from handler.config import HandlerConfig
from handler.errors import LoadError
from handler.loading import load
from handler.protocols.protocol import About
from handler.request import Call, Column, Limits, Request, TextItem, read_text_request
from handler.rules import BOOLEAN, integer, key, optional
from handler.tasks.base import document, require_finite, text_inputs, unlisted
from handler.text_encoder import Rows, TextEncoder, Tokens

Probabilities = npt.NDArray[np.float32]  # (labels,)
Scores = npt.NDArray[np.float32]  # (2, labels): logits, and what they come to as probabilities


@dataclass(frozen=True)
class Parameters:
    """What a request may ask for."""

    top_k: int | None = key(optional(integer(1)), "the k best labels in place of all probabilities", None)
    truncation: bool = key(BOOLEAN, "cut a text to the model's limit; false: refuse it with 413", True)


@dataclass(frozen=True)
class Classification:
    """One text's labels."""

    best: int
    probabilities: Probabilities
    logits: Probabilities


class TextClassification:
    """A sequence classifier. Labels exclude each other unless the model's config says multi-label."""

    field = "text"
    beside = ""
    media_types = ()

    def __init__(self, config: HandlerConfig, encoder: TextEncoder) -> None:
        model_config = encoder.loaded.model.config
        if model_config.problem_type == "regression":
            raise LoadError("the model is a regression (problem_type), not a classifier")
        self.config = config
        self.encoder = encoder
        self.max_tokens = encoder.loaded.max_tokens
        self.limits = Limits(config.max_items, config.max_text_bytes)
        self.inputs = text_inputs("text", tokens=encoder.vocabulary)
        self.labels = [model_config.id2label[index] for index in range(model_config.num_labels)]
        # As transformers' own pipeline decides (pipelines/text_classification.py): one label is a yes or no.
        self.exclusive = model_config.problem_type != "multi_label_classification" and len(self.labels) > 1
        self.outputs = (
            Column("label", "BYTES", (-1,)),
            Column("score", "FP32", (-1,)),
            Column("probabilities", "FP32", (-1, len(self.labels))),
            Column("logits", "FP32", (-1, len(self.labels))),
        )

    def parse(self, call: Call) -> Request:
        """Texts, with top_k and truncation."""
        return read_text_request(call, Parameters, self.limits, self.encoder.vocabulary)

    def encode(self, items: Sequence[TextItem]) -> list[Slot[Rows]]:
        """Texts to tokens."""
        return self.encoder.encode(items)

    def forward(self, rows: Sequence[Tokens]) -> Sequence[Scores]:
        """Tokens to logits and probabilities."""
        output, _ = self.encoder.forward(rows)
        logits = output.logits.float()
        scores = torch.softmax(logits, dim=-1) if self.exclusive else torch.sigmoid(logits)
        return list(torch.stack([logits, scores], dim=1).cpu().numpy())

    def decode(self, request: Request, outputs: Sequence[tuple[Scores]]) -> Sequence[Classification]:
        """Probabilities to the best label of each text."""
        require_finite([scores[1] for (scores,) in outputs])
        return [Classification(int(scores[1].argmax()), scores[1], scores[0]) for (scores,) in outputs]

    def answer(self, request: Request, results: Sequence[Classification], about: About) -> dict[str, Any]:
        """One prediction for one text; a list of them, with the model and the time, for a list."""
        return document(request, self.predictions(request, results), about)

    def predictions(self, request: Request, results: Sequence[Classification]) -> Sequence[dict[str, Any]]:
        """The best label of each text, with all probabilities or the best few."""
        top_k = request.parameters.top_k or self.config.top_k
        return [self._prediction(result, top_k) for result in results]

    def pipeline(self, request: Request, results: Sequence[Classification], asked: Collection[str]) -> Any:
        """The best label, in a list for one text too; with `top_k` the best few, with null all."""
        if "top_k" not in asked:
            return [self._labelled(result.best, result) for result in results]
        top_k = request.parameters.top_k
        ranked = [np.argsort(-result.probabilities, kind="stable")[:top_k] for result in results]
        each = [[self._labelled(i, result) for i in order] for order, result in zip(ranked, results, strict=True)]
        return unlisted(request, each)

    def columns(self, request: Request, results: Sequence[Classification]) -> dict[str, Any]:
        """The best label and its probability, and all numbers in the order of the labels."""
        probabilities = np.array([result.probabilities for result in results])
        return {
            "label": [self.labels[result.best] for result in results],
            "score": probabilities.max(axis=1),
            "probabilities": probabilities,
            "logits": np.array([result.logits for result in results]),
        }

    def describe(self) -> dict[str, Any]:
        """The labels, in the order of the probabilities."""
        return {"labels": self.labels, "multi_label": not self.exclusive}

    def _prediction(self, result: Classification, top_k: int | None) -> dict[str, Any]:
        prediction = self._scored(result.best, result.probabilities)
        if not self.exclusive:
            holds = np.flatnonzero(result.probabilities >= self.config.threshold)
            prediction["labels"] = [self.labels[index] for index in holds]
        if top_k is None:
            prediction["probabilities"] = result.probabilities
        else:
            order = np.argsort(-result.probabilities, kind="stable")[:top_k]
            prediction["top_k"] = [self._scored(int(index), result.probabilities) for index in order]
        return prediction

    def _labelled(self, index: int, result: Classification) -> dict[str, Any]:
        return {"label": self.labels[index], "score": result.probabilities[index]}

    def _scored(self, index: int, probabilities: Probabilities) -> dict[str, Any]:
        return {"prediction": index, "label": self.labels[index], "confidence": probabilities[index]}


def build(config: HandlerConfig, directory: Path, device: torch.device) -> TextClassification:
    """Loads the classifier. Raises LoadError."""
    return TextClassification(
        config, TextEncoder(load(directory, config, transformers.AutoModelForSequenceClassification, device))
    )
