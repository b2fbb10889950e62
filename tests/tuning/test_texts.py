"""Texts, and what each task's requests are made of."""

from __future__ import annotations

import json

import pytest

from handler.config import TASKS
from tuning import texts
from tuning.errors import CannotTune


def test_the_built_in_texts_are_different_and_always_the_same():
    made = texts.built_in()
    lengths = [len(text.split()) for text in made]
    assert len(set(made)) == 512 and (min(lengths), max(lengths)) == (4, 120)
    assert made == texts.built_in()


@pytest.mark.parametrize(
    ("task", "body"),
    [
        ("text-classification", {"text": "c d"}),
        ("feature-extraction", {"text": "c d"}),
        ("token-classification", {"text": "c d"}),
        ("text-ranking", {"query": "a b?", "texts": ["c d"]}),
        ("question-answering", {"question": "a b?", "context": "c d"}),
        ("zero-shot-classification", {"text": "c d", "candidate_labels": ["business", "family", "music"]}),
        ("fill-mask", {"text": "[MASK] c d"}),
    ],
)
def test_a_request_of_each_task(task, body, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"mask_token": {"content": "[MASK]"}}')
    assert json.loads(texts.bodies(task, ["a b", "c d"], tmp_path)[1]) == body


def test_every_task_of_the_handler_has_requests():
    assert set(TASKS) <= set(texts.MAKERS)


def test_a_task_without_requests_is_told(tmp_path):
    with pytest.raises(CannotTune, match="text-generation: no requests can be made"):
        texts.bodies("text-generation", ["a"], tmp_path)
    with pytest.raises(CannotTune, match="names no mask token"):
        texts.bodies("fill-mask", ["a"], tmp_path)


def test_a_file_gives_a_text_a_line(tmp_path):
    path = tmp_path / "texts"
    path.write_text("one text\n\n  \nanother ä\n")
    assert texts.read(path) == ["one text", "another ä"]


@pytest.mark.parametrize(
    ("content", "why"), [(b"\n \n", "holds no text"), (b"\xff", "not UTF-8"), (None, "No such file")]
)
def test_a_file_without_texts_is_told(tmp_path, content, why):
    path = tmp_path / "texts"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CannotTune, match=why):
        texts.read(path)
