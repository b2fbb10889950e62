"""From measured tables to a recommendation, and the recommendation as a file."""

from __future__ import annotations

import pytest
import yaml

from handler.config import read_config
from tuning import report, settings
from tuning.choosing import Seen, Served, choose_inside, choose_outside, middle
from tuning.errors import CannotTune
from tuning.in_process import InProcess
from tuning.settings import Inside, Outside


def served(rate, alone_ms):
    return Served(Seen(rate, 0.1, 0.2), Seen(100, alone_ms / 1e3, 0.02))


ONE, TWO, FOUR = Outside(1, 4, 64), Outside(2, 2, 64), Outside(4, 1, 64)


def test_the_smallest_budget_within_3_percent():
    table = {Inside(256, 1): 96.9, Inside(512, 1): 97.5, Inside(512, 2): 97.1, Inside(2048, 2): 100.0}
    assert choose_inside(table) == Inside(512, 1)
    assert choose_inside({**table, Inside(256, 2): 97.0}) == Inside(256, 2)


def test_the_highest_rate_under_load():
    assert choose_outside({ONE: served(90, 5), TWO: served(100, 10), FOUR: "status 503"}) == TWO


def test_a_lone_request_decides_between_rates_that_are_near():
    assert choose_outside({ONE: served(96, 8), TWO: served(100, 10), FOUR: served(95.5, 7)}) == FOUR
    assert choose_outside({ONE: served(96, 8.5), TWO: served(100, 10)}) == TWO
    assert choose_outside({ONE: served(94, 2), TWO: served(100, 10)}) == TWO


def test_no_valid_setting_is_an_error_with_every_reason():
    with pytest.raises(CannotTune, match=r"workers 1.*status 503.*workers 2.*not ready"):
        choose_outside({ONE: "status 503", TWO: "not ready"})


def test_medians_are_of_each_figure():
    assert middle([Seen(1, 6, 7), Seen(2, 5, 9), Seen(9, 4, 8)]) == Seen(2, 5, 8)


@pytest.mark.parametrize("cores", [1, 2, 3, 8, 96])
@pytest.mark.parametrize("quick", [True, False])
def test_what_is_tried_fits_the_machine(cores, quick):
    candidates = settings.outsides(cores, 64, quick)
    assert all(each.workers * each.threads <= cores for each in candidates)
    assert {(1, cores), (cores, 1)} <= {(each.workers, each.threads) for each in candidates}
    for each in candidates:
        tried = settings.insides("cpu", each.threads, quick)
        assert len(tried) == len(set(tried)) and all(1 <= i.lanes <= min(64, each.threads) for i in tried)


def test_batches_larger_than_what_waits_are_not_tried():
    assert settings.batch_sizes(1, False) == [16]
    assert settings.batch_sizes(64, False) == [16, 64]
    assert settings.batch_sizes(1000, False) == [16, 64, 128]
    assert settings.batch_sizes(64, True) == [64]


def test_the_file_is_a_valid_configuration_with_the_chosen_settings_and_the_recipes_others():
    recipe = read_config({"maxBatchDelay": 7, "handler": {"task": "text-classification", "top_k": 2}})
    config = settings.outside_config(recipe, TWO, Inside(512, 2))
    written = report.document(config, ["one line", "two\nlines"])
    assert written.startswith("# one line\n# two\n# lines\nminWorkers: 2\n")
    read = read_config(yaml.safe_load(written))
    assert read == config
    assert (read.server.minWorkers, read.server.maxWorkers, read.server.batchSize) == (2, 2, 64)
    assert (read.handler.threads, read.handler.lanes, read.handler.max_batch_tokens) == (2, 2, 512)
    assert (read.server.maxBatchDelay, read.handler.top_k) == (7, 2)


def test_tables_show_what_was_chosen_and_what_is_void():
    inside = report.inside_table(InProcess(2, {Inside(256, 1): 50.0, Inside(256, 2): 99.0}, 1))
    assert " 50.0 " in inside and " 99.0*" in inside
    outside = report.outside_table({ONE: served(90, 5), TWO: "status 503\nmore"}, ONE)
    assert " 90.0*" in outside and "void: workers 2, threads 2, batchSize 64: status 503" in outside
