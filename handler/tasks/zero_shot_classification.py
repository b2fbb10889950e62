"""zero-shot-classification: which of the request's own labels a text has, by a model of entailment."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from handler.batch import Slot
from handler.config import HandlerConfig
from handler.errors import InvalidRequest, LoadError, TooLarge
from handler.loading import load
from handler.protocols.protocol import About
from handler.request import Call, Column, Limits, Request, TextItem, pair_up, read_text, read_text_request
from handler.rules import BOOLEAN, Rule, key, label
from handler.tasks.base import document, require_finite, text_inputs, unlisted
from handler.text_encoder import Rows, TextEncoder, Tokens

Logits = npt.NDArray[np.float32]  # (model's labels,)
Scores = npt.NDArray[np.float32]  # (candidate labels,)

LABELS = Rule("a list of strings, or one string of labels with commas", lambda v: isinstance(v, (list, str)))
# Filled in by replacement and never by str.format, whose templates reach into objects: {0.__class__}.
TEMPLATE = Rule(
    "a string with {} once, where the label goes, and no other brace",
    lambda v: isinstance(v, str) and "{}" in v and v.count("{") == v.count("}") == 1,
)


@dataclass(frozen=True)
class Parameters:
    """What a request may ask for."""

    candidate_labels: list[str] | str = key(LABELS, "the labels to choose from")
    multi_label: bool = key(BOOLEAN, "each label holds or not by itself, rather than one of them", False)
    hypothesis_template: str = key(TEMPLATE, "what a text with a label is said to be", "This example is {}.")
    truncation: bool = key(BOOLEAN, "cut a text to the model's limit; false: refuse it with 413", True)


class ZeroShotClassification:
    """A model of entailment: it reads a text and what a label says of it, and judges whether that follows."""

    field = "text"
    beside = ""
    media_types = ()
    inputs = text_inputs("text", Column("candidate_labels", "BYTES", (-1,)))
    outputs = (
        Column("label", "BYTES", (-1,)),
        Column("score", "FP32", (-1,)),
        Column("scores", "FP32", (-1, -1)),
    )

    def __init__(self, config: HandlerConfig, encoder: TextEncoder) -> None:
        model_config = encoder.loaded.model.config
        self.encoder = encoder
        self.max_tokens = encoder.loaded.max_tokens
        self.limits = Limits(config.max_items, config.max_text_bytes, config.max_body_bytes)
        self.labels = [model_config.id2label[index] for index in range(model_config.num_labels)]
        self.entailment = find_entailment(model_config.label2id, config.entailment_label)
        if len(self.labels) < 2 or self.entailment >= len(self.labels):
            raise LoadError("the model's labels are not those of entailment: expected two or more")
        # As transformers' own pipeline (pipelines/zero_shot_classification.py:247): the first label, or the last.
        self.contradiction = len(self.labels) - 1 if self.entailment == 0 else 0

    def parse(self, call: Call) -> Request:
        """Texts and labels, with multi_label, hypothesis_template and truncation."""
        request = read_text_request(call, Parameters, self.limits)
        labels = self._read_labels(request.parameters.candidate_labels, len(request.items))
        template = read_text(request.parameters.hypothesis_template, "hypothesis_template", self.limits)
        hypotheses = [template.replace("{}", name) for name in labels]
        pairs = [replace(item, pair=hypothesis) for item in request.items for hypothesis in hypotheses]
        parameters = replace(request.parameters, candidate_labels=labels)
        return pair_up(replace(request, parameters=parameters), pairs, self.limits)

    def encode(self, items: Sequence[TextItem]) -> list[Slot[Rows]]:
        """Pairs of text and hypothesis to tokens; the text is what is cut."""
        return self.encoder.encode(items)

    def forward(self, rows: Sequence[Tokens]) -> Sequence[Logits]:
        """Tokens to logits: what becomes of them depends on the other labels of the request."""
        output, _ = self.encoder.forward(rows)
        return list(output.logits.float().cpu().numpy())

    def decode(self, request: Request, outputs: Sequence[tuple[Logits]]) -> Sequence[Scores]:
        """Logits to the scores of each text's labels, in the order of the request."""
        require_finite([logits for (logits,) in outputs])
        logits = np.array([logits for (logits,) in outputs])  # (texts x candidate labels, model's labels) float32
        if request.parameters.multi_label or request.items_per_input == 1:
            scores = softmax(logits[:, [self.contradiction, self.entailment]])[:, 1]
            return list(scores.reshape(-1, request.items_per_input))
        return list(softmax(logits[:, self.entailment].reshape(-1, request.items_per_input)))

    def answer(self, request: Request, results: Sequence[Scores], about: About) -> dict[str, Any]:
        """One prediction for one text; a list of them, with the model and the time, for a list."""
        return document(request, self.predictions(request, results), about)

    def predictions(self, request: Request, results: Sequence[Scores]) -> Sequence[dict[str, Any]]:
        """The labels of each text, the likeliest first."""
        return [self._prediction(request.parameters.candidate_labels, scores) for scores in results]

    def pipeline(self, request: Request, results: Sequence[Scores], asked: Collection[str]) -> Any:
        """The same, with the text."""
        texts = [item.text for item in request.items[:: request.items_per_input]]
        predictions = self.predictions(request, results)
        return unlisted(
            request, [{"sequence": text, **said} for text, said in zip(texts, predictions, strict=True)]
        )

    def columns(self, request: Request, results: Sequence[Scores]) -> dict[str, Any]:
        """The best label and its score, and all scores in the order of the request's labels."""
        scores = np.array(results, np.float32)
        labels = request.parameters.candidate_labels
        return {
            "label": [labels[best] for best in scores.argmax(axis=1)],
            "score": scores.max(axis=1),
            "scores": scores,
        }

    def describe(self) -> dict[str, Any]:
        """The model's labels, and which of them say what."""
        return {
            "labels": self.labels,
            "entailment_label": self.labels[self.entailment],
            "contradiction_label": self.labels[self.contradiction],
        }

    def _read_labels(self, given: list[object] | str, texts: int) -> list[str]:
        """The labels; a string is split as the pipeline does (zero_shot_classification.py:19)."""
        labels: Sequence[object] = given
        if isinstance(given, str):
            labels = [name.strip() for name in given.split(",") if name.strip()]
        if not labels:
            raise InvalidRequest("candidate_labels: expected at least one")
        if texts * len(labels) > self.limits.items:
            asked = f"{texts} texts with {len(labels)} labels each are {texts * len(labels)} pairs"
            raise TooLarge(f"candidate_labels: {asked}; the limit is {self.limits.items}")
        return [read_text(name, f"candidate_labels[{index}]", self.limits) for index, name in enumerate(labels)]

    def _prediction(self, labels: Sequence[str], scores: Scores) -> dict[str, Any]:
        order = np.argsort(-scores, kind="stable")  # of equal scores the first label's
        return {"labels": [labels[index] for index in order], "scores": scores[order]}


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Over the last dimension."""
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=-1, keepdims=True))


def find_entailment(ids: dict[str, int], wanted: str | None) -> int:
    """The label that says entailment: the configuration's, else the first whose name begins so.

    Raises:
        LoadError: there is none. (transformers' pipeline would take the model's last label, and warn.)
    """
    known = ", ".join(map(label, list(ids)[:10]))
    if wanted is not None and wanted not in ids:
        raise LoadError(f"handler.entailment_label is none of the model's labels: {known}")
    for name, index in ids.items():
        if name == wanted or (wanted is None and name.lower().startswith("entail")):
            return index
    raise LoadError(f"no label of the model begins with entail; set handler.entailment_label to one of {known}")


def build(config: HandlerConfig, directory: Path, device: torch.device) -> ZeroShotClassification:
    """Loads the model. Raises LoadError."""
    loaded = load(directory, config, transformers.AutoModelForSequenceClassification, device)
    return ZeroShotClassification(config, TextEncoder(loaded, cut="only_first"))
