"""From a small run to its tables."""

from __future__ import annotations

import pytest

from benchmarks import figures, goals, overhead, report
from benchmarks.__main__ import VERBS
from benchmarks.figures import Load, Measurement, Results, Standing
from benchmarks.processes import Failed

TASK = "text-classification"
RATES = {"ceiling": 100.0, "ours": 92.0, "triton": 41.0, "fastapi-batched": 50.0}


def run() -> Results:
    machine = dict.fromkeys(("cpu", "memory_gib", "load_at_start", "java", "wrk", "python", "commit"), "?")
    found = Results("encoder", "2026-01-02", {**machine, "cores": 2, "packages": {"torch": "1"}}, {"rounds": 2})
    for name, rate in RATES.items():
        found.candidates[name] = {"about": f"what {name} is", "repairs": [f"{name} was repaired"]}
        found.stand(Standing(TASK, name, difference=1e-7, knee=40.0))
        for number in range(2):
            for cell in ("mixed@1", "mixed@16", "mixed@64", "short@64", "long@64", "open@50%", "open@80%"):
                load = Load(rate + number, 10.0 + (name == "ours"), 12, 13, 50.0, 100, 0)
                found.measurements.append(Measurement(TASK, name, cell, number, load))
    return found


def test_a_run_is_read_as_it_was_written(tmp_path):
    found = run()
    found.write(tmp_path / "a.json")
    assert figures.read(tmp_path / "a.json") == found


def test_the_tables_have_medians_ratios_and_verdicts():
    told = report.markdown(run(), None)
    assert "| ours |" + " 92.5 (92.0 to 93.0) |" * 3 + " 0.92 (0.92 to 0.92) |" in told
    assert "- **triton**: what triton is\n  - repaired: triton was repaired" in told
    verdicts = {outcome.words: outcome.verdict for outcome in goals.encoder(run())}
    assert verdicts[f"{TASK}: 64 connections, mixed, over the ceiling"] == "met"
    assert verdicts[f"{TASK}: 64 connections, mixed, over triton"] == "met"
    assert verdicts[f"{TASK}: 64 connections, mixed, over fastapi-batched"] == "missed by 0.17"
    assert verdicts[f"{TASK}: one connection, median over the bare call's"] == "met"
    assert verdicts[f"{TASK}: p99 at 80 % of the knee over one connection's median"] == "missed by 0.55"


def test_a_disturbed_turn_is_told():
    found = run()
    assert "Others used" not in report.markdown(found, None)
    found.extra["disturbed"] = [f"{TASK}, round 1, triton: 1.2 cores"]
    assert "Others used the machine as these turns began: text-classification, round 1, triton" in report.markdown(
        found, None
    )


@pytest.mark.parametrize("state", ["wrong", "skipped", "failed"])
def test_who_is_not_measured_has_no_figure_and_says_why(state):
    found = run()
    found.stand(Standing(TASK, "triton", state, "for this reason"))
    told = report.markdown(found, None)
    assert "| triton | for this reason |  |" in told and "41.5" not in told
    over_triton = [outcome for outcome in goals.encoder(found) if "over triton" in outcome.words]
    assert [outcome.verdict for outcome in over_triton] == ["not measured"]


def test_only_what_stands_between_the_markers_is_rewritten():
    page = "by hand\n<!-- memory -->\nm\n<!-- /memory -->\n<!-- encoder -->\nold\n<!-- /encoder -->\nby hand too\n"
    told = report.between_markers(page, "encoder", "new \\1\n")
    assert told == page.replace("old\n", "new \\1\n")
    with pytest.raises(ValueError, match="no <!-- archive -->"):
        report.between_markers(page, "archive", "new")


def test_the_readme_has_a_place_for_every_verb():
    page = (report.CHART.parent / "README.md").read_text()
    for verb in VERBS:
        assert f"scripts/bench.sh {verb} " in page or verb == "all"
        if verb != "all":
            report.between_markers(page, verb, "")


def test_a_server_that_failed_once_has_no_figure_and_says_why(monkeypatch, tmp_path):
    def take(candidate, number, seconds, results, say):
        if (candidate.name, number) == ("stock", 0):
            raise Failed("it ended")
        for connections in overhead.CONNECTIONS:
            cell, load = f"empty@{connections}", Load(100.0, 1, 1, 1, 2, 600, 0)
            results.measurements.append(Measurement("nothing", candidate.name, cell, number, load))

    monkeypatch.setattr(overhead, "BENCH", tmp_path)
    monkeypatch.setattr(overhead.Stock, "prepare", lambda self, job: None)
    monkeypatch.setattr(overhead, "_take", take)
    found = Results("overhead", "2026-01-02", run().machine, {})
    overhead.measure(2, 1, found, lambda line: None)
    told = report.markdown(found, None)
    assert "| stock | it ended |  |" in told and "over stock TorchServe | ≥ 3 | - | not measured |" in told
    assert found.values("nothing", "ours", "empty@64") == {0: 100.0, 1: 100.0}
