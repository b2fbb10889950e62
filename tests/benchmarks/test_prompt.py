"""The pieces of scripts/bench.sh prompt, without its models."""

from __future__ import annotations

import pytest
import torch

from benchmarks import goals, report
from benchmarks.figures import Results
from benchmarks.prompt.inside import least_cosine
from benchmarks.prompt.models import DEEP, WIDE, prompts

EXTRA = {
    "prompts_per_second": {"seed": [0.5, 0.5], "ours": [2.0, 3.0], "ours, compact": [2.5, 3.0]},
    "large": {"ours": [0.08, 0.06, 0.12, 0.08], "seed": [2.8, 3.6], "bytes": WIDE.answer_bytes},
    "exactness": {
        "float32_computed": 0.0,
        "float32_filled": 2e-6,
        "bfloat16": 0.99995,
        "bfloat16_token": 0.9998,
        "bfloat16_computed": 1.0,
        "diffusers_bfloat16": 0.9996,
    },
    "saving": {
        name: {"bytes_read": 1e9, "memory_bytes": 1e9, "load_seconds": 1.0, "forward_seconds": [2.0, 2.1]}
        for name in ("whole", "needed")
    },
    "in_flight": {name: {"rest": 1e9, "most": [2e9, 3e9]} for name in ("worker", "server")} | {"at_once": 8},
}


def results(**extra):
    return Results("prompt", "2026-01-01", {}, {}, extra={**EXTRA, **extra})


def test_a_wide_answer_has_the_real_models_size():
    assert WIDE.answer_bytes == 512 * 15_360 * 2
    assert (DEEP.depth, DEEP.layers) == (40, (10, 20, 30)) and DEEP.hidden >= 1024


def test_prompts_have_10_to_200_words_and_differ():
    found = prompts(64)
    lengths = sorted(len(prompt.split()) for prompt in found)
    assert len(set(found)) == 64 and (lengths[0], lengths[-1]) == (8, 196)
    assert found == prompts(64)


def test_the_least_cosine():
    near, far = torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[1.0, 1.0], [3.0, 4.0]])
    assert least_cosine([near], [near]) == pytest.approx(1)
    assert least_cosine([near, near], [near, far]) == pytest.approx(0.5**0.5)
    assert least_cosine([near], [far], whole=True) == pytest.approx(26 / (26**0.5 * 27**0.5))


def test_goals_are_met_and_missed():
    verdicts = {outcome.words: outcome.verdict for outcome in goals.prompt(results())}
    assert set(verdicts.values()) == {"met"}
    slow = results(prompts_per_second={"seed": [1.0], "ours": [3.0]}, large={**EXTRA["large"], "ours": [0.2, 0.2]})
    missed = [outcome.verdict for outcome in goals.prompt(slow)]
    assert missed[0] == "missed by 1.00" and missed[1] == "missed by 100.00 ms" and missed[2].startswith("missed")


def test_a_large_answer_is_held_against_the_seeds_of_the_same_round():
    large = {"ours": [0.05, 0.25, 0.1, 0.3, 0.2, 0.4], "seed": [4.0, 12.0], "bytes": 1}
    [over] = [one for one in goals.prompt(results(large=large)) if one.words.startswith("the same")]
    assert over.values == [pytest.approx(40), pytest.approx(40)]


def test_the_report_tells_all_of_it():
    told = "\n".join(report._prompt(results()))
    for words in ("ours, compact", "15.7 MB", "8 such answers", "0.999800", "bytes read"):
        assert words in told
