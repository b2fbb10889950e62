"""Taking tokens: what may be drawn, and how often, is what transformers' own processors leave over."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.continuous_batching.requests import RequestState

from handler.generation import sampling
from handler.generation.sampling import NO_TOKEN, Sampler, Sampling, likeliest

ROWS, WORDS = 6, 50
CPU = torch.device("cpu")


@pytest.fixture
def scores():
    torch.manual_seed(3)
    return torch.randn(ROWS, WORDS) * 3


@pytest.fixture(params=["by some", "by all"])
def way(request, monkeypatch):
    """As on a CPU, and as in a CUDA graph."""
    if request.param == "by all":
        monkeypatch.setattr(sampling, "_drawn_by_some", sampling._drawn_by_all)


def wanted(scores, temperature, top_k, top_p, min_p=0.0):
    """The probabilities that `generate` draws from."""
    made = LogitsProcessorList(
        [TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k), TopPLogitsWarper(top_p)]
        + [MinPLogitsWarper(min_p)] * (min_p > 0)
    )
    return made(torch.zeros(ROWS, 1, dtype=torch.int64), scores).softmax(-1)


def state(asked, name="a", given=(), said=()):
    made = RequestState(name, [*given], generated_tokens=[*said], logit_processor_kwargs={"sampling": asked})
    return SimpleNamespace(state=made, has_new_token=True)


def take(sampler, scores, requests):
    """The tokens of one step, in the engine's own tensors: three rows of it are other requests'."""
    table = torch.zeros(sampler.tensors_required, len(scores) + 3, dtype=torch.int32)
    sampler.fill_defaults(table[:, :1])
    sampler.prepare_tensor_args(requests, table)
    assert sampler(None, scores, table[:, : len(scores)]) is scores
    output = torch.zeros(1, len(scores) + 3, dtype=torch.int32)
    sampler.write(scores, output)
    return output[0, : len(scores)]


def taken(scores, *asked, **more):
    sampler = Sampler(WORDS, ROWS, CPU)
    return take(sampler, scores, [state(one, str(index), **more) for index, one in enumerate(asked)])


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [2, 7, WORDS])
@pytest.mark.parametrize("top_p", [0.05, 0.6, 0.95])
@pytest.mark.parametrize("min_p", [0.0, 0.3])
def test_what_may_be_drawn_is_what_transformers_leaves(scores, temperature, top_k, top_p, min_p):
    limits = torch.full((ROWS,), top_k), torch.full((ROWS,), top_p), torch.full((ROWS,), min_p)
    for most in (top_k, WORDS):
        chances, tokens = likeliest(scores / temperature, *limits, most)
        found = torch.zeros_like(scores).scatter(1, tokens, chances / chances.sum(-1, keepdim=True))
        torch.testing.assert_close(found, wanted(scores, temperature, top_k, top_p, min_p), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"), [(WORDS, 1.0, 0.0), (5, 1.0, 0.0), (WORDS, 0.7, 0.1), (9, 0.8, 0)]
)
def test_it_is_drawn_as_often_as_it_is_likely(scores, way, top_k, top_p, min_p):
    asked = [
        Sampling(temperature=1.5, top_k=top_k, top_p=top_p, min_p=min_p, random=random.Random(row))
        for row in range(ROWS)
    ]
    counts = torch.zeros_like(scores)
    draws = 4000
    sampler, requests = Sampler(WORDS, ROWS, CPU), [state(one, str(row)) for row, one in enumerate(asked)]
    for _ in range(draws):
        counts[torch.arange(ROWS), take(sampler, scores, requests)] += 1
    expected = wanted(scores, 1.5, top_k, top_p, min_p)
    assert not counts[expected == 0].any()
    assert (counts / draws - expected).abs().max() < 0.04  # five times the deviation of the likeliest


def test_greedy_rows_stay_as_they_are_among_others(scores, way):
    draws = Sampling(top_k=WORDS, temperature=2.0)
    for _ in range(20):
        found = taken(scores, *[draws, Sampling()] * (ROWS // 2))
        assert torch.equal(found[1::2], scores.argmax(-1)[1::2])


def test_rows_with_limits_of_their_own_share_a_step(scores, way):
    limits = [{"top_k": 2}, {"top_k": WORDS, "top_p": 0.01}, {"top_k": 3, "top_p": 0.5}, {"top_k": WORDS}]
    for _ in range(50):
        found = taken(scores[:4], *(Sampling(**one) for one in limits))
        assert found[0] in scores[0].topk(2).indices and found[1] == scores[1].argmax()
        assert found[2] in scores[2].topk(3).indices


def test_a_seed_draws_the_same_whoever_shares_the_step(scores, way):
    def drawn(*beside):
        one = Sampling(top_k=WORDS, temperature=3.0, random=random.Random(7))
        sampler = Sampler(WORDS, ROWS, CPU)
        requests = [state(each, str(index)) for index, each in enumerate((*beside, one))]
        rows = [*range(1, len(beside) + 1), 0]
        return [int(take(sampler, scores[rows], requests)[-1]) for _ in range(30)]

    alone = drawn()
    assert drawn(Sampling(top_k=5), Sampling()) == alone == drawn(Sampling(top_k=WORDS, top_p=0.5, repetition=2.0))
    assert len(set(alone)) > 5


def test_a_row_without_numbers_takes_no_token(scores, way):
    scores[1, 3], scores[2, 4], scores[3] = torch.nan, torch.inf, -torch.inf
    drawn = taken(scores, *[Sampling(top_k=WORDS)] * ROWS)
    greedy = taken(scores, *[Sampling()] * ROWS)
    for found in (drawn, greedy):
        assert (found == NO_TOKEN).tolist() == [False, True, True, True, False, False]
    assert torch.equal(greedy[[0, 4, 5]], scores.argmax(-1)[[0, 4, 5]].int())


@pytest.mark.parametrize("penalty", [0.5, 1.3, 5.0])
def test_repetition_is_what_transformers_makes_of_it(scores, penalty):
    given, said = [3, 3, 8], [5, 9, 9]
    ids = torch.tensor([given + said])
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, scores[:1].clone())
    best = int(scores[0].argmax())
    for prompt, answer in ((given, said), ([best], [5]), ([5], [best])):
        ids = torch.tensor([prompt + answer])
        expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, scores[:1].clone())
        found = taken(scores[:1], Sampling(repetition=penalty), given=prompt, said=answer)
        assert int(found) == int(expected.argmax())


def test_presence_and_frequency_count_what_was_said_only():
    scores = torch.tensor([[3.0, 2.5, 2.0, 0.0]])

    def found(presence, frequency, given, said):
        sampler = Sampler(4, 1, CPU)
        asked = Sampling(presence=presence, frequency=frequency)
        return int(take(sampler, scores, [state(asked, given=given, said=said)]))

    assert found(2.0, 2.0, [0, 0, 0], []) == 0  # of the prompt nothing counts
    assert found(0.4, 0.0, [], [0]) == 0 and found(0.6, 0.0, [], [0]) == 1
    assert found(0.6, 0.0, [], [0, 0, 0]) == 1  # once is as often
    assert found(0.0, 0.4, [], [0]) == 0 and found(0.0, 0.4, [], [0, 0]) == 1
    assert found(-2.0, 0.0, [], [3]) == 0 and found(0.0, -2.0, [], [3, 3]) == 3


def test_what_is_said_is_followed_step_by_step(scores):
    """Through more requests than there are rows, and for one that the engine has put off and begun again."""
    sampler, asked = Sampler(WORDS, 2, CPU), Sampling(frequency=1.5, presence=0.5, repetition=1.2)
    given = [[1, 2], [3], [2, 40]]
    said: list[list[int]] = [[], [], []]
    for step in range(24):
        pair = [(step + shift) % 3 for shift in range(2)]
        requests = [state(asked, str(one), given[one], said[one]) for one in pair]
        if step % 5 == 4:
            requests[0].state = requests[0].state.create_equivalent_initial_request()
        found = take(sampler, scores[pair], requests).tolist()
        alone = [
            int(take(Sampler(WORDS, 1, CPU), scores[[one]], [state(asked, "x", given[one], said[one])]))
            for one in pair
        ]
        assert found == alone
        for one, token in zip(pair, found, strict=True):
            said[one].append(token)
    assert all(len(set(tokens)) > 3 for tokens in said)


def test_who_asks_for_nothing_pays_for_nothing(scores):
    sampler = Sampler(WORDS, ROWS, CPU)
    take(sampler, scores, [state(Sampling(), str(row)) for row in range(ROWS)])
    assert not any(sampler.kind) and not len(sampler._said._counts) + len(sampler._numbers)
    asked = replace(Sampling(), presence=0.1)
    take(sampler, scores, [state(asked, "a"), *(state(Sampling(top_k=2), str(row)) for row in range(ROWS - 1))])
    assert sampler.kind == (True, False, True, False) and sampler._said._counts.shape == (ROWS, WORDS)


def test_what_was_taken_is_told_to_who_wants_it(scores, way):
    """Also where the engine puts a request off, and begins it again."""
    sampler, asked = Sampler(WORDS, ROWS, CPU), [Sampling(tops=2), Sampling(), Sampling(top_k=WORDS, tops=0)]
    requests = [state(one, str(row)) for row, one in enumerate(asked)]
    for step in range(3):
        tokens = take(sampler, scores[:3], requests).tolist()
        sampler.tell([*tokens, 0])  # the last is of a request whose prompt is still being read
        wanted = scores[:3].log_softmax(-1)
        for one, row in ((asked[0], 0), (asked[2], 2)):
            assert len(one.told) == step + 1 and one.told[-1].token == tokens[row]
            assert one.told[-1].logprob == pytest.approx(float(wanted[row, tokens[row]]), abs=1e-5)
        likeliest_two = wanted[0].topk(2)
        assert [token for token, _ in asked[0].told[-1].tops] == likeliest_two.indices.tolist()
        assert [value for _, value in asked[0].told[-1].tops] == pytest.approx(likeliest_two.values.tolist())
        assert not asked[1].told and not asked[2].told[-1].tops
        requests[0].state = requests[0].state.create_equivalent_initial_request()
