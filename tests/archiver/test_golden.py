"""archive.sh --golden: what is recorded, what is refused, and that the archive's own handler answers first."""

from __future__ import annotations

import json

import pytest

from archiver.reading import read
from tests.support import archives, tiny_models

RECIPE = 'name: judge\nversion: "1.0"\n'
CONFIG = "handler:\n  task: text-classification\n  max_items: 2\n"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    tiny_models.classifier(folder / "model")
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "model-config.yaml").write_text(CONFIG)
    return folder


def build(recipe, store, *flags):
    return archives.build(str(recipe), "--export-path", str(store), *flags)


def cases(archive):
    with read(archive) as (_, files):
        found = {name: content.read() for name, _, content in files}
    return json.loads(found["golden/cases.json"])


def test_the_requests_are_the_files_the_recipes_or_made_up_in_every_format(recipe, tmp_path):
    built = build(recipe, tmp_path, "--golden")
    assert built.returncode == 0, built.stderr
    assert "golden answers: 3 of 3" in built.stderr
    made_up = cases(tmp_path / "judge.mar")
    assert len(made_up["cases"]) == 3 and {"torch", "transformers"} <= made_up["reference"].keys()
    assert made_up["cases"][0]["answer"].keys() == {"prediction", "label", "confidence", "probabilities"}

    (tmp_path / "requests").write_text('{"text": "a film"}\n\n{"texts": ["a story", "at all"]}\n')
    flags = ("--golden-requests", str(tmp_path / "requests"), "--archive-format", "tgz")
    built = build(recipe, tmp_path, *flags)
    assert built.returncode == 0, built.stderr
    named = [case["request"] for case in cases(tmp_path / "judge.tar.gz")["cases"]]
    assert named == [{"text": "a film"}, {"texts": ["a story", "at all"]}]

    (recipe / "golden.jsonl").write_text('{"text": "its own"}\n')
    try:
        built = build(recipe, tmp_path, "--golden", "--archive-format", "no-archive")
        assert built.returncode == 0, built.stderr
        [own] = cases(tmp_path / "judge")["cases"]
        assert own["request"] == {"text": "its own"}
        assert build(recipe, tmp_path, "--force").returncode == 0
        with pytest.raises(KeyError):
            cases(tmp_path / "judge.mar")
    finally:
        (recipe / "golden.jsonl").unlink()


@pytest.mark.parametrize(
    ("requests", "says"),
    [
        ('{"text": "a"}\n["text"]\n{text}\n', ":2: expected a JSON object, a request"),
        ("\n", "holds no request"),
        ('{"text": "a", "top_k": 1}', "golden request 1: the reference cannot answer it"),
        ('{"texts": ["a", "a", "a"]}', "1 of 1 golden answers do not hold: golden answer 1: 413"),
    ],
)
def test_what_cannot_be_golden_is_refused(recipe, tmp_path, requests, says):
    (tmp_path / "requests").write_text(requests)
    built = build(recipe, tmp_path, "--golden-requests", str(tmp_path / "requests"))
    assert built.returncode == 1 and says in built.stderr and "Traceback" not in built.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["requests"]


def test_a_file_that_is_not_there(recipe, tmp_path):
    built = build(recipe, tmp_path, "--golden-requests", str(tmp_path / "nowhere"))
    assert built.returncode == 1 and "there is no such file" in built.stderr


def test_integers_need_a_tolerance(recipe, tmp_path):
    built = build(recipe, tmp_path, "--golden", "--set", "handler.quantize=int8")
    assert built.returncode == 1 and "handler.golden_tolerance" in built.stderr
    flags = ("--set", "handler.quantize=int8", "--set", "handler.golden_tolerance=0.5")
    built = build(recipe, tmp_path, "--golden", *flags)
    assert built.returncode == 0, built.stderr


def test_an_extra_file_cannot_take_their_place(recipe, tmp_path):
    (tmp_path / "golden").mkdir()
    built = build(recipe, tmp_path, "--extra-files", str(tmp_path / "golden"))
    assert built.returncode == 1 and "golden has a meaning of its own" in built.stderr
