"""Drawing tokens: what may be drawn, and how often, is what transformers' own processors leave over."""

from __future__ import annotations

import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from handler.generation.sampling import choose, likeliest

ROWS, WORDS = 6, 50


@pytest.fixture
def scores():
    torch.manual_seed(3)
    return torch.randn(ROWS, WORDS) * 3


def wanted(scores, temperature, top_k, top_p):
    """The probabilities that `generate` draws from."""
    made = LogitsProcessorList(
        [TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k), TopPLogitsWarper(top_p)]
    )
    return made(torch.zeros(ROWS, 1, dtype=torch.int64), scores).softmax(-1)


def arguments(temperature, top_k, top_p):
    return (
        torch.full((ROWS,), float(temperature)),
        torch.full((ROWS,), top_k, dtype=torch.int32),
        torch.full((ROWS,), float(top_p)),
    )


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [2, 7, WORDS])
@pytest.mark.parametrize("top_p", [0.05, 0.6, 0.95])
def test_what_may_be_drawn_is_what_transformers_leaves(scores, temperature, top_k, top_p):
    _, k, p = arguments(temperature, top_k, top_p)
    chances, tokens = likeliest(scores / temperature, k, p)
    found = torch.zeros_like(scores).scatter(1, tokens, chances / chances.sum(-1, keepdim=True))
    torch.testing.assert_close(found, wanted(scores, temperature, top_k, top_p), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("top_k", "top_p"), [(WORDS, 1.0), (5, 1.0), (WORDS, 0.7), (9, 0.8)])
def test_it_is_drawn_as_often_as_it_is_likely(scores, top_k, top_p):
    torch.manual_seed(11)
    counts = torch.zeros_like(scores)
    draws = 4000
    for _ in range(draws):
        taken = choose(scores, *arguments(1.5, top_k, top_p)).argmax(-1)
        counts[torch.arange(ROWS), taken] += 1
    expected = wanted(scores, 1.5, top_k, top_p)
    assert not counts[expected == 0].any()
    assert (counts / draws - expected).abs().max() < 0.04  # five times the deviation of the likeliest


def test_greedy_rows_stay_as_they_are_among_others(scores):
    temperature, top_k, top_p = arguments(1, 1, 1)
    assert choose(scores, temperature, top_k, top_p) is scores
    top_k[1::2] = WORDS
    taken = choose(scores, temperature, top_k, top_p)
    assert torch.equal(taken[::2], scores[::2])
    assert torch.isinf(taken[1::2]).sum(-1).tolist() == [1] * (ROWS // 2)


def test_rows_with_limits_of_their_own_share_a_step(scores):
    temperature, top_k, top_p = arguments(1, WORDS, 1)
    top_k[0], top_p[1], top_k[2], top_p[2] = 2, 0.01, 3, 0.5
    for _ in range(50):
        taken = choose(scores, temperature, top_k, top_p).argmax(-1)
        assert taken[0] in scores[0].topk(2).indices and taken[1] == scores[1].argmax()
        assert taken[2] in scores[2].topk(3).indices
