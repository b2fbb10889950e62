"""feature-extraction: one vector for each text, as sentence-transformers makes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from handler.batch import Slot
from handler.config import HandlerConfig
from handler.loading import load
from handler.pooling import pool, read_pooling
from handler.request import Call, Limits, Request, TextItem, read_text_request
from handler.rules import BOOLEAN, key
from handler.tasks.base import About, require_finite
from handler.text_encoder import Rows, TextEncoder, Tokens

Embedding = npt.NDArray[np.float32]  # (size,)


@dataclass(frozen=True)
class Parameters:
    """What a request may ask for."""

    truncation: bool = key(BOOLEAN, "cut a text to the model's limit; false: refuse it with 413", True)


class FeatureExtraction:
    """A sentence encoder; pooling and normalisation are taken from the model's own files."""

    field = "text"
    media_types = ()

    def __init__(self, config: HandlerConfig, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self.max_tokens = encoder.loaded.max_tokens
        self.limits = Limits(config.max_items, config.max_text_bytes)
        self.pooling = read_pooling(encoder.loaded.directory, config.pooling, config.normalize)

    def parse(self, call: Call) -> Request:
        """Texts, with truncation."""
        return read_text_request(call, Parameters, self.limits)

    def encode(self, items: Sequence[TextItem]) -> list[Slot[Rows]]:
        """Texts to tokens."""
        if self.pooling.lower_case:
            items = [replace(item, text=item.text.lower()) for item in items]
        return self.encoder.encode(items)

    def forward(self, rows: Sequence[Tokens]) -> Sequence[Embedding]:
        """Tokens to vectors, pooled in float32 whatever the model runs in."""
        output, mask = self.encoder.forward(rows)
        with torch.inference_mode():
            return list(pool(output.last_hidden_state.float(), mask, self.pooling).cpu().numpy())

    def decode(self, request: Request, outputs: Sequence[tuple[Embedding]]) -> Sequence[Embedding]:
        """The vectors, if they are numbers."""
        embeddings = [embedding for (embedding,) in outputs]
        require_finite(embeddings)
        return embeddings

    def answer(self, request: Request, results: Sequence[Embedding], about: About) -> dict[str, Any]:
        """A list of vectors, for one text too."""
        return {"embeddings": list(results)}

    def describe(self) -> dict[str, Any]:
        """How the vectors are made."""
        return {"pooling": list(self.pooling.names), "normalize": self.pooling.normalize}


def build(config: HandlerConfig, directory: Path, device: torch.device) -> FeatureExtraction:
    """Loads the encoder. Raises LoadError."""
    # Some checkpoints come without BERT's pooler, which is not used here.
    return FeatureExtraction(
        config, TextEncoder(load(directory, config, transformers.AutoModel, device, ("pooler.",)))
    )
