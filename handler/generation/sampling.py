"""Drawing the next token of each row, each with its own temperature, top_k and top_p.

transformers' engine sorts the whole vocabulary twice in each step, greedy or not, and multinomial gives every
token of it a random number: 48 ms for 16 rows of 30,522 on two cores, more than a small model takes. Here what is
greedy costs nothing, and only what is limited is sorted.
"""

from __future__ import annotations

import torch


def choose(
    scores: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor
) -> torch.Tensor:
    """The scores, whose largest of each row is the token to take.

    Args:
        scores: (rows, vocabulary) float32, as the model gives them.
        temperature: (rows) float32, over 0.
        top_k: (rows) int32; 1 is greedy, the vocabulary's size is no limit.
        top_p: (rows) float32, over 0; 1 is no limit.
    """
    rows = (top_k > 1).nonzero().flatten()
    if not len(rows):
        return scores
    drawn = draw(scores[rows] / temperature[rows, None], top_k[rows], top_p[rows])
    return scores.index_put((rows, drawn), torch.tensor(torch.inf))


def draw(scores: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """A token of each row: (rows) int64. The scores are already over their temperature."""
    limited = (top_k < scores.shape[1]) | (top_p < 1)
    drawn = torch.empty(len(scores), dtype=torch.int64)
    if limited.any():
        chances, tokens = likeliest(scores[limited], top_k[limited], top_p[limited])
        drawn[limited] = tokens.gather(1, _places(chances)).squeeze(1)
    if not limited.all():
        drawn[~limited] = _places(scores[~limited].softmax(-1)).squeeze(1)
    return drawn


def likeliest(scores: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What may be drawn, the likeliest first: chances, which need not sum to 1, and tokens, both (rows, most)."""
    values, tokens = scores.topk(min(int(top_k.max()), scores.shape[1]))
    beyond = torch.arange(values.shape[1]) >= top_k[:, None]
    chances = values.masked_fill(beyond, -torch.inf).softmax(-1)
    before = chances.cumsum(-1) - chances
    return chances.masked_fill(before >= top_p[:, None], 0), tokens


def _places(chances: torch.Tensor) -> torch.Tensor:
    """One place of each row, by its chance: (rows, 1) int64. A place without a chance is never met."""
    heap = chances.double().cumsum(-1)
    return torch.searchsorted(heap, torch.rand(len(heap), 1, dtype=torch.float64) * heap[:, -1:], right=True)
