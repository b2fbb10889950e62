"""token-classification: what stands where in a text, such as names, as transformers' pipeline tells it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import transformers

from handler.batch import Slot
from handler.config import AGGREGATION_STRATEGIES, HandlerConfig
from handler.errors import InvalidRequest
from handler.loading import load
from handler.protocols.protocol import About
from handler.request import Call, Column, Limits, Request, TextItem, read_text_request
from handler.rules import BOOLEAN, key, one_of, optional, strings
from handler.tasks.base import document, require_finite, text_inputs, unlisted
from handler.text_encoder import Rows, TextEncoder, Tokens


@dataclass(frozen=True)
class Parameters:
    """What a request may ask for."""

    aggregation_strategy: str | None = key(
        optional(one_of(*AGGREGATION_STRATEGIES)), "how tokens become entities; null: as the recipe says", None
    )
    ignore_labels: list[str] | None = key(optional(strings(0)), "labels that are left out; null: O", None)
    truncation: bool = key(BOOLEAN, "cut a text to the model's limit; false: refuse it with 413", True)


@dataclass(frozen=True)
class Tagged:
    """One row's logits."""

    tokens: Tokens
    logits: npt.NDArray[np.float32]  # (tokens, labels)


Entities: TypeAlias = list[dict[str, Any]]


class TokenClassification:
    """A token classifier. Tokens become entities in transformers' own pipeline, which never runs the model."""

    field = "text"
    beside = ""
    media_types = ()
    inputs = text_inputs("text")
    outputs = (Column("entities", "BYTES", (-1,)),)

    def __init__(self, config: HandlerConfig, encoder: TextEncoder) -> None:
        loaded = encoder.loaded
        self.config = config
        self.encoder = encoder
        self.max_tokens = loaded.max_tokens
        self.limits = Limits(config.max_items, config.max_text_bytes)
        self.tagger = transformers.TokenClassificationPipeline(
            model=loaded.model, tokenizer=loaded.tokenizer, device=loaded.model.device
        )

    def parse(self, call: Call) -> Request:
        """Texts, with aggregation_strategy, ignore_labels and truncation."""
        request = read_text_request(call, Parameters, self.limits)
        if self.encoder.stride is not None and request.parameters.aggregation_strategy == "none":
            raise InvalidRequest("aggregation_strategy: none is not offered where long texts are read in windows")
        return request

    def encode(self, items: Sequence[TextItem]) -> list[Slot[Rows]]:
        """Texts to tokens, in windows where the recipe has a stride."""
        return self.encoder.encode(items)

    def forward(self, rows: Sequence[Tokens]) -> Sequence[Tagged]:
        """Tokens to logits."""
        output, _ = self.encoder.forward(rows)
        return [Tagged(*pair) for pair in zip(rows, self.encoder.unpad(rows, output.logits), strict=True)]

    def decode(self, request: Request, outputs: Sequence[tuple[Tagged, ...]]) -> Sequence[Entities]:
        """Logits to the entities of each text."""
        require_finite([row.logits for rows in outputs for row in rows])
        strategy = request.parameters.aggregation_strategy or self.config.aggregation_strategy
        ignored = request.parameters.ignore_labels
        options = {
            "aggregation_strategy": transformers.pipelines.AggregationStrategy(strategy),
            "ignore_labels": None if ignored is None else frozenset(ignored),
        }
        return [
            self.tagger.postprocess([_output(row, item.text) for row in rows], **options)
            for item, rows in zip(request.items, outputs, strict=True)
        ]

    def answer(self, request: Request, results: Sequence[Entities], about: About) -> dict[str, Any]:
        """The entities of one text; a list of them, with the model and the time, for a list."""
        return document(request, self.predictions(request, results), about)

    def predictions(self, request: Request, results: Sequence[Entities]) -> Sequence[dict[str, Any]]:
        """The entities of each text."""
        return [{"entities": entities} for entities in results]

    def pipeline(self, request: Request, results: Sequence[Entities], asked: Collection[str]) -> Any:
        """The entities, without a name."""
        return unlisted(request, results)

    def columns(self, request: Request, results: Sequence[Entities]) -> dict[str, Any]:
        """The entities of each text."""
        return {"entities": list(results)}

    def describe(self) -> dict[str, Any]:
        """The labels, and how tokens become entities."""
        labels = self.encoder.loaded.model.config.id2label
        return {
            "labels": [labels[index] for index in range(len(labels))],
            "aggregation_strategy": self.config.aggregation_strategy,
            "stride": self.encoder.stride,
        }


def _output(row: Tagged, text: str) -> dict[str, Any]:
    """What the pipeline's `_forward` hands to its `postprocess`: a batch of one."""
    encoding = row.tokens.encoding
    return {
        "sentence": text,
        "logits": torch.tensor(row.logits)[None],  # (1, tokens, labels)
        "input_ids": [row.tokens.ids],
        "offset_mapping": [encoding.offsets],
        "special_tokens_mask": torch.tensor([encoding.special_tokens_mask]),  # (1, tokens)
    }


def build(config: HandlerConfig, directory: Path, device: torch.device) -> TokenClassification:
    """Loads the token classifier. Raises LoadError."""
    loaded = load(directory, config, transformers.AutoModelForTokenClassification, device)
    return TokenClassification(config, TextEncoder(loaded, stride=config.stride))
