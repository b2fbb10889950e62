"""benchmarks/gpu from start to end, on the CPU, with small models and this machine's Java."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[2]
QUICK = [
    "--device",
    "cpu",
    "--small",
    "--models",
    "minilm",
    "--lengths",
    "short",
    "--texts",
    "8",
    "--seconds",
    "1",
]


def start(tmp_path, *arguments):
    line = [sys.executable, "-P", "-m", "benchmarks.gpu", "--output", str(tmp_path / "out"), *QUICK, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def short_path(tmp_path_factory):
    """Sockets lie in it, and their paths may not be longer than 107 bytes."""
    return tmp_path_factory.mktemp("g")


def positive(*values):
    return all(math.isfinite(value) and value > 0 for value in values)


@pytest.mark.slow
def test_a_whole_run(short_path):
    run = start(short_path, "--parts", "correctness,speed,latency")
    _, said = run.communicate(timeout=240)
    assert run.returncode == 0, said
    found = json.loads((short_path / "out" / "gpu.json").read_text())
    assert found["passed"] and not found["left_out"]
    assert [(each["dtype"], each["passed"]) for each in found["correctness"]] == [
        ("float32", True),
        ("bfloat16", True),
    ]
    [bare], [served], [latency] = found["bare"], found["served"], found["latency"]
    assert positive(bare["tokens_per_second"], bare["with_tokenizer"], *bare["by_budget"].values())
    assert positive(served["tokens_per_second"], served["of_bare"], served["shares"]["forward"])
    assert positive(latency["median_ms"], latency["bare_median_ms"], latency["shares"]["forward"])
    assert set(found["workers_on"]) == {"cpu"} and len(found["workers_on"]) == 3
    assert "| minilm | float32 | short, " in (short_path / "out" / "gpu.md").read_text()
    assert [path.name for path in short_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_generation_beside_transformers_own_server(short_path):
    run = start(short_path, "--parts", "generation")
    _, said = run.communicate(timeout=600)  # the first time it installs what that server needs
    assert run.returncode in (0, 1), said  # 1: forty streams are too few to judge growth by
    found = json.loads((short_path / "out" / "gpu.json").read_text())["generation"]
    assert [each["equal"] for each in found["greedy"]] == [16, 16, 16]
    assert {each["server"] for each in found["streams"]} == {"ours, transformers", "transformers serve"}
    assert positive(*(each["tokens_per_second"] for each in found["streams"]))
    assert found["leaks"][0]["held"]["HandlerCacheUsed"] == 0
    assert [path.name for path in short_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_a_run_that_is_cut_off_ends_what_it_started_and_keeps_what_it_had(short_path):
    run = start(short_path, "--parts", "correctness")
    assert run.stderr is not None
    while "starting TorchServe" not in run.stderr.readline():
        assert run.poll() is None
    time.sleep(2)  # Java is up, its workers are not ready
    family = psutil.Process(run.pid).children(recursive=True)
    assert any(process.name() == "java" for process in family)
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGTERM
    assert not psutil.wait_procs(family, timeout=5)[1]
    assert json.loads((short_path / "out" / "gpu.json").read_text())["passed"] is False
    assert [path.name for path in short_path.iterdir()] == ["out"]
