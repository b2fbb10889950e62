"""Against saying things again: which tokens each request was given and has said, and what that does to scores."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from handler.generation.sampling import Asked


@dataclass
class _Row:
    place: int
    held: int  # tokens of the answer that the table has


class Said:
    """A table on the device: a row for each request that penalizes, a column for each token.

    It is made when the first of them comes, and keeps its place, which CUDA graphs count on.

    Args:
        requests: the most in one step.
        vocabulary: tokens.
        device: the model's.
    """

    def __init__(self, requests: int, vocabulary: int, device: torch.device) -> None:
        self._shape = requests, vocabulary
        self._device = device
        # (requests, vocabulary): bool, whether it is in the prompt; int32, how often it was said.
        self._given = self._counts = torch.empty(0)
        self._rows: OrderedDict[str, _Row] = OrderedDict()  # those met last at the end

    def read(self, states: Sequence[Any]) -> list[int]:
        """Brings the table up to date; the row in it of each.

        Args:
            states: the engine's (RequestState) of requests that penalize; None for another, which gets any row.
        """
        if not len(self._counts):
            self._given = torch.zeros(self._shape, dtype=torch.bool, device=self._device)
            self._counts = torch.zeros(self._shape, dtype=torch.int32, device=self._device)
        for state in states:  # before any row is given to another
            if state is not None and state.request_id in self._rows:
                self._rows.move_to_end(state.request_id)
        last: list[tuple[int, int]] = []
        places = [0 if state is None else self._place(state, last) for state in states]
        if last:
            rows, tokens = torch.tensor(last, device=self._device).T
            self._counts[rows, tokens] += 1
        return places

    def _place(self, state: Any, last: list[tuple[int, int]]) -> int:
        """A request's row, which holds all that was said, or lacks what is added to `last`."""
        given, said = tokens_of(state)
        row = self._rows.get(state.request_id)
        if row is not None and len(said) - row.held == 1:
            last.append((row.place, said[-1]))
        elif row is None or len(said) != row.held:
            row = self._rows[state.request_id] = self._write(row, given, said)
        row.held = len(said)
        return row.place

    def _write(self, row: _Row | None, given: list[int], said: list[int]) -> _Row:
        """All of a request's tokens into its row, or into one that is free or was not met for the longest."""
        if row is not None:
            place = row.place
        elif len(self._rows) < self._shape[0]:
            place = len(self._rows)
        else:
            place = self._rows.popitem(last=False)[1].place
        self._given[place] = False
        self._given[place, torch.tensor(given, dtype=torch.int64, device=self._device)] = True
        tokens = torch.tensor(said, dtype=torch.int64, device=self._device)
        self._counts[place] = torch.bincount(tokens, minlength=self._shape[1])
        return _Row(place, len(said))

    def penalized(self, scores: torch.Tensor, asked: Asked) -> torch.Tensor:
        """Scores less what was said: as `generate` divides them, and as the OpenAI protocol takes something off.

        Args:
            scores: (rows, vocabulary) float32.
            asked: how much each row counts.
        """
        given, counts = self._given[asked.place], self._counts[asked.place]
        said, repetition = counts > 0, asked.repetition[:, None]
        divided = torch.where(scores > 0, scores / repetition, scores * repetition)
        judged: torch.Tensor = torch.where(given | said, divided, scores)
        return judged - asked.frequency[:, None] * counts - asked.presence[:, None] * said


def tokens_of(state: Any) -> tuple[list[int], list[int]]:
    """Those of a request's prompt, and those of its answer: a request that was put off has some of them before."""
    begun = state._true_initial_tokens or len(state.initial_tokens)
    return state.initial_tokens[:begun], state.initial_tokens[begun:] + state.generated_tokens
