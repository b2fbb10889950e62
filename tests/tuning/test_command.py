"""scripts/tune.sh as it is used: its errors, and whole runs with the real server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from handler.config import read_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def temp(tmp_path_factory):
    """Sockets lie in it, and their paths may not be longer than 107 bytes."""
    return tmp_path_factory.mktemp("u")


def start(temp, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temp)}
    line = [sys.executable, "-P", "-m", "tuning", *map(str, arguments)]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def left(temp):
    """Processes that work in the directory, and what lies in it."""
    lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [line for line in lines if any(str(temp) in word for word in line)], list(temp.iterdir())


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["recipes/nothing"], "recipes/nothing: there is no such recipe directory"),
        ([ROOT / "recipes/sentiment", "--texts", os.devnull], "/dev/null: holds no text"),
        ([ROOT / "recipes/sentiment", "--set", "batchSize=0"], "batchSize: 0: expected"),
        ([ROOT / "recipes/sentiment", "--task", "nothing"], "handler.task"),
    ],
)
def test_what_cannot_be_measured_is_told(temp, arguments, why):
    run = start(temp, *arguments)
    out, said = run.communicate(timeout=60)
    assert (run.returncode, out, left(temp)) == (1, "", ([], [])) and why in said and "Traceback" not in said


@pytest.mark.parametrize("arguments", [[], ["r", "--connections", "0"], ["r", "--seconds", "x"], ["--nothing"]])
def test_wrong_usage(temp, arguments):
    run = start(temp, *arguments)
    out, said = run.communicate(timeout=60)
    assert (run.returncode, out) == (2, "") and "usage" in said


def test_a_text_that_the_handler_refuses_ends_the_run(temp, tiny):
    model = tiny["text-classification"] / "model"
    limit = "handler.max_text_bytes=10"
    run = start(temp, "--model", model, "--task", "text-classification", "--set", limit, "--in-process-only")
    out, said = run.communicate(timeout=100)
    assert (run.returncode, out, left(temp)) == (1, "", ([], []))
    assert "error: the handler answers 413" in said


@pytest.mark.server
@pytest.mark.slow
def test_a_whole_run(temp, tiny):
    model = tiny["feature-extraction"] / "model"
    run = start(
        temp,
        "--model",
        model,
        "--task",
        "feature-extraction",
        "--set",
        "maxBatchDelay=3",
        "--quick",
        "--seconds",
        1,
    )
    out, said = run.communicate(timeout=240)
    assert run.returncode == 0, said
    config = read_config(yaml.safe_load(out))
    assert (config.handler.task, config.server.maxBatchDelay, config.server.batchSize) == (
        "feature-extraction",
        3,
        64,
    )
    assert config.server.minWorkers == config.server.maxWorkers >= 1
    assert config.handler.threads and config.handler.lanes and config.handler.max_batch_tokens
    assert out.startswith("# Recommended by scripts/tune.sh for model 1.0") and "requests/s" in said
    assert "void" not in said
    assert left(temp) == ([], [])


@pytest.mark.server
@pytest.mark.slow
def test_a_run_that_is_cut_off_leaves_nothing(temp, tiny):
    model = tiny["text-classification"] / "model"
    run = start(temp, "--model", model, "--task", "text-classification", "--quick")
    assert run.stderr is not None
    while "starting TorchServe" not in run.stderr.readline():
        assert run.poll() is None
    time.sleep(2)  # Java is up, its workers are not ready
    assert left(temp)[0]
    run.send_signal(signal.SIGTERM)
    out, said = run.communicate(timeout=60)
    assert (run.returncode, out, left(temp)) == (128 + signal.SIGTERM, "", ([], [])), said
    assert "stopped by SIGTERM" in said
