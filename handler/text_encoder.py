"""Texts to tokens, tokens to padded tensors, tensors through the model: what the text tasks share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from handler.batch import Slot
from handler.errors import InvalidRequest, LoadError, NonFiniteOutput, TooLarge
from handler.loading import Loaded
from handler.request import TextItem, Vocabulary


@dataclass(frozen=True)
class Tokens:
    """One text's tokens, or one window's of a long text; special ones included, without padding."""

    ids: list[int]
    type_ids: list[int] | None  # where the model has token types
    # tokenizers.Encoding: offsets, word_ids, sequence_ids, special_tokens_mask, made when asked for. None where a
    # client sent tokens.
    encoding: Any

    def __len__(self) -> int:
        return len(self.ids)


Rows: TypeAlias = tuple[Tokens, ...]  # of one item: one, or its windows


class TextEncoder:
    """A loaded model and its tokenizer, as the tasks use them.

    Args:
        loaded: the model.
        cut: which text of a pair is cut to the model's limit, in transformers' words.
        stride: where given, a long text is not cut but read in windows that share so many tokens.

    Raises:
        LoadError: windows would have no room for more than they share.
    """

    def __init__(self, loaded: Loaded, cut: str = "longest_first", stride: int | None = None) -> None:
        self.loaded = loaded
        self.cut = cut
        self.stride = stride
        self.has_types = "token_type_ids" in loaded.tokenizer.model_input_names
        self.pad_id = loaded.pad_id
        # Else on the right, whatever the tokenizer says: absolute positions count from a row's beginning, where
        # padding would move them. XLNet counts from token to token, and classifies by a row's very last.
        self.pads_left = getattr(loaded.model.config, "summary_type", None) == "last"
        room = loaded.max_tokens - loaded.tokenizer.num_special_tokens_to_add(pair=False)
        if stride is not None and stride >= room:  # the tokenizer's Rust would panic, and take the worker along
            raise LoadError(f"handler.stride is {stride}, but a window has room for {room} tokens")

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What a client may send that has tokenized its texts itself."""
        config = self.loaded.model.config
        types = int(getattr(config, "type_vocab_size", 0) or 0) if self.has_types else 0
        return Vocabulary(self.loaded.vocabulary, types, self.loaded.max_tokens)

    def encode(self, items: Sequence[TextItem]) -> list[Slot[Rows]]:
        """Tokenizes in at most two calls: the texts that may be cut, and those that may not."""
        slots: dict[int, Slot[Rows]] = {
            place: (_tokens(item.ids, item.types),) for place, item in enumerate(items) if item.ids is not None
        }
        for truncate in (True, False):
            places = [p for p, item in enumerate(items) if item.ids is None and item.truncate is truncate]
            if places:
                rows = self._tokenize([items[place] for place in places], truncate)
                slots.update((place, self._judge(items[place], rows[index])) for index, place in enumerate(places))
        return [slots[place] for place in range(len(items))]

    def forward(self, rows: Sequence[Tokens]) -> tuple[Any, torch.Tensor]:
        """Runs one micro-batch.

        Returns:
            The model's output, and the attention mask: (rows, longest) int64 on the model's device.

        Raises:
            NonFiniteOutput: a row's would be, though its numbers might not show it.
        """
        inputs = {name: self._to_device(array) for name, array in self._pad(rows).items()}
        with torch.inference_mode():
            if self.loaded.quantized:
                self._require_finite(inputs["input_ids"])
            return self.loaded.model(**inputs), inputs["attention_mask"]

    def unpad(self, rows: Sequence[Tokens], padded: torch.Tensor) -> list[npt.NDArray[np.float32]]:
        """Each row's own part of a micro-batch's (rows, longest, …), on the CPU: (tokens, …) float32."""
        arrays = padded.cpu().float().numpy()
        return [array[self.span(row, len(array))] for row, array in zip(rows, arrays, strict=True)]

    def _require_finite(self, ids: torch.Tensor) -> None:
        """Quantized layers make numbers of NaN, and wrong ones of the rows beside it: each is then tried alone."""
        if not torch.isfinite(self.loaded.model.get_input_embeddings()(ids)).all():
            raise NonFiniteOutput("the model answered NaN or infinity")

    def _tokenize(self, items: Sequence[TextItem], truncate: bool) -> list[list[Tokens]]:
        options: dict[str, Any] = {
            "return_token_type_ids": self.has_types,
            "return_attention_mask": False,
            "verbose": False,
        }
        pairs = None if items[0].pair is None else [item.pair for item in items]
        if truncate:
            options |= {"truncation": self.cut if pairs else True, "max_length": self.loaded.max_tokens}
            if self.stride is not None:
                options |= {"stride": self.stride, "return_overflowing_tokens": True}
        try:
            encoded = self.loaded.tokenizer([item.text for item in items], pairs, **options)
        except Exception as err:
            if "too short" not in str(err):  # tokenizers' SequenceTooShort, which has no type of its own
                raise
            limit = self.loaded.max_tokens
            raise TooLarge(f"the text that is not cut has too many tokens; the limit is {limit}") from err
        rows: list[list[Tokens]] = [[] for _ in items]
        owners = encoded.get("overflow_to_sample_mapping", range(len(items)))
        for index, owner in enumerate(owners):
            types = encoded["token_type_ids"][index] if self.has_types else None
            rows[owner].append(Tokens(encoded["input_ids"][index], types, encoded.encodings[index]))
        return rows

    def _judge(self, item: TextItem, rows: Sequence[Tokens]) -> Slot[Rows]:
        size = len(rows[0])
        if size > self.loaded.max_tokens:
            what = "the text has" if item.pair is None else "the two texts together have"
            return TooLarge(f"{what} {size} tokens; the limit is {self.loaded.max_tokens}")
        if not size:  # a tokenizer that adds no special ones, and nothing to tokenize
            return InvalidRequest("the text has no tokens")
        # On a GPU, to look one up would end the worker.
        if any(max(row.ids) >= self.loaded.vocabulary for row in rows):
            return InvalidRequest("the text has a token of the tokenizer that the model does not know")
        return tuple(rows)

    def _pad(self, rows: Sequence[Tokens]) -> dict[str, npt.NDArray[np.int64]]:
        """Rectangles of (rows, longest) int64."""
        longest = max(map(len, rows))
        arrays = {
            "input_ids": np.full((len(rows), longest), self.pad_id, np.int64),
            "attention_mask": np.zeros((len(rows), longest), np.int64),
        }
        if self.has_types:
            arrays["token_type_ids"] = np.zeros((len(rows), longest), np.int64)
        for index, row in enumerate(rows):
            span = self.span(row, longest)
            arrays["input_ids"][index, span] = row.ids
            arrays["attention_mask"][index, span] = 1
            if row.type_ids is not None:
                arrays["token_type_ids"][index, span] = row.type_ids
        return arrays

    def span(self, row: Tokens, longest: int) -> slice:
        """Where a row's tokens are beside its padding."""
        return slice(longest - len(row), None) if self.pads_left else slice(len(row))

    def _to_device(self, array: npt.NDArray[np.int64]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self.loaded.device.type == "cuda":  # pinned memory lets the copy run beside the computation
            return tensor.pin_memory().to(self.loaded.device, non_blocking=True)
        return tensor


def _tokens(ids: tuple[int, ...], types: tuple[int, ...] | None) -> Tokens:
    return Tokens(list(ids), None if types is None else list(types), None)
