"""fill-mask: the tokens that may stand where a text has a mask."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import transformers

from handler.batch import Slot
from handler.config import HandlerConfig
from handler.errors import HandlerError, InvalidRequest, LoadError, TooLarge
from handler.loading import load
from handler.protocols.protocol import About
from handler.request import Call, Column, Limits, Request, TextItem, read_text_request
from handler.rules import BOOLEAN, integer, key, optional, strings
from handler.tasks.base import document, require_finite, text_inputs, unlisted
from handler.text_encoder import Rows, TextEncoder, Tokens

TOP_K = 5  # where neither request nor recipe says: as in transformers' pipeline
MOST_SEQUENCES = 10_000  # that one request may ask for: each is written out as text
MOST_TOKENS = 1_000_000  # of them all: about a second's decoding, which no deadline interrupts


@dataclass(frozen=True)
class Parameters:
    """What a request may ask for."""

    top_k: int | None = key(optional(integer(1)), "how many tokens for a mask; null: as the recipe says", None)
    targets: list[str] | None = key(optional(strings(1)), "the only tokens to choose from", None)
    truncation: bool = key(BOOLEAN, "cut a text to the model's limit; false: refuse it with 413", True)


@dataclass(frozen=True)
class MaskedText(TextItem):
    """A text, and what is brought back for each of its masks."""

    top_k: int = TOP_K
    targets: tuple[int, ...] | None = None  # token ids


@dataclass(frozen=True)
class MaskedTokens(Tokens):
    """A text's tokens, and what is brought back for each of its masks."""

    masks: list[int]  # where they are in ids
    top_k: int
    targets: tuple[int, ...] | None


@dataclass(frozen=True)
class Filled:
    """The best tokens for each mask of one row, the best first."""

    tokens: MaskedTokens
    ids: npt.NDArray[np.int64]  # (masks, top_k)
    scores: npt.NDArray[np.float32]  # (masks, top_k)


Fillings: TypeAlias = list[Any]  # documents of one mask, or a list of them for each of several masks


class FillMask:
    """A masked language model."""

    field = "text"
    beside = ""
    media_types = ()
    outputs = (Column("fillings", "BYTES", (-1,)),)

    def __init__(self, config: HandlerConfig, encoder: TextEncoder) -> None:
        loaded = encoder.loaded
        self.encoder = encoder
        self.tokenizer = loaded.tokenizer
        self.max_tokens = loaded.max_tokens
        self.limits = Limits(config.max_items, config.max_text_bytes)
        self.inputs = text_inputs("text", tokens=encoder.vocabulary)
        self.top_k = config.top_k or TOP_K
        self.vocabulary = loaded.tokenizer.get_vocab()
        self.size = loaded.model.config.vocab_size
        if loaded.tokenizer.mask_token_id is None:
            raise LoadError("the model's tokenizer has no mask token")
        if self.top_k > self.size:
            raise LoadError(f"handler.top_k is {self.top_k}, but the model knows {self.size} tokens")

    def parse(self, call: Call) -> Request:
        """Texts, with top_k, targets and truncation."""
        request = read_text_request(call, Parameters, self.limits, self.encoder.vocabulary)
        top_k = request.parameters.top_k or self.top_k
        if top_k > self.size:
            raise InvalidRequest(f"top_k: expected at most {self.size}, the tokens that the model knows")
        targets = None
        if request.parameters.targets is not None:
            targets = self._token_ids(request.parameters.targets)
            top_k = min(top_k, len(targets))
        items = (
            MaskedText(item.text, item.truncate, None, top_k, targets, ids=item.ids, types=item.types)
            for item in request.items
        )
        return replace(request, items=tuple(items))

    def encode(self, items: Sequence[TextItem]) -> list[Slot[Rows]]:
        """Texts to tokens that know their masks."""
        slots = self.encoder.encode(items)
        return [
            slot if isinstance(slot, HandlerError) else self._with_masks(item, slot[0])
            for item, slot in zip(items, slots, strict=True)
        ]

    def forward(self, rows: Sequence[MaskedTokens]) -> Sequence[Filled]:
        """Tokens to the best ones for each mask, chosen on the device: a distribution is a vocabulary wide."""
        output, _ = self.encoder.forward(rows)
        with torch.inference_mode():
            return [
                _fill(row, logits[self.encoder.span(row, len(logits))])
                for row, logits in zip(rows, output.logits, strict=True)
            ]

    def decode(self, request: Request, outputs: Sequence[tuple[Filled]]) -> Sequence[Fillings]:
        """Tokens to text."""
        require_finite([filled.scores for (filled,) in outputs])
        _bound([(filled.ids.size, len(filled.tokens)) for (filled,) in outputs])
        return [self._documents(filled) for (filled,) in outputs]

    def answer(self, request: Request, results: Sequence[Fillings], about: About) -> dict[str, Any]:
        """What may fill one text; a list of that, with the model and the time, for a list."""
        if request.single:
            return {"predictions": results[0]}
        return document(request, results, about)

    def predictions(self, request: Request, results: Sequence[Fillings]) -> Sequence[Fillings]:
        """What may fill each text."""
        return results

    def pipeline(self, request: Request, results: Sequence[Fillings], asked: Collection[str]) -> Any:
        """The same; a list of one text is answered as one text (pipelines/fill_mask.py:257)."""
        return results[0] if len(results) == 1 else unlisted(request, results)

    def columns(self, request: Request, results: Sequence[Fillings]) -> dict[str, Any]:
        """What may fill each text."""
        return {"fillings": list(results)}

    def describe(self) -> dict[str, Any]:
        """How a mask is written, and how many tokens are offered for it."""
        return {"mask": self.tokenizer.mask_token, "top_k": self.top_k}

    def _token_ids(self, targets: Sequence[str]) -> tuple[int, ...]:
        """The targets' tokens.

        Where a target is none, the pipeline takes its first piece and logs a warning, which no client would see.
        """
        pieces = self.tokenizer(targets, add_special_tokens=False, verbose=False)["input_ids"]
        ids = []
        for index, (target, found) in enumerate(zip(targets, pieces, strict=True)):
            whole = found[0] if len(found) == 1 and found[0] != self.tokenizer.unk_token_id else self.size
            ids.append(self.vocabulary.get(target, whole))
            if ids[-1] >= self.size:
                raise InvalidRequest(f"targets[{index}]: expected one token of the model, not none or several")
        return tuple(dict.fromkeys(ids))

    def _with_masks(self, item: TextItem, row: Tokens) -> Slot[Rows]:
        if not isinstance(item, MaskedText):  # warming up
            return (MaskedTokens(row.ids, row.type_ids, row.encoding, [], 1, None),)
        mask = self.tokenizer.mask_token_id
        masks = [index for index, token in enumerate(row.ids) if token == mask]
        if not masks:
            lost = row.encoding is not None and any(mask in part.ids for part in row.encoding.overflowing)
            where = f"in the first {self.max_tokens} tokens, to which it is cut" if lost else "in the text"
            return InvalidRequest(f"expected at least one {self.tokenizer.mask_token} {where}")
        try:
            _bound([(len(masks) * item.top_k, len(row))])
        except TooLarge as err:
            return err
        return (MaskedTokens(row.ids, row.type_ids, row.encoding, masks, item.top_k, item.targets),)

    def _documents(self, filled: Filled) -> Fillings:
        """As transformers' pipeline writes them (pipelines/fill_mask.py)."""
        masks = filled.tokens.masks
        fillings = [
            self._of_mask(filled.tokens, place, zip(ids, scores, strict=True))
            for place, ids, scores in zip(masks, filled.ids.tolist(), filled.scores, strict=True)
        ]
        return fillings[0] if len(masks) == 1 else fillings

    def _of_mask(
        self, tokens: MaskedTokens, place: int, found: Iterable[tuple[int, np.float32]]
    ) -> list[dict[str, Any]]:
        pad = self.tokenizer.pad_token_id
        before = [each for each in tokens.ids[:place] if each != pad]
        after = [each for each in tokens.ids[place + 1 :] if each != pad]
        return [
            {
                "score": score,
                "token": token,
                "token_str": self.tokenizer.decode([token]),
                # Where there are several masks, the others are to be seen.
                "sequence": self.tokenizer.decode(
                    [*before, *([token] if token != pad else []), *after],
                    skip_special_tokens=len(tokens.masks) == 1,
                ),
            }
            for token, score in found
        ]


def _fill(row: MaskedTokens, logits: torch.Tensor) -> Filled:
    """The best tokens for a row's masks; its logits are (tokens, vocabulary)."""
    probabilities = logits[row.masks].float().softmax(dim=-1)
    if row.targets is None:
        scores, ids = probabilities.topk(row.top_k)
    else:
        targets = torch.tensor(row.targets, device=logits.device)
        scores, places = probabilities[:, targets].topk(row.top_k)
        ids = targets[places]
    return Filled(row, ids.cpu().numpy(), scores.cpu().numpy())


def _bound(asked: Sequence[tuple[int, int]]) -> None:
    """Raises TooLarge where texts ask for too much: sequences, and the tokens of each."""
    count = sum(sequences for sequences, _ in asked)
    if count > MOST_SEQUENCES:
        raise TooLarge(f"masks times top_k ask for {count} sequences; the limit is {MOST_SEQUENCES}")
    tokens = sum(sequences * length for sequences, length in asked)
    if tokens > MOST_TOKENS:
        raise TooLarge(
            f"masks times top_k ask for sequences of {tokens} tokens in all; the limit is {MOST_TOKENS}"
        )


def build(config: HandlerConfig, directory: Path, device: torch.device) -> FillMask:
    """Loads the masked language model. Raises LoadError."""
    return FillMask(config, TextEncoder(load(directory, config, transformers.AutoModelForMaskedLM, device)))
