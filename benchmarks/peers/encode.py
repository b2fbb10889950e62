"""The model as a user of LitServe or Triton would call it: one padded batch in, one row a text out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

Encoder = Callable[[Sequence[str]], numpy.ndarray]


def load(task: str, path: str) -> Encoder:
    """Returns texts -> (texts, labels) probabilities, or (texts, size) embeddings of unit length."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    kind = AutoModelForSequenceClassification if task == "text-classification" else AutoModel
    model = kind.from_pretrained(path).eval()

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> numpy.ndarray:
        inputs = tokenizer(list(texts), padding=True, truncation=True, max_length=512, return_tensors="pt")
        outputs = model(**inputs)
        if task == "text-classification":
            return torch.softmax(outputs.logits, dim=-1).numpy()
        mask = inputs["attention_mask"].unsqueeze(-1)
        mean = (outputs.last_hidden_state * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(mean, dim=-1).numpy()

    return encode
