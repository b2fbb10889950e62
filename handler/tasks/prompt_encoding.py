"""prompt-encoding: the hidden states of chosen layers for a prompt, as a diffusion model wants them.

The reference are the prompt functions of diffusers' FLUX.2 pipelines: a chat template, padding to a fixed length,
the hidden states of some layers side by side.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from handler.batch import Slot
from handler.config import HandlerConfig
from handler.errors import InvalidRequest, LoadError, TooLarge
from handler.layers import LowerLayers
from handler.loading import DTYPES, OFFLINE, check_directory, read_json
from handler.protocols.protocol import About
from handler.request import Call, Column, Limits, Request, TextItem, read_text_request, several
from handler.rules import BOOLEAN, integer, key, optional
from handler.tasks.base import require_finite, text_inputs
from handler.tensors import WRITERS, Tensors, columns, plain, size_limit
from handler.text_encoder import Rows, Tokens

PROVEN_ROWS = 8  # of padding that are computed to see what they hold
# By how much of its largest value a prompt may differ without its padding: the sums are done in another order.
CLOSE = {"float32": 1e-5, "bfloat16": 3e-2, "float16": 4e-3}


@dataclass(frozen=True)
class Parameters:
    """What a request may ask for."""

    max_sequence_length: int | None = key(
        optional(integer(1)), "tokens of each answer; null: as the recipe says", None
    )
    compact: bool = key(BOOLEAN, "answer with the prompt's own tokens only, without padding", False)
    truncation: bool | None = key(
        optional(BOOLEAN), "cut a prompt that is longer; false: refuse it with 413", None
    )


@dataclass(frozen=True)
class Prompt(TextItem):
    """One prompt, and the length of its answer."""

    length: int = 0
    compact: bool = False


@dataclass(frozen=True)
class PromptTokens(Tokens):
    """A prompt's tokens as they go through the model."""

    mask: list[int]  # 0: padding, which no token attends to
    first: int  # the position of the first
    truncated: bool


@dataclass(frozen=True)
class Encoded:
    """One prompt's hidden states."""

    states: torch.Tensor  # (tokens, layers x width), on the CPU, in the model's dtype
    first: int  # the position of the first of them
    count: int  # of the prompt's own tokens
    truncated: bool


class PromptEncoding:
    """A decoder's lower layers, and the template that prompts are put into."""

    field = "prompt"
    beside = ""
    media_types = tuple(WRITERS)
    inputs = text_inputs("prompt")

    def __init__(self, config: HandlerConfig, tokenizer: Any, layers: LowerLayers) -> None:
        if not tokenizer.chat_template:
            raise LoadError("the model's tokenizer has no chat template")
        self.config = config
        self.tokenizer = tokenizer
        self.layers = layers
        self.max_tokens = config.max_length
        self.limits = Limits(config.max_items, config.max_text_bytes)
        self.pads_left = tokenizer.padding_side == "left"
        self.pad_id = int(tokenizer.pad_token_id or 0)
        self.outputs = (
            Column("prompt_embeds", "FP32", (-1, -1, len(layers.layers) * layers.width)),
            Column("text_ids", "INT64", (-1, -1, 4)),
            Column("tokens", "INT64", (-1,)),
            Column("truncated", "BOOL", (-1,)),
        )
        # (layers x width,): what a row of padding holds, wherever it stands; None where that is not so.
        self.padding: torch.Tensor | None = None
        if self.pads_left and config.padding == "fill":
            self.padding = self._prove_padding()

    def parse(self, call: Call) -> Request:
        """Prompts, with max_sequence_length, compact and truncation; `prompt` may also be a list of them."""
        call = several(call)
        if len(call.inputs) > self.limits.items:
            raise InvalidRequest(
                f"{call.field}[{self.limits.items}]: one request may hold {self.limits.items} prompts"
            )
        request = read_text_request(call, Parameters, self.limits)
        wanted = request.parameters
        length = wanted.max_sequence_length or self.max_tokens
        if length > self.max_tokens:
            raise TooLarge(f"max_sequence_length: {length} tokens; the limit is {self.max_tokens}")
        self._check_size(call, length * len(request.items))
        truncate = self.config.truncation if wanted.truncation is None else wanted.truncation
        prompts = (Prompt(item.text, truncate, None, length, wanted.compact) for item in request.items)
        return replace(request, items=tuple(prompts))

    def encode(self, items: Sequence[TextItem]) -> list[Slot[Rows]]:
        """Prompts to tokens, through the chat template."""
        tokenized = self._tokenize([item.text for item in items])
        return [self._row(self._prompt(item), ids) for item, ids in zip(items, tokenized, strict=True)]

    def forward(self, rows: Sequence[PromptTokens]) -> Sequence[Encoded]:
        """Tokens to hidden states. Shorter rows are filled up on the right, which no earlier token sees."""
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), self.pad_id)
        mask = torch.zeros((len(rows), longest), dtype=torch.int64)
        positions = torch.zeros((len(rows), longest), dtype=torch.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row.ids)
            mask[index, : len(row)] = torch.tensor(row.mask)
            positions[index] = torch.arange(row.first, row.first + longest)
        device = self.layers.device
        states = self.layers.forward(ids.to(device), mask.to(device), positions.to(device)).cpu()
        return [
            Encoded(states[index, : len(row)], row.first, sum(row.mask), row.truncated)
            for index, row in enumerate(rows)
        ]

    def decode(self, request: Request, outputs: Sequence[tuple[Encoded]]) -> Sequence[Encoded]:
        """Hidden states, with their padding."""
        require_finite([encoded.states for (encoded,) in outputs])
        return [self._with_padding(item, encoded) for item, (encoded,) in zip(request.items, outputs, strict=True)]

    def answer(self, request: Request, results: Sequence[Encoded], about: About) -> Tensors:
        """What diffusion models take, and what is said beside it; with `compact`, what the client pads with."""
        tensors = {
            "prompt_embeds": [result.states for result in results],
            "text_ids": [_text_ids(result) for result in results],
        }
        said = {
            "dtype": self.config.dtype,
            "tokens": [result.count for result in results],
            "truncated": [result.truncated for result in results],
            "time_ms": about.inference_time_ms,
        }
        if request.parameters.compact:
            said["length"] = request.parameters.max_sequence_length or self.max_tokens
            if self.padding is not None:
                tensors["padding"] = [self.padding]
        return Tensors(tensors, said)

    def predictions(self, request: Request, results: Sequence[Encoded]) -> Sequence[dict[str, Any]]:
        """Each prompt's hidden states, as JSON has numbers."""
        return [
            {
                "prompt_embeds": plain(result.states),
                "text_ids": plain(_text_ids(result)),
                "tokens": result.count,
                "truncated": result.truncated,
            }
            for result in results
        ]

    def pipeline(self, request: Request, results: Sequence[Encoded], asked: Collection[str]) -> None:
        """There is none."""

    def columns(self, request: Request, results: Sequence[Encoded]) -> dict[str, Any]:
        """The tensors in float32, and what is said of each prompt."""
        return columns(self.answer(request, results, About("", 0)))

    def describe(self) -> dict[str, Any]:
        """Which hidden states these are."""
        return {
            "layers": list(self.layers.layers),
            "width": len(self.layers.layers) * self.layers.width,
            "max_length": self.max_tokens,
            "padding": "filled in" if self.padding is not None else "computed",
            "dtype": self.config.dtype,
            "system_message": self.config.system_message,
            "template_options": self.config.template_options,
            "remove": self.config.remove,
        }

    def _check_size(self, call: Call, tokens: int) -> None:
        """Raises TooLarge for an answer that might be over the limit, before any of it is computed."""
        numbers = tokens * len(self.layers.layers) * self.layers.width
        width = call.number_bytes or DTYPES[self.config.dtype].itemsize
        size = size_limit(call.media_type, numbers, width)
        if size > (limit := self.config.max_response_bytes):
            raise TooLarge(f"the answer may have {size} bytes as {call.media_type}; the limit is {limit}")

    def _prompt(self, item: TextItem) -> Prompt:
        if isinstance(item, Prompt):
            return item
        return Prompt(item.text, True, None, self.max_tokens, False)  # warming up

    def _templated(self, text: str) -> str:
        for removed in self.config.remove or ():
            text = text.replace(removed, "")
        messages = [{"role": "user", "content": text}]
        if self.config.system_message is not None:
            messages.insert(0, {"role": "system", "content": self.config.system_message})
        options: Mapping[str, Any] = self.config.template_options or {}
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **options))

    def _row(self, prompt: Prompt, ids: list[int]) -> Slot[Rows]:
        """What of a prompt goes through the model: its tokens, and its padding where that has to be computed."""
        truncated = len(ids) > prompt.length
        if truncated and not prompt.truncate:
            return TooLarge(
                f"the prompt has {len(ids)} tokens, its template included; the limit is {prompt.length}"
            )
        return (self._tokens(prompt, ids, truncated),)

    def _tokens(self, prompt: Prompt, ids: list[int], truncated: bool) -> PromptTokens:
        ids = ids[-prompt.length :] if self.tokenizer.truncation_side == "left" else ids[: prompt.length]
        missing = prompt.length - len(ids)
        mask = [1] * len(ids)
        first = missing if self.pads_left else 0
        if not prompt.compact and self.padding is None:
            fill, hidden = [self.pad_id] * missing, [0] * missing
            ids, mask, first = (fill + ids, hidden + mask, 0) if self.pads_left else (ids + fill, mask + hidden, 0)
        return PromptTokens(ids, None, None, mask, first, truncated)

    def _with_padding(self, item: TextItem, encoded: Encoded) -> Encoded:
        missing = self._prompt(item).length - len(encoded.states)
        if self._prompt(item).compact or not missing or self.padding is None:
            return encoded
        rows = self.padding.expand(missing, -1)
        return replace(encoded, states=torch.cat([rows, encoded.states]), first=0)

    def _prove_padding(self) -> torch.Tensor | None:
        """What a row of padding on the left holds, if all hold the same, whatever the prompt, and change nothing.

        So it is where a row that may attend to nothing attends to nothing: with torch's SDPA it is, with eager
        attention such a row attends to everything.
        """
        one, other = self._seen_padding("a"), self._seen_padding("two of them")
        return one if one is not None and other is not None and torch.equal(one, other) else None

    def _seen_padding(self, text: str) -> torch.Tensor | None:
        """What the padding before one prompt holds; None where its rows differ, or change the prompt's own."""
        [ids] = self._tokenize([text])
        whole = replace(self._prompt(TextItem(text, True)), length=min(self.max_tokens, len(ids) + PROVEN_ROWS))
        [full] = self.forward([self._tokens(whole, ids, False)])
        [own] = self.forward([self._tokens(replace(whole, compact=True), ids, False)])
        missing = len(full.states) - len(own.states)
        if not missing or not torch.isfinite(full.states).all():
            return None
        row = full.states[0]
        error = (full.states[missing:].float() - own.states.float()).abs().max()
        close = error <= CLOSE[self.config.dtype] * full.states.abs().max()
        return row if close and torch.equal(full.states[:missing], row.expand(missing, -1)) else None

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        templated = [self._templated(text) for text in texts]
        encoded = self.tokenizer(templated, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return list(encoded["input_ids"])


def _text_ids(result: Encoded) -> torch.Tensor:
    """(tokens, 4) int64: time, height, width and the token's place, as `_prepare_text_ids` counts them."""
    ids = torch.zeros((len(result.states), 4), dtype=torch.int64)
    ids[:, 3] = torch.arange(result.first, result.first + len(ids))
    return ids


def build(config: HandlerConfig, directory: Path, device: torch.device) -> PromptEncoding:
    """Loads the layers. Raises LoadError."""
    check_directory(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, **OFFLINE)
    # Where multi-modal models keep it for their processor, which transformers' tokenizers do not look at.
    tokenizer.chat_template = tokenizer.chat_template or read_json(directory / "chat_template.json").get(
        "chat_template"
    )
    layers = LowerLayers(directory, config.layers or (), DTYPES[config.dtype], device, config.attention)
    return PromptEncoding(config, tokenizer, layers)
