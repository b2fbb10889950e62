"""The command line against a real TorchServe."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client import ManagementClient
from client.__main__ import main
from tests.support.torchserve import TorchServe

ROOT = Path(__file__).parents[2]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(server: TorchServe, management: ManagementClient, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process; its exit status, standard output and standard error."""

    def run(*argv: str) -> tuple[int, str, str]:
        status = main([*argv, "--port-base", str(server.port_base)])
        return (status, *capsys.readouterr())

    return run


def body(answer: tuple[int, str, str]) -> Any:
    """What the echo model was sent, by a command that succeeded in silence."""
    assert (answer[0], answer[2]) == (0, "")
    return json.loads(answer[1])["body"]


def test_predict(run: Run) -> None:
    assert body(run("predict", "echo", "hi")) == {"text": "hi"}
    assert body(run("predict", "echo", "hi", "ho")) == {"texts": ["hi", "ho"]}
    assert body(run("predict", "echo", "--json", '{"a": [1]}')) == {"a": [1]}
    assert body(run("predict", "echo", "hi", "--param", "top_k=3", "--param", "mode=sum", "ho")) == {
        "texts": ["hi", "ho"],
        "top_k": 3,
        "mode": "sum",
    }
    assert json.loads(run("predict", "echo", "hi", "--version", "2.0")[1])["version"] == "2.0"


def test_predict_reads_files_and_standard_input(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "texts").write_text("été\n\n日本\n")
    (tmp_path / "document").write_text('{"a": "日本"}')
    assert body(run("predict", "echo", "--file", str(tmp_path / "texts"))) == {"texts": ["été", "日本"]}
    assert body(run("predict", "echo", "--json", f"@{tmp_path / 'document'}")) == {"a": "日本"}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("été".encode())))
    assert body(run("predict", "echo", "--file", "-")) == {"texts": ["été"]}


def test_a_refusal_is_one_line(run: Run) -> None:
    status, out, err = run("predict", "echo", "--json", '{"refuse": 422}')
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "answered 422 InvalidRequest: 'text' is too long: 600 > 512" in err


def test_models(run: Run) -> None:
    status, out, _ = run("models")
    assert status == 0
    head, *rows = (line.split() for line in out.splitlines())
    assert head[:5] == ["NAME", "VERSION", "READY", "MIN", "MAX"]
    assert [row[:5] for row in rows] == [["echo", "1.0", "1", "1", "1"], ["echo", "2.0", "1", "1", "1"]]
    listed = json.loads(run("models", "--json")[1])
    assert [(model["version"], len(model["workers"])) for model in listed] == [("1.0", 1), ("2.0", 1)]


def test_ready_and_scale_show_progress_beside_the_answer(run: Run) -> None:
    status, out, err = run("ready", "echo")
    assert (status, json.loads(out)["name"], err) == (0, "echo", "echo: 1 of 1 workers ready\n")
    run("register", "settled.mar")
    status, out, err = run("scale", "settled", "--min-worker", "2", "--max-worker", "3")
    assert (status, json.loads(out)["max_workers"]) == (0, 3)
    assert err.splitlines()[-1] == "settled: 2 of 2 workers ready"
    status, out, err = run("scale", "settled", "--min-worker", "0")
    assert (status, json.loads(out)["workers"]) == (0, [])
    status, _, err = run("ready", "settled")
    assert (status, err.splitlines()[-1][:6]) == (1, "error:")
    assert "has no workers" in err


def test_register_set_default_unregister(run: Run) -> None:
    status, out, err = run("register", "settled.mar", "--name", "mine", "--response-timeout", "9")
    assert (status, json.loads(out)["name"]) == (0, "mine")
    assert "response_timeout is 30, not 9" in err
    assert run("register", "echo2.mar", "--name", "mine", "--initial-workers", "0")[0] == 0
    assert run("unregister", "mine", "--version", "1.0")[0] == 1
    assert run("set-default", "mine", "2.0")[0] == 0
    assert run("unregister", "mine", "--version", "1.0")[0] == 0
    assert run("unregister", "mine")[0] == 0
    assert "mine" not in run("models")[1]


def test_metrics(run: Run) -> None:
    run("predict", "echo", "hi")
    status, out, err = run("metrics", "ts_inference_requests_total")
    assert (status, err) == (0, "")
    assert {sample["name"] for sample in json.loads(out)} == {"ts_inference_requests_total"}
    status, out, err = run("metrics", "nobody")
    assert (status, json.loads(out)) == (0, [])
    assert "no samples" in err


def start(server: TorchServe, *argv: str) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    command = [sys.executable, "-m", "client", *argv, "--port-base", str(server.port_base)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in a shell's background has SIGINT ignored, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def test_an_interrupt_ends_with_130_and_no_traceback(server: TorchServe) -> None:
    with start(server, "ready", "echo", "--workers", "99") as waiting:
        assert waiting.stderr is not None
        assert waiting.stderr.readline() == "echo: 1 of 99 workers ready\n"
        os.kill(waiting.pid, signal.SIGINT)
        out, err = waiting.communicate(timeout=60)
    assert (waiting.returncode, out, err) == (130, "", "")


def test_a_reader_that_has_seen_enough(server: TorchServe) -> None:
    with start(server, "models", "--json") as writing:
        assert writing.stdout is not None and writing.stderr is not None
        writing.stdout.close()
        assert writing.wait(60) == 1
        assert writing.stderr.read() == ""
