"""What is sent."""

from __future__ import annotations

import statistics

import pytest

from benchmarks.texts import BLOCK, COUNT, LENGTHS, text_set


@pytest.mark.parametrize("name", LENGTHS)
def test_texts_are_distinct_and_within_their_lengths(name):
    texts = text_set(name)
    words = [len(text.split()) for text in texts]
    assert len(set(texts)) == len(texts) == COUNT
    assert (min(words), max(words)) == LENGTHS[name]


@pytest.mark.parametrize("name", LENGTHS)
def test_every_block_has_the_same_work(name):
    words = [len(text.split()) for text in text_set(name)]
    means = {statistics.fmean(words[start : start + BLOCK]) for start in range(0, COUNT, BLOCK)}
    assert len(means) == 1


def test_texts_are_the_same_in_every_run():
    assert text_set("short") == text_set("short")
    assert text_set("short")[0] != text_set("mixed")[0]
