"""text-ranking: how well each text answers a query, as sentence-transformers' CrossEncoder scores it."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from handler.batch import Slot
from handler.config import HandlerConfig
from handler.errors import InvalidRequest, LoadError
from handler.loading import load, read_json
from handler.protocols.protocol import About
from handler.request import (
    Call,
    Column,
    Limits,
    Request,
    TextItem,
    is_tokenized,
    pair_up,
    read_text,
    read_text_request,
)
from handler.rules import BOOLEAN, TEXT, integer, key, label, optional
from handler.tasks.base import require_finite, text_inputs
from handler.text_encoder import Rows, TextEncoder, Tokens

SIGMOID = "torch.nn.modules.activation.Sigmoid"
# What a model's files may name; sentence-transformers imports whatever they name in torch.
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    SIGMOID: torch.sigmoid,
    "torch.nn.Sigmoid": torch.sigmoid,
    "torch.nn.modules.linear.Identity": torch.clone,
    "torch.nn.Identity": torch.clone,
}


@dataclass(frozen=True)
class Parameters:
    """What a request may ask for."""

    query: str = key(TEXT, "what the texts are ranked by")
    top_k: int | None = key(optional(integer(1)), "the k best texts only", None)
    return_texts: bool = key(BOOLEAN, "answer with the texts too", False)
    raw_scores: bool = key(BOOLEAN, "the model's own numbers, without its activation", False)
    truncation: bool = key(BOOLEAN, "cut the longer of query and text to the model's limit; false: 413", True)


class TextRanking:
    """A cross-encoder: it reads the query and one text together, and gives one score."""

    field = "text"
    beside = ""
    media_types = ()
    outputs = (Column("score", "FP32", (-1,)),)

    def __init__(self, config: HandlerConfig, encoder: TextEncoder) -> None:
        labels = encoder.loaded.model.config.num_labels
        if labels != 1:
            raise LoadError(f"the model has {labels} labels; ranking takes a model with one")
        self.config = config
        self.encoder = encoder
        self.max_tokens = encoder.loaded.max_tokens
        self.limits = Limits(config.max_items, config.max_text_bytes, config.max_body_bytes)
        self.inputs = text_inputs("text", Column("query", "BYTES", (1,)), tokens=encoder.vocabulary)
        self.activation = read_activation(encoder.loaded.directory)

    def parse(self, call: Call) -> Request:
        """A query and texts, with top_k, return_texts, raw_scores and truncation."""
        if is_tokenized(call):  # both texts in one
            if "query" in call.parameters:
                raise InvalidRequest(f"query: expected none beside {call.field}, which hold it already")
            call = replace(call, parameters={"query": "", **call.parameters})
            return read_text_request(call, Parameters, self.limits, self.encoder.vocabulary)
        request = read_text_request(call, Parameters, self.limits)
        query = read_text(request.parameters.query, "query", self.limits)
        return pair_up(request, [replace(item, text=query, pair=item.text) for item in request.items], self.limits)

    def encode(self, items: Sequence[TextItem]) -> list[Slot[Rows]]:
        """Pairs of query and text to tokens."""
        return self.encoder.encode(items)

    def forward(self, rows: Sequence[Tokens]) -> Sequence[np.float32]:
        """Tokens to scores, before the activation: requests that share a batch may ask for either."""
        output, _ = self.encoder.forward(rows)
        return list(output.logits.float().squeeze(-1).cpu().numpy())

    def decode(self, request: Request, outputs: Sequence[tuple[np.float32]]) -> Sequence[np.float32]:
        """Scores, in the order of the texts."""
        scores = np.array([score for (score,) in outputs], np.float32)
        require_finite([scores])
        if request.parameters.raw_scores:
            return list(scores)
        return list(ACTIVATIONS[self.activation](torch.from_numpy(scores)).numpy())

    def answer(self, request: Request, results: Sequence[np.float32], about: About) -> dict[str, Any]:
        """A list, the best first, for one text too; of equal scores the first text's."""
        return {"results": self.pipeline(request, results, ())}

    def predictions(self, request: Request, results: Sequence[np.float32]) -> Sequence[np.float32]:
        """Each text's score."""
        return results

    def pipeline(self, request: Request, results: Sequence[np.float32], asked: Collection[str]) -> Any:
        """The same list: transformers has no such pipeline, and those who ask for one expect this."""
        top_k = request.parameters.top_k or self.config.top_k
        order = sorted(range(len(results)), key=lambda index: -results[index])[:top_k]
        ranked: list[dict[str, Any]] = [{"index": index, "score": results[index]} for index in order]
        if request.parameters.return_texts:
            ranked = [{**entry, "text": request.items[entry["index"]].pair} for entry in ranked]
        return ranked

    def columns(self, request: Request, results: Sequence[np.float32]) -> dict[str, Any]:
        """The scores, in the order of the texts."""
        return {"score": np.array(results, np.float32)}

    def describe(self) -> dict[str, Any]:
        """What the scores went through."""
        return {"activation": self.activation.rpartition(".")[2]}


def read_activation(directory: Path) -> str:
    """The activation that CrossEncoder would apply (cross_encoder/model.py:358 and :866).

    Raises:
        LoadError: the model's files name another, or ask for something else that is not done here.
    """
    config = read_json(directory / "config.json")
    own = config.get("sentence_transformers") or {}
    legacy = config.get("sbert_ce_default_activation_function")  # written before version 4
    name = _read_saved(directory).get("activation_fn") or own.get("activation_fn", legacy) or SIGMOID
    if name not in ACTIVATIONS:
        raise LoadError(f"the model's files name an activation that is not supported: {label(name)}")
    return str(name)


def _read_saved(directory: Path) -> dict[str, Any]:
    """What CrossEncoder has written beside the model; what others have it does not read (base/model.py:1202)."""
    modules = directory / "modules.json"
    saved = read_json(directory / "config_sentence_transformers.json") if modules.is_file() else {}
    if saved.get("model_type") != "CrossEncoder":
        return {}
    stages = [stage["type"].rpartition(".")[2] for stage in json.loads(modules.read_text())]
    if stages != ["Transformer"]:
        raise LoadError(f"model/modules.json has stages that are not supported: {', '.join(stages)}")
    if saved.get("default_prompt_name"):
        raise LoadError("model/config_sentence_transformers.json has a default prompt, which is not supported")
    return saved


def build(config: HandlerConfig, directory: Path, device: torch.device) -> TextRanking:
    """Loads the cross-encoder. Raises LoadError."""
    return TextRanking(
        config, TextEncoder(load(directory, config, transformers.AutoModelForSequenceClassification, device))
    )
