"""`archiver run`: an archive's own handler over a file, without a server."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from archiver import verify
from archiver.manifest import SUMS
from tests.support import archives, reference, tiny_models
from tests.support.rounds import whole

ROOT = archives.ROOT
TEXTS = ("the film was not good", "a wonderful story", "they sent another one")


def command(archive, requests, answers, *flags):
    return [
        *(sys.executable, "-m", "archiver", "run", str(archive)),
        *("--input", str(requests), "--output", str(answers), *flags),
    ]


def run(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command(*arguments), env=environment, capture_output=True, text=True, check=False)


def write(path: Path, documents) -> Path:
    path.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in documents))
    return path


def read(path: Path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    home = tmp_path_factory.mktemp("classifier")
    model = tiny_models.classifier(home / "model")
    return model, archives.build_model(home, "judge", model, "text-classification")


@pytest.fixture(scope="module")
def chatter(tmp_path_factory):
    home = tmp_path_factory.mktemp("chatter")
    model = tiny_models.chatter(home / "model")
    flags = ("--archive-format=no-archive", "--set=batchSize=4", "--set=handler.max_new_tokens=200")
    return model, archives.build_model(home, "chat", model, "text-generation", *flags)


def test_a_classifiers_file(classifier, tmp_path):
    model, archive = classifier
    requests = write(tmp_path / "in.jsonl", [{"text": TEXTS[0]}, "{", {"texts": list(TEXTS)}, "", {"text": 7}])
    ran = run(archive, requests, tmp_path / "out.jsonl")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == str(tmp_path / "out.jsonl") and "5 answers, 3 of them errors" in ran.stderr
    one, broken, three, empty, wrong = read(tmp_path / "out.jsonl")
    [scores] = reference.probabilities(model, [TEXTS[0]])
    assert one["probabilities"] == pytest.approx(list(scores), abs=1e-4)
    for answer, scores in zip(three["predictions"], reference.probabilities(model, TEXTS), strict=True):
        assert answer["probabilities"] == pytest.approx(list(scores), abs=1e-4)
    assert [answer["error"]["code"] for answer in (broken, empty, wrong)] == [400, 400, 422]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_vllm_answers_a_file_and_leaves_nothing(tmp_path, tmp_path_factory, monkeypatch):
    model = tiny_models.chatter(tmp_path / "model", hidden=128)  # heads of 32, its least
    scratch = tmp_path_factory.mktemp("s")  # short: vLLM's sockets lie there, and have paths of 107 bytes at most
    flags = ("--archive-format=no-archive", "--set=handler.engine=vllm", "--set=handler.max_new_tokens=200")
    settings = "--set=handler.vllm={enforce_eager: true, kv_cache_memory_bytes: 50000000, max_model_len: 512}"
    archive = archives.build_model(tmp_path, "chat", model, "text-generation", settings, *flags)
    requests = write(tmp_path / "in.jsonl", [{"prompt": text, "max_new_tokens": 8} for text in TEXTS])
    monkeypatch.setenv("TMPDIR", str(scratch))
    ran = run(archive, requests, tmp_path / "out.jsonl")
    assert ran.returncode == 0, ran.stderr
    wanted = [reference.generated(model, text, 8)[0] for text in TEXTS]
    assert [whole(answer["response"]) for answer in read(tmp_path / "out.jsonl")] == list(map(whole, wanted))
    assert not list(scratch.iterdir())


def test_a_generators_file_is_in_order_however_long_each_takes(chatter, tmp_path):
    model, archive = chatter
    asked = [(TEXTS[number % 3], 40 if number % 4 == 0 else 5) for number in range(24)]
    documents = [{"prompt": prompt, "max_new_tokens": new} for prompt, new in asked]
    requests = write(tmp_path / "in.jsonl", [*documents, {"prompt": "a", "stream": True}, {"prompt": 7}])
    ran = run(archive, requests, tmp_path / "out.jsonl")
    assert ran.returncode == 0, ran.stderr
    *answers, streamed, wrong = read(tmp_path / "out.jsonl")
    for (prompt, new), answer in zip(asked, answers, strict=True):
        text, size, count = reference.generated(model, prompt, new)
        assert whole(answer["response"]) == whole(text)
        assert (answer["input_token_count"], answer["output_token_count"]) == (size, count)
    assert streamed["error"]["code"] == 422 and wrong["error"]["code"] == 422


SLOW = """
import time

class Slow:
    def __init__(self, model, options, device):
        pass

    def run(self, texts):
        time.sleep(0.5)
        return [{"said": text} for text in texts]
"""


def test_a_run_whose_parent_was_killed_is_not_joined(tmp_path):
    """Its process answers one more request before it notices; nobody writes beside it, and nothing is lost."""
    recipe = tmp_path / "recipe"
    tiny_models.classifier(recipe / "model")
    (recipe / "slow_task.py").write_text(SLOW)
    (recipe / "model-config.yaml").write_text("batchSize: 1\nhandler: {task: 'slow_task:Slow', lanes: 1}\n")
    built = archives.build(str(recipe), "--export-path", str(tmp_path))
    assert built.returncode == 0, built.stderr
    requests = write(tmp_path / "in.jsonl", [{"text": str(number)} for number in range(8)])
    answers, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command(tmp_path / "recipe.mar", requests, answers), env=environment, stderr=subprocess.DEVNULL
    ) as first:
        while not part.exists() or not part.stat().st_size:
            assert first.poll() is None
            time.sleep(0.05)
        second = run(tmp_path / "recipe.mar", requests, answers)
        assert second.returncode == 1 and "another run is writing it" in second.stderr
        first.kill()
    deadline = time.monotonic() + 60
    while (third := run(tmp_path / "recipe.mar", requests, answers)).returncode:
        assert "another run is writing it" in third.stderr and time.monotonic() < deadline
    assert "going on behind line" in third.stderr
    assert [answer["said"] for answer in read(answers)] == [str(number) for number in range(8)]


def test_what_a_forced_run_had_begun_goes_on_too(classifier, tmp_path):
    _, archive = classifier
    requests = write(tmp_path / "in.jsonl", [{"text": text} for text in TEXTS])
    answers = tmp_path / "out.jsonl"
    assert run(archive, requests, answers).returncode == 0
    whole_answers = answers.read_bytes()
    part, state = tmp_path / "out.jsonl.part", tmp_path / "out.jsonl.part.json"
    # As a run that was stopped has left them: the digests are of what was asked, so another run makes the state.
    digests = {"archive": hashlib.sha256(verify.contents(archive).kept[SUMS]).hexdigest()}
    state.write_text(json.dumps({**digests, "requests": hashlib.sha256(requests.read_bytes()).hexdigest()}))
    part.write_bytes(whole_answers.splitlines(keepends=True)[0])
    forced = run(archive, requests, answers, "--force")
    assert forced.returncode == 0 and "going on behind line 1 of 3" in forced.stderr
    assert answers.read_bytes() == whole_answers
    state.write_text("")  # a disk that was full
    part.write_bytes(b"{}\n")
    answers.unlink()
    refused = run(archive, requests, answers)
    assert (
        refused.returncode == 1 and "--force begins anew" in refused.stderr and "Traceback" not in refused.stderr
    )
    assert run(archive, requests, answers, "--force").returncode == 0
    assert answers.read_bytes() == whole_answers


def test_a_run_that_is_stopped_goes_on(chatter, tmp_path):
    _, archive = chatter
    documents = [{"prompt": TEXTS[number % 3], "max_new_tokens": 100} for number in range(60)]
    requests, answers = write(tmp_path / "in.jsonl", documents), tmp_path / "out.jsonl"
    part = tmp_path / "out.jsonl.part"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command(archive, requests, answers), env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        while not part.exists() or not part.stat().st_size:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and "what was answered is kept" in said
    done = part.read_bytes()
    assert 0 < done.count(b"\n") < 60 and not answers.exists()
    part.write_bytes(done + b'{"half')  # as a machine that went down would leave it
    ran = run(archive, requests, answers)
    assert ran.returncode == 0 and f"going on behind line {done.count(bytes([10]))} of 60" in ran.stderr
    assert len(read(answers)) == 60 and answers.read_bytes().startswith(done)
    assert all("response" in answer for answer in read(answers))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_what_cannot_be_run_is_one_line(classifier, tmp_path):
    _, archive = classifier
    requests, answers = write(tmp_path / "in.jsonl", [{"text": "a"}]), tmp_path / "out.jsonl"
    answers.write_text("mine\n")
    ran = run(archive, requests, answers)
    assert ran.returncode == 1 and "is there already; --force replaces it" in ran.stderr
    assert answers.read_text() == "mine\n"
    assert run(archive, requests, answers, "--force").returncode == 0 and len(read(answers)) == 1
    answers.unlink()
    assert "no such file" in run(tmp_path / "none.mar", requests, answers).stderr.lower()
    assert "No such file" in run(archive, tmp_path / "none.jsonl", answers).stderr
    assert "holds no request" in run(archive, write(tmp_path / "empty.jsonl", []), answers).stderr
    (tmp_path / "out.jsonl.part").write_text("{}\n")
    (tmp_path / "out.jsonl.part.json").write_text(json.dumps({"archive": "x", "requests": "y"}))
    ran = run(archive, requests, answers)
    assert ran.returncode == 1 and "is of other archive and requests; --force begins anew" in ran.stderr


def test_a_model_that_cannot_be_loaded_says_why(tmp_path):
    model = tiny_models.classifier(tmp_path / "model")
    flags = ("--archive-format=no-archive", "--set=deviceType=gpu")
    archive = archives.build_model(tmp_path, "judge", model, "text-classification", *flags)
    ran = run(archive, write(tmp_path / "in.jsonl", [{"text": "a"}]), tmp_path / "out.jsonl")
    assert ran.returncode == 1 and "error: " in ran.stderr and "GPU" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_model_that_brings_code_is_run_by_transformers_own(tmp_path):
    """As recipes/phi3-mini: nothing of that code is packed."""
    model = tiny_models.phi_chatter(tmp_path / "model")
    archive = archives.build_model(tmp_path, "phi", model, "text-generation", "--archive-format=no-archive")
    assert not list((archive / "model").glob("*.py"))
    ran = run(
        archive, write(tmp_path / "in.jsonl", [{"prompt": TEXTS[0], "max_new_tokens": 6}]), tmp_path / "out.jsonl"
    )
    assert ran.returncode == 0, ran.stderr
    text, size, count = reference.generated(model, TEXTS[0], 6)
    [answer] = read(tmp_path / "out.jsonl")
    assert whole(answer["response"]) == whole(text)
    assert (answer["input_token_count"], answer["output_token_count"]) == (size, count)


def test_the_recipe_that_generates_without_a_download(tmp_path):
    built = archives.build(str(ROOT / "recipes" / "tiny-chat"), "--export-path", str(tmp_path))
    assert built.returncode == 0, built.stderr
    requests = write(tmp_path / "in.jsonl", [{"prompt": "Tell me a story", "max_new_tokens": 8}])
    ran = run(tmp_path / "tiny-chat.mar", requests, tmp_path / "out.jsonl")
    [answer] = read(tmp_path / "out.jsonl")
    assert ran.returncode == 0 and answer["output_token_count"] <= 8 and answer["input_token_count"] > 3
