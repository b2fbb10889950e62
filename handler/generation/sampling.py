"""How each request's next token is taken: by its own temperature, limits, penalties and seed.

transformers' engine has one way for all requests, sorts the whole vocabulary twice in each step, greedy or not,
and multinomial gives every token of it a random number: 48 ms for 16 rows of 30,522 on two cores, more than a
small model takes. Here what is greedy costs nothing, and on a CPU only what is limited is sorted.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from handler.generation.formats import Format
from handler.generation.penalties import Said, tokens_of

NO_TOKEN = -1  # where the model gives no numbers
MOST_TOPS = 20  # likeliest tokens that are told of beside the one that was taken
CHANCES = 24  # bits, all that a float32 below 1 has
FLOATS = ("temperature", "top_p", "min_p", "chance", "repetition", "presence", "frequency")
ROWS = (*FLOATS, "top_k", "place")  # of the engine's int32 table, a column for each request


@dataclass(frozen=True)
class Told:
    """How likely the model held a token, before its request's temperature, limits, bias and penalties."""

    token: int
    logprob: float
    tops: tuple[tuple[int, float], ...]  # the likeliest tokens and theirs, the likeliest first


class Ledger(list[Told]):
    """What is told of one answer, also where the engine puts its request off, and goes on with a copy."""

    def __deepcopy__(self, memo: Any) -> Ledger:
        return self


@dataclass(frozen=True)
class Sampling:
    """What one request asks for; nothing of it: the likeliest token."""

    temperature: float = 1.0
    top_k: int = 1  # 1: the likeliest; the vocabulary's size: no limit
    top_p: float = 1.0
    min_p: float = 0.0  # times the likeliest's chance
    # Tokens, (n) int64, and what is added to their scores, (n) float32.
    bias: tuple[torch.Tensor, torch.Tensor] | None = field(default=None, compare=False)
    format: Format | None = field(default=None, compare=False)  # what the answer has to look like
    repetition: float = 1.0  # over 1: against what the prompt has or was said, as `generate` has it
    presence: float = 0.0  # over 0: against what was said at all
    frequency: float = 0.0  # over 0: against what was said often
    random: random.Random = field(default_factory=random.Random, compare=False)  # one number for each token
    # Likeliest tokens that are told of for each one that is taken; None: not even that one.
    tops: int | None = None
    told: Ledger = field(default_factory=Ledger, compare=False)  # grows with the answer

    @property
    def draws(self) -> bool:
        """Whether there is a choice."""
        return self.top_k != 1

    @property
    def penalizes(self) -> bool:
        """Whether it matters what was said."""
        return self.repetition != 1 or self.presence != 0 or self.frequency != 0


GREEDY = Sampling()
WARMING = Sampling(top_k=2)  # a graph that is made before there are requests
# Of a row's numbers that are told: the token's own logprob, those of the likeliest, and which these are.
OWN, LIKELIEST, WHICH = slice(0, 1), slice(1, 1 + MOST_TOPS), slice(1 + MOST_TOPS, 1 + 2 * MOST_TOPS)


class Sampler:
    """Stands in place of the engine's processors (ContinuousBatchingLogitsProcessorList), and of its own drawing.

    Args:
        vocabulary: tokens that the model gives scores of.
        requests: the most in one step.
        device: the model's.
    """

    do_processing = True
    tensors_required = len(ROWS)

    def __init__(self, vocabulary: int, requests: int, device: torch.device) -> None:
        self.draws = self.biases = self.penalizes = self.tells = False  # whether any request of this step does
        self._said = Said(requests, vocabulary, device)
        self._asked: Sequence[Sampling] = ()  # of this step, a row each
        self._taken = torch.empty(0)
        # (requests, …) float32, made when the first comes that wants it; CUDA graphs count on its place.
        self._numbers = torch.empty(0)
        self._bias = torch.empty(0)  # (requests, vocabulary) float32, and so is this
        self._unkept: list[Any] = []  # states of requests whose format could not be followed in this step
        self._requests, self._vocabulary, self._device = requests, vocabulary, device

    @property
    def kind(self) -> tuple[bool, ...]:
        """Of the step; one of another kind is another graph."""
        return self.draws, self.biases, self.penalizes, self.tells

    def check_kwargs(self, kwargs: Any) -> None:
        """Nothing: they are this module's own."""

    def fill_defaults(self, table: torch.Tensor) -> None:
        """Writes what no request asks for: (ROWS, 1) int32."""
        table.copy_(torch.from_numpy(_columns([GREEDY], [0])))

    def prepare_tensor_args(self, requests_in_batch: Sequence[Any], arg_storage: torch.Tensor) -> torch.Tensor:
        """Writes what the requests ask for that get a token in this step: (ROWS, …) int32."""
        states = [request.state for request in requests_in_batch if request.has_new_token]
        asked = [state.logit_processor_kwargs.get("sampling", WARMING) for state in states]
        self._asked = asked
        self.draws = any(one.draws for one in asked)
        self.biases = any(one.bias is not None or one.format is not None for one in asked)
        self.penalizes = any(one.penalizes for one in asked)
        self.tells = any(one.tops is not None for one in asked)
        if self.tells and not len(self._numbers):
            self._numbers = torch.zeros((self._requests, WHICH.stop), device=self._device)
        if self.biases:
            self._write_biases(asked, states)
        judged = [state if one.penalizes else None for state, one in zip(states, asked, strict=True)]
        places = self._said.read(judged) if self.penalizes else [0] * len(states)
        arg_storage[:, : len(states)] = torch.from_numpy(_columns(asked, places))
        return arg_storage

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """Takes the tokens, which `write` tells the engine.

        Args:
            ids: not looked at.
            scores: (rows, vocabulary) float32, as the model gives them.
            table: (ROWS, rows) int32, as `prepare_tensor_args` wrote it.

        Returns:
            The scores.
        """
        asked = Asked.of(table[:, : len(scores)])
        judged = scores + self._bias[: len(scores)] if self.biases else scores
        judged = self._said.penalized(judged, asked) if self.penalizes else judged
        finite = judged.amax(-1).isfinite()
        taken = judged.argmax(-1)
        if self.draws:
            drawn = _drawn_by_some if scores.device.type == "cpu" else _drawn_by_all
            taken = drawn(judged, asked, taken, finite)
        self._taken = taken.masked_fill(~finite, NO_TOKEN)
        if self.tells:
            self._measure(scores, taken)
        return scores

    def write(self, scores: torch.Tensor, output_ids: torch.Tensor) -> None:
        """In place of the engine's `_sample`: the tokens taken into (1, …) int32."""
        output_ids[0, : len(self._taken)].copy_(self._taken)

    def unkept(self) -> list[Any]:
        """States of requests whose format could not be followed since this was asked for."""
        found, self._unkept = self._unkept, []
        return found

    def _write_biases(self, asked: Sequence[Sampling], states: Sequence[Any]) -> None:
        """A row for each request of the step: what its bias adds, and -inf for what its format does not have."""
        if not len(self._bias):
            self._bias = torch.zeros((self._requests, self._vocabulary), device=self._device)
        self._bias[: len(asked)] = 0
        for row, (one, state) in enumerate(zip(asked, states, strict=True)):
            if one.bias is not None:
                tokens, values = (part.to(self._device) for part in one.bias)
                self._bias[row, tokens] = values
            if one.format is None:
                continue
            if (allowed := one.format.allowed(tokens_of(state)[1])) is None:
                self._unkept.append(state)
            else:
                self._bias[row].masked_fill_(~allowed.to(self._device), -torch.inf)

    def _measure(self, scores: torch.Tensor, taken: torch.Tensor) -> None:
        """Notes how likely the tokens are that were taken, and the likeliest."""
        logprobs = scores.log_softmax(-1)
        values, tokens = logprobs.topk(min(MOST_TOPS, scores.shape[1]))
        rows, width = values.shape
        self._numbers[:rows, OWN] = logprobs.gather(1, taken[:, None])
        self._numbers[:rows, LIKELIEST][:, :width] = values
        self._numbers[:rows, WHICH][:, :width] = tokens.float()  # exact, up to 16.7 million

    def tell(self, tokens: Sequence[int]) -> None:
        """Tells each request that wants it of the token that it got in this step.

        Args:
            tokens: those of the step, and behind them some for requests whose prompt is still being read.
        """
        if not self.tells:
            return
        rows = self._numbers[: len(self._asked)].tolist()
        for one, token, numbers in zip(self._asked, tokens, rows, strict=False):
            if one.tops is not None:
                which = map(int, numbers[WHICH][: one.tops])
                tops = tuple(zip(which, numbers[LIKELIEST], strict=False))
                one.told.append(Told(token, numbers[0], tops))


@dataclass(frozen=True)
class Asked:
    """What the rows of a step ask for: (rows) each, float32, and int32 the last two.

    `chance` is what is drawn by, from 0 to below 1; `place` is the row of the table of what was said.
    """

    temperature: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    chance: torch.Tensor
    repetition: torch.Tensor
    presence: torch.Tensor
    frequency: torch.Tensor
    top_k: torch.Tensor
    place: torch.Tensor

    @classmethod
    def of(cls, table: torch.Tensor) -> Asked:
        """What the engine's table says: (ROWS, rows) int32."""
        return cls(
            *(row.view(torch.float32) if name in FLOATS else row for name, row in zip(ROWS, table, strict=True))
        )

    def some(self, rows: torch.Tensor) -> Asked:
        """That of some rows only."""
        return Asked(*(getattr(self, name)[rows] for name in ROWS))


def _columns(asked: Sequence[Sampling], places: Sequence[int]) -> Any:
    """(ROWS, requests) int32, in which floats are float32's bits; a chance that is not drawn on costs none."""
    said = [
        (
            one.temperature,
            one.top_p,
            one.min_p,
            one.random.getrandbits(CHANCES) / (1 << CHANCES) if one.draws else 0.0,
            one.repetition,
            one.presence,
            one.frequency,
        )
        for one in asked
    ]
    floats = np.array(said, np.float32).reshape(len(asked), len(FLOATS)).T
    whole = np.array([[one.top_k for one in asked], places], np.int32).reshape(2, len(asked))
    return np.concatenate([np.ascontiguousarray(floats).view(np.int32), whole])


def _drawn_by_all(
    scores: torch.Tensor, asked: Asked, likeliest_one: torch.Tensor, finite: torch.Tensor
) -> torch.Tensor:
    """The tokens, in a CUDA graph: nothing may depend on what is asked for, and a GPU sorts fast."""
    # A row without numbers would be looked up beyond its end, and that would end the worker.
    over = torch.where(finite[:, None], scores / asked.temperature[:, None], 0)
    chances, tokens = likeliest(over, asked.top_k, asked.top_p, asked.min_p, scores.shape[1])
    drawn = tokens.gather(1, _places(chances, asked.chance)).squeeze(1)
    return torch.where(asked.top_k > 1, drawn, likeliest_one)


def _drawn_by_some(
    scores: torch.Tensor, asked: Asked, likeliest_one: torch.Tensor, finite: torch.Tensor
) -> torch.Tensor:
    """The tokens, where those who draw nothing and limit nothing shall pay for nothing."""
    rows = ((asked.top_k > 1) & finite).nonzero().flatten()
    if not len(rows):
        return likeliest_one
    some = asked.some(rows)
    return likeliest_one.index_put((rows,), draw(scores[rows] / some.temperature[:, None], some))


def draw(scores: torch.Tensor, asked: Asked) -> torch.Tensor:
    """A token of each row: (rows) int64. The scores are already over their temperature."""
    limited = (asked.top_k < scores.shape[1]) | (asked.top_p < 1) | (asked.min_p > 0)
    drawn = torch.empty(len(scores), dtype=torch.int64)
    if limited.any():
        own = asked.some(limited)
        chances, tokens = likeliest(scores[limited], own.top_k, own.top_p, own.min_p, int(own.top_k.max()))
        drawn[limited] = tokens.gather(1, _places(chances, own.chance)).squeeze(1)
    if not limited.all():
        drawn[~limited] = _places(scores[~limited].softmax(-1), asked.chance[~limited]).squeeze(1)
    return drawn


def likeliest(
    scores: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor, most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What may be drawn, the likeliest first: chances, which need not sum to 1, and tokens, both (rows, most).

    Args:
        scores: (rows, vocabulary), over their temperature.
        top_k: (rows); the vocabulary's size is no limit.
        top_p: (rows), over 0; 1 is no limit.
        min_p: (rows), of the likeliest's chance; 0 is no limit.
        most: the largest top_k, or more.
    """
    values, tokens = scores.topk(most) if most < scores.shape[1] else scores.sort(descending=True)
    beyond = torch.arange(values.shape[1], device=scores.device) >= top_k[:, None]
    chances = values.masked_fill(beyond, -torch.inf).softmax(-1)
    before = chances.cumsum(-1) - chances
    out = (before >= top_p[:, None]) | (chances < min_p[:, None] * chances[:, :1])
    return chances.masked_fill(out, 0), tokens


def _places(chances: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
    """One place of each row, by its chance: (rows, 1) int64. A place without a chance is never met."""
    heap = chances.double().cumsum(-1)
    return torch.searchsorted(heap, chance.double()[:, None] * heap[:, -1:], right=True)
