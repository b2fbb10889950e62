"""Texts to tokens, tokens to padded tensors, tensors through the model: what the text tasks share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from handler.batch import Slot
from handler.errors import InvalidRequest, TooLarge
from handler.loading import Loaded
from handler.request import TextItem


@dataclass(frozen=True)
class Tokens:
    """One text's tokens, special ones included, without padding."""

    ids: list[int]
    type_ids: list[int] | None  # where the model has token types

    def __len__(self) -> int:
        return len(self.ids)


class TextEncoder:
    """A loaded model and its tokenizer, as the tasks use them."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.has_types = "token_type_ids" in loaded.tokenizer.model_input_names
        self.pad_id = loaded.tokenizer.pad_token_id or 0
        self.pads_left = loaded.tokenizer.padding_side == "left"

    def encode(self, items: Sequence[TextItem]) -> list[Slot[Tokens]]:
        """Tokenizes in at most two calls: the texts that may be cut, and those that may not."""
        slots: dict[int, Slot[Tokens]] = {}
        for truncate in (True, False):
            places = [place for place, item in enumerate(items) if item.truncate is truncate]
            if places:
                encoded = self._tokenize([items[place].text for place in places], truncate)
                slots.update((place, self._judge(encoded, row)) for row, place in enumerate(places))
        return [slots[place] for place in range(len(items))]

    def forward(self, rows: Sequence[Tokens]) -> tuple[Any, torch.Tensor]:
        """Runs one micro-batch.

        Returns:
            The model's output, and the attention mask: (rows, longest) int64 on the model's device.
        """
        inputs = {name: self._to_device(array) for name, array in self._pad(rows).items()}
        with torch.inference_mode():
            return self.loaded.model(**inputs), inputs["attention_mask"]

    def _tokenize(self, texts: list[str], truncate: bool) -> Any:
        limit = {"truncation": True, "max_length": self.loaded.max_tokens} if truncate else {}
        return self.loaded.tokenizer(texts, return_token_type_ids=self.has_types, verbose=False, **limit)

    def _judge(self, encoded: Any, row: int) -> Slot[Tokens]:
        ids = encoded["input_ids"][row]
        if len(ids) > self.loaded.max_tokens:
            return TooLarge(f"the text has {len(ids)} tokens; the limit is {self.loaded.max_tokens}")
        if not ids:  # a tokenizer that adds no special ones, and nothing to tokenize
            return InvalidRequest("the text has no tokens")
        return Tokens(ids, encoded["token_type_ids"][row] if self.has_types else None)

    def _pad(self, rows: Sequence[Tokens]) -> dict[str, np.ndarray[Any, Any]]:
        """Rectangles of (rows, longest) int64, padded on the tokenizer's side."""
        longest = max(map(len, rows))
        arrays = {
            "input_ids": np.full((len(rows), longest), self.pad_id, np.int64),
            "attention_mask": np.zeros((len(rows), longest), np.int64),
        }
        if self.has_types:
            arrays["token_type_ids"] = np.zeros((len(rows), longest), np.int64)
        for index, row in enumerate(rows):
            span = slice(longest - len(row), None) if self.pads_left else slice(len(row))
            arrays["input_ids"][index, span] = row.ids
            arrays["attention_mask"][index, span] = 1
            if row.type_ids is not None:
                arrays["token_type_ids"][index, span] = row.type_ids
        return arrays

    def _to_device(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self.loaded.device.type == "cuda":  # pinned memory lets the copy run beside the computation
            return tensor.pin_memory().to(self.loaded.device, non_blocking=True)
        return tensor
