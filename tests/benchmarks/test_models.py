"""What a run that was stopped halfway leaves for the next one."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import models


def test_a_model_that_was_not_finished_is_made_again(monkeypatch, tmp_path):
    monkeypatch.setattr(models, "CLASSIFIER", tmp_path / "classifier")
    with monkeypatch.context() as interrupted:
        interrupted.setattr(models.AutoTokenizer, "from_pretrained", stop)
        with pytest.raises(KeyboardInterrupt):
            models.model_for("text-classification")
    assert (models.model_for("text-classification") / "tokenizer.json").is_file()


def test_answers_that_were_not_finished_are_computed_again(monkeypatch, tmp_path):
    monkeypatch.setattr(models, "BENCH", tmp_path)
    with monkeypatch.context() as interrupted:
        interrupted.setattr(models.np, "save", half)
        with pytest.raises(KeyboardInterrupt):
            models.reference("t", rows, ["a"])
    assert models.reference("t", rows, ["a"]).tolist() == [[1.0]]
    assert models.reference("t", stop, ["a"]).tolist() == [[1.0]]


def rows(texts):
    return np.ones((len(texts), 1))


def half(path, _):
    path.write_bytes(b"half")
    stop()


def stop(*_):
    raise KeyboardInterrupt
