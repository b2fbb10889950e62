"""feature-extraction: one vector for each text, as sentence-transformers makes it."""

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
from handler.errors import InvalidRequest
from handler.loading import load
from handler.pooling import pool, read_pooling
from handler.protocols.protocol import About
from handler.request import Call, Column, Limits, Request, TextItem, read_text_request
from handler.rules import BOOLEAN, integer, key, optional
from handler.tasks.base import require_finite, text_inputs, unlisted
from handler.text_encoder import Rows, TextEncoder, Tokens

Vector = npt.NDArray[np.float32]  # (size,)


@dataclass(frozen=True)
class Parameters:
    """What a request may ask for."""

    truncation: bool = key(BOOLEAN, "cut a text to the model's limit; false: refuse it with 413", True)
    normalize: bool | None = key(
        optional(BOOLEAN), "whether vectors have unit length: as the model's do only", None
    )
    dimensions: int | None = key(optional(integer(1)), "of a vector: the model's own only", None)


@dataclass(frozen=True)
class Embedding:
    """One text's vector."""

    vector: Vector
    tokens: int  # that were read for it


class FeatureExtraction:
    """A sentence encoder; pooling and normalisation are taken from the model's own files."""

    field = "text"
    beside = ""
    media_types = ()

    def __init__(self, config: HandlerConfig, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self.max_tokens = encoder.loaded.max_tokens
        self.limits = Limits(config.max_items, config.max_text_bytes)
        self.inputs = text_inputs("text", tokens=encoder.vocabulary)
        self.pooling = read_pooling(encoder.loaded.directory, config.pooling, config.normalize)
        self.size = encoder.loaded.model.config.hidden_size * len(self.pooling.names)
        self.outputs = (Column("embedding", "FP32", (-1, self.size)), Column("tokens", "INT64", (-1,)))

    def parse(self, call: Call) -> Request:
        """Texts, with truncation; normalize and dimensions where they say what is so anyway."""
        request = read_text_request(call, Parameters, self.limits, self.encoder.vocabulary)
        wanted: Parameters = request.parameters
        if wanted.normalize not in (None, self.pooling.normalize):
            have = "have" if self.pooling.normalize else "do not have"
            raise InvalidRequest(f"normalize: this model's vectors {have} unit length, whoever asks")
        if wanted.dimensions not in (None, self.size):
            raise InvalidRequest(f"dimensions: this model's vectors have {self.size}")
        return request

    def encode(self, items: Sequence[TextItem]) -> list[Slot[Rows]]:
        """Texts to tokens."""
        return self.encoder.encode(items)

    def forward(self, rows: Sequence[Tokens]) -> Sequence[Embedding]:
        """Tokens to vectors, pooled in float32 whatever the model runs in."""
        output, mask = self.encoder.forward(rows)
        with torch.inference_mode():
            vectors = pool(output.last_hidden_state.float(), mask, self.pooling).cpu().numpy()
        return [Embedding(vector, len(row)) for vector, row in zip(vectors, rows, strict=True)]

    def decode(self, request: Request, outputs: Sequence[tuple[Embedding]]) -> Sequence[Embedding]:
        """The vectors, if they are numbers."""
        embeddings = [embedding for (embedding,) in outputs]
        require_finite([embedding.vector for embedding in embeddings])
        return embeddings

    def answer(self, request: Request, results: Sequence[Embedding], about: About) -> dict[str, Any]:
        """A list of vectors, for one text too."""
        return {"embeddings": self.predictions(request, results)}

    def predictions(self, request: Request, results: Sequence[Embedding]) -> Sequence[Vector]:
        """Each text's vector."""
        return [result.vector for result in results]

    def pipeline(self, request: Request, results: Sequence[Embedding], asked: Collection[str]) -> Any:
        """One vector for a text: pooled, where the pipeline would answer with those of all tokens."""
        return unlisted(request, self.predictions(request, results))

    def columns(self, request: Request, results: Sequence[Embedding]) -> dict[str, Any]:
        """The vectors, and how many tokens were read for each."""
        return {
            "embedding": np.array([result.vector for result in results]),
            "tokens": np.array([result.tokens for result in results], np.int64),
        }

    def describe(self) -> dict[str, Any]:
        """How the vectors are made."""
        return {"pooling": list(self.pooling.names), "normalize": self.pooling.normalize}


def build(config: HandlerConfig, directory: Path, device: torch.device) -> FeatureExtraction:
    """Loads the encoder. Raises LoadError."""
    # Some checkpoints come without BERT's pooler, which is not used here.
    return FeatureExtraction(
        config, TextEncoder(load(directory, config, transformers.AutoModel, device, ("pooler.",)))
    )
