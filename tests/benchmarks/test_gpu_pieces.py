"""benchmarks/gpu without a server: what is judged, counted, packed and said."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import bare, generation, load, measure, pack, texts, unpack
from benchmarks.gpu.__main__ import make_settings, read_arguments
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.models import Deployment
from benchmarks.gpu.report import Correctness, Generated, Greedy, Leaks, Report, ServedSpeed, Streams
from benchmarks.gpu.server import Server, served_on
from benchmarks.gpu.settings import MODELS, PARTS, Words
from benchmarks.processes import Failed
from client import ClientError
from tests.support.listening import Quiet, listening

ROOT = Path(__file__).resolve().parents[2]
VECTORS = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
FP32, BF16 = Deployment("minilm", "float32", 1), Deployment("minilm", "bfloat16", 1)
MACHINE = Machine(**{field.name: "" for field in dataclasses.fields(Machine)} | {"cores": 2, "load": 0.5})


def settings(*arguments: str):
    return make_settings(read_arguments(["--output", "out", "--device", "cpu", *arguments]))


# -- what is judged


def test_equal_vectors_pass():
    assert measure.compare(FP32, [4] * 8, VECTORS, VECTORS).passed


@pytest.mark.parametrize(("deployment", "error"), [(FP32, 2e-3), (BF16, 0.5)])
def test_one_wrong_vector_fails(deployment, error):
    wrong = VECTORS.copy()
    wrong[3] += error * np.arange(16, dtype=np.float32)
    assert not measure.compare(deployment, [4] * 8, wrong, VECTORS).passed


def test_a_short_format_is_judged_by_its_cosine():
    found = measure.compare(BF16, [4] * 8, VECTORS * 1.01, VECTORS)
    assert found.passed and found.max_difference > 1e-3
    assert not measure.compare(FP32, [4] * 8, VECTORS * 1.01, VECTORS).passed


def test_vectors_that_are_all_alike_prove_nothing():
    assert not measure.compare(FP32, [4] * 8, np.ones_like(VECTORS), np.ones_like(VECTORS)).passed


def test_vectors_of_each_others_texts_fail():
    alike = 1 + 0.02 * VECTORS  # as random models' vectors of long texts are
    found = measure.compare(BF16, [4] * 8, alike[[1, 0, *range(2, 8)]], alike)
    assert found.min_cosine > 0.999 and not found.passed
    assert measure.compare(BF16, [4] * 8, alike, alike).passed


def test_a_missing_vector_fails():
    assert not measure.compare(FP32, [4] * 8, VECTORS[1:], VECTORS).passed


def test_shares_are_of_the_workers_time():
    found = measure.shares({"encode": 1.0, "forward": 2.0}, 4.0)
    assert found == {"encode": 0.25, "forward": 0.5, "waiting": 0.25}


# -- the bare model


def test_padding_holds_every_text_once_within_the_budget():
    ids = [[7] * length for length in (3, 9, 4, 1, 9, 2)]
    rectangles = bare.pad(ids, 18)
    assert sorted(place for rectangle in rectangles for place in rectangle.places) == list(range(6))
    for rectangle in rectangles:
        assert rectangle.ids.size <= 18
        assert rectangle.mask.sum(axis=1).tolist() == [len(ids[place]) for place in rectangle.places]
        assert (rectangle.ids == 7 * rectangle.mask).all()


# -- texts


def test_texts_are_the_same_each_time_and_never_twice():
    words = ["ant", "bee", "cow"]
    made = texts.make(words, 50, Words(3, 6), 1)
    assert made == texts.make(words, 50, Words(3, 6), 1) != texts.make(words, 50, Words(3, 6), 2)
    assert len(set(made)) == 50 and all(3 <= len(text.split()) <= 6 for text in made)
    assert [len(group) for group in texts.groups(made, 16)] == [16, 16, 16, 2]


# -- what is asked for


def test_flags_beat_the_size_of_the_run():
    small = settings("--small", "--workers", "1,2", "--seconds", "3")
    assert (small.workers, small.seconds, small.connections) == ((1, 2), 3.0, 4)
    assert settings().connections == 32 and settings().models == MODELS and settings().parts == PARTS


@pytest.mark.parametrize(
    "arguments", [["--parts", "speed,sped"], ["--models", "gpt"], ["--workers", "0"], ["--dtype", "int8"]]
)
def test_what_is_not_known_is_refused(arguments):
    with pytest.raises(SystemExit):
        settings(*arguments)


def test_no_seconds_are_refused():
    with pytest.raises(ValueError, match="--seconds"):
        settings("--seconds", "0")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_where_there_is_none():
    with pytest.raises(ValueError, match="no GPU"):
        make_settings(read_arguments(["--output", "out", "--device", "cuda"]))


@pytest.mark.parametrize("error", [Failed("minilm answered 500"), ClientError("nobody"), RuntimeError("CUDA")])
def test_what_could_not_be_measured_is_no_wrong_answer(monkeypatch, tmp_path, capsys, error):
    monkeypatch.setattr(command, "ended", lambda work, say: work())
    monkeypatch.setattr(command.machine, "look", lambda: MACHINE)
    monkeypatch.setattr(command.Run, "everything", Mock(side_effect=error))
    assert command.main(["--output", str(tmp_path / "out"), "--device", "cpu", "--small"]) == 2
    assert str(error) in capsys.readouterr().err and (tmp_path / "out" / "gpu.json").exists()


def test_no_measurement_of_generation_is_begun_too_late(monkeypatch, tmp_path):
    left = ["one at once"]
    wanted = generation.Generation(
        settings("--small"), tmp_path, tmp_path, lambda line: None, lambda what: bool(left and left.pop())
    )
    for name, found in (("make", 1), ("generate", []), ("answers", [])):
        monkeypatch.setattr(generation, name, Mock(return_value=found))
    monkeypatch.setattr(generation.Generation, "_serve", Mock())
    assert [each.connections for each in wanted.greedy()] == [1]
    assert list(wanted.streams()) == []


# -- where the workers compute


def test_a_worker_on_another_device_is_an_error(tmp_path):
    server = Server(tmp_path, tmp_path, [FP32], "cuda")
    server.log.write_text("INFO MODEL_LOG serving feature-extraction on cuda:0 with 2 CPU threads\n")
    server._check_device()
    server.log.write_text("INFO MODEL_LOG serving feature-extraction on cpu with 2 CPU threads\n")
    with pytest.raises(Failed, match=r"on cuda were expected.*'cpu'"):
        server._check_device()


def test_a_workers_line_may_come_late(tmp_path):
    log = tmp_path / "output.log"
    log.touch()
    line = "INFO MODEL_LOG serving text-generation on cuda:0 with 2 CPU threads\n"
    late = threading.Timer(0.3, log.write_text, (line,))
    late.start()
    assert served_on(log, "text-generation", 1) == ["cuda:0"]
    late.join()


# -- the load


class Answers(Quiet):
    """Answers as many vectors as texts; for the text `bad` with 500, for `few` with one too few."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        document = json.loads(self.rfile.read(int(self.headers["content-length"])))
        wanted = document.get("texts") or [document["text"]]
        body = json.dumps({"embeddings": [[0.5]] * (len(wanted) - ("few" in wanted))}).encode()
        self.send_response(500 if "bad" in wanted else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def answers():
    with listening(Answers) as address:
        yield address


def drive(answers, tmp_path, *requests):
    tokens = [[10 * len(request)] for request in requests]
    wanted = load.Load(answers, "m", [[request] for request in requests], tokens, 0.5, 0.2)
    return load.run(wanted, 2, tmp_path)


def test_the_load_counts_what_was_answered(answers, tmp_path):
    seen = drive(answers, tmp_path, ["a", "b"], ["c", "d"], ["e", "f"])
    assert seen.requests > 0 and not seen.errors
    assert (seen.texts, seen.tokens) == (2 * seen.requests, 20 * seen.requests)
    assert seen.tokens_per_second == seen.tokens / 0.5
    assert 0 < seen.percentile(0.5) <= seen.percentile(0.99) < 0.5


@pytest.mark.parametrize(("text", "words"), [("bad", "status 500"), ("few", "another number of vectors")])
def test_the_load_counts_what_was_not(answers, tmp_path, text, words):
    seen = drive(answers, tmp_path, [text], ["b"])
    assert seen.errors > 0 and words in seen.error


def test_no_answer_has_no_percentile():
    assert math.isnan(load.add_up([], 1.0).percentile(0.5))


# -- the report


def report(**found):
    return Report(MACHINE, settings("--small"), {"minilm": 1_000_000}, **found)


def served(**changes):
    facts = {
        "model": "minilm",
        "dtype": "float32",
        "length": "short",
        "workers": 1,
        "tokens_per_second": 5.0,
        "texts_per_second": 1.0,
        "of_bare": 0.5,
        "requests": 3,
        "errors": 0,
        "error": "",
        "median_ms": 1.0,
        "p99_ms": 2.0,
        "shares": {"forward": 1.0},
    }
    return ServedSpeed(**facts | changes)


def judged(passed):
    return Correctness("minilm", "float32", 8, 80, 0.0, 1.0, 1.0, "difference", passed)


def test_what_passes():
    assert report(served=[served()]).passed and report(correctness=[judged(True)]).passed


@pytest.mark.parametrize(
    "found",
    [{}, {"correctness": [judged(False)]}, {"served": [served(errors=1)]}, {"served": [served(requests=0)]}],
)
def test_what_does_not_pass(found):
    assert not report(**found).passed


def generated(equal=16, grown=1.0, used=0.0):
    rates = {"ours": (1000, 900), "their serve": (500, 300)}
    streams = [
        Streams(name, "bfloat16", at, rate, 50) for name, each in rates.items() for at, rate in enumerate(each)
    ]
    growth = {"worker": {"bytes": grown, "allowed": 2.0}}
    leaks = Leaks(40, {"worker": [1] * 20}, growth, {"HandlerCacheUsed": used}, 0, 0)
    return Generated(3_000_000_000, [Greedy("float32", 64, 4, 16, equal)], streams, [leaks])


def test_generation_passes_and_is_told_round_by_round():
    made = report(generation=generated())
    assert made.passed
    assert (
        "| ours beside it, round by round | | | 2.5 (2.0 to 3.0) times | 0 (0 to 0) later | |" in made.markdown()
    )
    assert "| float32 | 64 | 4 | 16 of 16 |" in made.markdown()


@pytest.mark.parametrize("wrong", [{"equal": 15}, {"grown": 3.0}, {"used": 0.1}, {"used": -1.0}])  # -1: not told
def test_generation_that_does_not_pass(wrong):
    assert not report(generation=generated(**wrong)).passed


def test_the_files(tmp_path):
    report(correctness=[judged(False)], served=[served(median_ms=math.nan)]).write(tmp_path)
    document = json.loads((tmp_path / "gpu.json").read_text(), parse_constant=pytest.fail)
    assert document["served"][0]["median_ms"] is None and document["passed"] is False
    assert "FAILED" in (tmp_path / "gpu.md").read_text()


# -- the kit


def test_every_package_of_the_kit_is_pinned():
    assert {name.lower() for name in (*pack.SERVER, *pack.PACKAGES)} <= set(pack.pins())


def test_the_wheel_for_a_python(tmp_path):
    version = pack.pins()["orjson"]
    for tag in ("cp311-cp311-manylinux", "cp312-cp312-manylinux"):
        (tmp_path / f"orjson-{version}-{tag}.whl").touch()
    (tmp_path / "orjson-0.0.1-cp312-cp312-manylinux.whl").touch()
    found = pack.find_wheel(tmp_path, "orjson", "3.12")
    assert found and found.name == f"orjson-{version}-cp312-cp312-manylinux.whl"
    assert pack.find_wheel(tmp_path, "orjson", "3.13") is None


def test_the_same_files_pack_to_the_same_bytes(tmp_path):
    packed = []
    for turn in ("a", "b"):
        folder = tmp_path / turn
        (folder / "bin").mkdir(parents=True)
        program = folder / "bin" / "java"
        program.write_text("#!")
        program.chmod(0o700)
        os.utime(program, (len(packed), len(packed)))
        pack.compress(folder, tmp_path / f"{turn}.tar.xz")
        packed.append((tmp_path / f"{turn}.tar.xz").read_bytes())
    assert packed[0] == packed[1]


def test_a_jar_keeps_its_content(tmp_path):
    jar = tmp_path / "server.jar"
    with zipfile.ZipFile(jar, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/B.class", b"x" * 1000)
    pack.store_jar(jar)
    with zipfile.ZipFile(jar) as archive:
        assert archive.read("a/B.class") == b"x" * 1000 and jar.stat().st_size > 1000


def test_a_kit_over_its_limit(capsys):
    assert pack.judge({"java": 10, "torchserve": 10}, 20, ROOT)
    assert not pack.judge({"java": 10, "torchserve": 11}, 20, ROOT)


def test_a_directory_that_is_no_kit_is_not_replaced(tmp_path):
    mine = tmp_path / "gpu" / "mine"
    mine.mkdir(parents=True)
    with pytest.raises(pack.CannotPack, match="is no kit"):
        pack.pack("/no/jlink", mine.parent, tmp_path)
    assert mine.exists()


def test_without_jlink(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(pack.CannotPack, match="no jlink at PATH"):
        pack.find_jlink(None)


def test_the_environment_sees_the_outer_packages():
    written = unpack.outer(["/usr/lib/python3.12", "/opt/a/site-packages", "/usr/lib/python3/dist-packages"])
    assert written.count("addsitedir") == 2 and "'/opt/a/site-packages'" in written


def test_run_without_a_kit_says_so_and_leaves_nothing(tmp_path):
    environment = {**os.environ, "GPU_KIT": str(tmp_path / "none"), "PYTHON": sys.executable}
    environment["TMPDIR"] = str(tmp_path)
    done = subprocess.run(
        [ROOT / "benchmarks" / "gpu" / "run.sh"], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 1 and "lacks java, torchserve" in done.stderr
    assert not list(tmp_path.iterdir())
