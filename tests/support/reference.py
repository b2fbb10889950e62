"""What transformers and sentence-transformers answer run directly: one text at a time, no padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, Pipeline, pipeline


def probabilities(model: Path, texts: Sequence[str], multi_label: bool = False) -> np.ndarray:
    """(texts, labels) float32."""
    classifier = AutoModelForSequenceClassification.from_pretrained(model).eval()
    logits = torch.cat([classifier(**inputs).logits for inputs in _inputs(model, texts)])
    return (torch.sigmoid(logits) if multi_label else torch.softmax(logits, dim=-1)).numpy()


def mean_embeddings(model: Path, texts: Sequence[str]) -> np.ndarray:
    """(texts, size) float32: the mean over tokens."""
    encoder = AutoModel.from_pretrained(model).eval()
    return torch.cat([encoder(**inputs).last_hidden_state.mean(1) for inputs in _inputs(model, texts)]).numpy()


def ranked(model: Path, fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What CrossEncoder.rank answers to a request."""
    texts = [fields["text"]] if "text" in fields else list(fields["texts"])
    return cross_encoder(model).rank(
        fields["query"],
        texts,
        top_k=int(fields.get("top_k", len(texts))),
        return_documents=bool(fields.get("return_texts")),
        activation_fn=torch.nn.Identity() if fields.get("raw_scores") else None,
        show_progress_bar=False,
    )


def judged(model: Path, fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the pipeline for zero-shot classification answers to a request, one for each text."""
    return zero_shot(model)(
        [fields["text"]] if "text" in fields else list(fields["texts"]),
        fields["candidate_labels"],
        multi_label=fields.get("multi_label") in (True, "true"),
        hypothesis_template=fields.get("hypothesis_template", "This example is {}."),
    )


@cache
def zero_shot(model: Path) -> Pipeline:
    return pipeline("zero-shot-classification", str(model), device="cpu")


@cache
def cross_encoder(model: Path) -> CrossEncoder:
    return CrossEncoder(str(model), device="cpu", local_files_only=True)


def _inputs(model: Path, texts: Sequence[str]) -> list:
    torch.set_grad_enabled(False)
    tokenizer = AutoTokenizer.from_pretrained(model)
    return [tokenizer(text, truncation=True, return_tensors="pt") for text in texts]


# Task -> (model, scenario) -> what the scenario's answer is held against.
REFERENCES: dict[str, Callable[[Path, Any], Any]] = {
    "text-classification": lambda model, scenario: probabilities(model, scenario.texts),
    "feature-extraction": lambda model, scenario: mean_embeddings(model, scenario.texts),
    "text-ranking": lambda model, scenario: ranked(model, scenario.fields()),
    "zero-shot-classification": lambda model, scenario: judged(model, scenario.fields()),
}
