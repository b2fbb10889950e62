"""scripts/bench.sh as it is used: what it refuses, how it ends, and what is left when it does not."""

from __future__ import annotations

import json
import os
import signal

import pytest

from benchmarks import __main__ as command
from benchmarks import archive, machine, report
from benchmarks.figures import Standing
from benchmarks.processes import Failed


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Runs it on what stands in for building archives; its status."""
    monkeypatch.setattr(machine, "describe", dict)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup(1) it is ignored, and stays so

    def run(measure):
        monkeypatch.setattr(archive, "measure", measure)
        monkeypatch.setattr("sys.argv", ["bench", "archive", "--results", str(tmp_path)])
        return command.main()

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("stopper", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_in_good_order_and_a_second_does_not_disturb_that(bench, tmp_path, capsys, stopper):
    def measure(megabytes, rounds, results, say):
        results.extra["seconds"] = [1.5]
        try:
            os.kill(os.getpid(), stopper)
            pytest.fail("it goes on")
        finally:
            os.kill(os.getpid(), stopper)  # while servers are ended

    assert bench(measure) == 128 + stopper
    assert f"stopped by {stopper.name}" in capsys.readouterr().err
    [kept] = tmp_path.glob("*-archive-part.json")
    assert json.loads(kept.read_text())["extra"] == {"seconds": [1.5]}


def test_what_cannot_be_measured_is_told_in_one_line(bench, capsys):
    def measure(megabytes, rounds, results, say):
        raise Failed("for this reason")

    assert bench(measure) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: for this reason"


@pytest.mark.parametrize(("state", "status"), [("measured", 0), ("wrong", 1), ("failed", 1)])
def test_a_run_without_this_projects_own_figures_is_no_success(bench, monkeypatch, capsys, state, status):
    def measure(megabytes, rounds, results, say):
        results.stand(Standing("a task", "a peer", "failed", "it ended"))
        results.stand(Standing("a task", "ours", state, "for this reason"))

    monkeypatch.setattr(report, "write", lambda *_: [])
    assert bench(measure) == status
    assert ("error: ours has no figure at a task: for this reason" in capsys.readouterr().err) == bool(status)


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--rounds", "0", "a whole number of at least 1"),
        ("--rounds", "1.5", "a whole number of at least 1"),
        ("--seconds", "0", "a number of at least 0.1"),
        ("--open-seconds", "nan", "a number of at least 0.1"),
        ("--texts", "513", "a whole number from 1 to 512"),
        ("--requests", "99", "a whole number of at least 100"),
        ("--streams", "19", "a whole number of at least 20"),
        ("--megabytes", "-1", "a whole number of at least 1"),
    ],
)
def test_numbers_that_nothing_could_be_measured_with_are_refused(capsys, flag, value, expected):
    with pytest.raises(SystemExit, match="2"):
        command.arguments(["archive", flag, value])
    assert f"argument {flag}: expected {expected}" in capsys.readouterr().err


def test_weights_have_the_size_that_was_asked_for(tmp_path):
    archive.write_model(tmp_path / "model", 3)
    assert 3_000_000 < (tmp_path / "model" / "model.safetensors").stat().st_size < 3_000_200
