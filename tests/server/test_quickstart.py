"""The README's first command, and the model that it serves."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from pathlib import Path

import psutil
import pytest
import requests

from serving.ports import free_ports
from tests.support import frames, worker

ROOT = Path(__file__).resolve().parent.parent.parent
RECIPE = ROOT / "recipes" / "sentiment"


def quickstart(*arguments) -> subprocess.Popen[str]:
    command = [ROOT / "scripts" / "quickstart.sh", *map(str, arguments)]
    return subprocess.Popen(command, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.server
def test_once():
    process = quickstart("--once", "--port-base", free_ports(5))
    shown, progress = process.communicate(timeout=600)
    assert process.returncode == 0, progress
    answers = [json.loads(line) for line in shown.splitlines() if line.startswith("{")]
    assert [answer["label"] for answer in answers] == ["POSITIVE", "NEGATIVE", "NEGATIVE"]
    assert shown.count("$ curl") == 3
    assert "building" in progress and "ready after" in progress


@pytest.mark.server
def test_it_serves_until_ctrl_c():
    base = free_ports(5)
    process = quickstart("--port-base", base)
    assert process.stderr is not None
    family: list[psutil.Process] = []
    for line in process.stderr:
        if line.startswith("serving until Ctrl-C"):
            family = psutil.Process(process.pid).children(recursive=True)
            response = requests.post(
                f"http://127.0.0.1:{base}/predictions/sentiment", json={"text": "a joy"}, timeout=30
            )
            assert response.json()["label"] == "POSITIVE"
            process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    _, left = psutil.wait_procs(family, timeout=10)
    assert family and not left


@pytest.mark.server
def test_a_taken_port_is_one_sentence():
    base = free_ports(5)
    with socket.create_server(("127.0.0.1", base)):
        process = quickstart("--once", "--port-base", base)
        _, progress = process.communicate(timeout=600)
    assert process.returncode == 1
    assert progress.splitlines()[-1].startswith(f"error: port {base} on 127.0.0.1 cannot be used")


@pytest.mark.server
def test_a_failed_load_is_one_sentence(tmp_path, monkeypatch):
    """The archive is replaced behind the quickstart's back by one whose model does not load."""
    from serving import quickstart as program
    from tests.support.archives import build

    built = build(str(RECIPE), "--model-name", "wrong", "--set", "handler.max_tokens=100000", "--force")
    assert built.returncode == 0, built.stderr
    monkeypatch.setattr(program, "NAME", "wrong")
    monkeypatch.setattr(program, "LOG", tmp_path / "log")
    monkeypatch.setattr(program, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # as scripts/quickstart.sh does
    try:
        with pytest.raises(program.Failed, match=r"handler\.max_tokens is 100000"):
            base = free_ports(5)
            with program.server(base) as process:
                program.wait_until_ready(process, base)
        assert process.poll() is not None
    finally:
        Path(built.stdout.strip()).unlink()


def test_the_embedded_model_is_right_on_sentences_it_never_saw(tmp_path):
    """At least 17 in 20 of the held-out half, through the handler."""
    assert (RECIPE / "model" / "model.safetensors").stat().st_size <= 4_000_000
    (tmp_path / "model").symlink_to(RECIPE / "model")
    service = worker.start(tmp_path, task="text-classification")
    rows = [line.split("\t") for line in (RECIPE / "evaluation.tsv").read_text().splitlines()[1:]]
    held_out = [(label, text) for split, label, _, text in rows if split == "test"]
    document = {"texts": [text for _, text in held_out]}
    [response] = frames.predict(service, [frames.post(json.dumps(document).encode())])
    found = [prediction["label"] for prediction in json.loads(response.body)["predictions"]]
    right = sum(label == guess for (label, _), guess in zip(held_out, found, strict=True))
    assert len(held_out) >= 100 and right / len(held_out) >= 0.85
