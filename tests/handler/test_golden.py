"""Golden answers: recorded from the reference for every task, held by a worker, refused when they do not hold."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from handler.config import TASKS, read_config
from handler.errors import LoadError
from reference import record
from tests.support import frames, tiny_models, worker

LAYERS = {"layers": [1, 2, 4], "max_length": 24, "system_message": "be short"}
MAKERS = {**tiny_models.MODELS, "prompt-encoding": tiny_models.prompt_encoder}
LENGTH = {"max_tokens": 48}  # the made-up texts are longer than the tiny models' 64 positions

# Task -> weights whose change changes answers, by the end of their names.
WEIGHTS = {
    "text-classification": "classifier.weight",
    "text-ranking": "classifier.weight",
    "zero-shot-classification": "classifier.weight",
    "token-classification": "classifier.weight",
    "feature-extraction": "layer.1.output.dense.weight",
    "question-answering": "qa_outputs.weight",
    "fill-mask": "cls.predictions.transform.dense.weight",
    "prompt-encoding": "layers.3.mlp.down_proj.weight",
}

OWN = """
import torch

class Lengths:
    field = "word"

    def __init__(self, directory, options, device):
        self.factor = options["factor"]

    def run(self, texts):
        return [self.one(len(text)) for text in texts]

    def one(self, size):
        return {"states": torch.full((2, 3), float(size * self.factor)), "letters": size}


def reference(directory, options, texts):
    return [{"states": torch.full((2, 3), float(len(text) * 3)), "letters": len(text)} for text in texts]
"""


def settings(task):
    if task == "prompt-encoding":
        return {"task": task, **LAYERS}
    return {"task": task} if task in ("feature-extraction", "text-ranking") else {"task": task, **LENGTH}


def recorded(directory, requests=None, **handler):
    """An archive's directory with golden answers to these requests."""
    (directory / "golden").mkdir(exist_ok=True)
    document = read_config({"handler": handler}).document()["handler"]
    record.record(directory / "model", document, requests, directory / "golden")


def change(model, ending, factor=1.01):
    weights = load_file(model / "model.safetensors")
    for name in [name for name in weights if name.endswith(ending)]:
        weights[name] = weights[name].flip(0) * factor if factor < 0 else weights[name] * factor
    save_file(weights, model / "model.safetensors", {"format": "pt"})


def test_every_task_is_here():
    assert {*MAKERS} == {*WEIGHTS} == {*TASKS}


@pytest.mark.parametrize("task", TASKS)
def test_a_worker_gives_the_references_answers_and_no_others(tmp_path, task):
    MAKERS[task](tmp_path / "model")
    recorded(tmp_path, **settings(task))
    cases = json.loads((tmp_path / "golden" / "cases.json").read_text())["cases"]
    assert len(cases) >= 2
    worker.start(tmp_path, **settings(task))
    change(tmp_path / "model", WEIGHTS[task], -1.01)
    with pytest.raises(LoadError, match=r"of \d golden answers do not hold: golden answer \d: "):
        worker.start(tmp_path, **settings(task))


def test_one_percent_of_one_layer_is_seen(tmp_path):
    tiny_models.prompt_encoder(tmp_path / "model")
    recorded(tmp_path, **settings("prompt-encoding"))
    change(tmp_path / "model", WEIGHTS["prompt-encoding"])
    with pytest.raises(LoadError, match=r"prompt_embeds\[0\]: off by .* of its length, at most 0.0001 is allowed"):
        worker.start(tmp_path, **settings("prompt-encoding"))
    worker.start(tmp_path, golden_tolerance=0.1, **settings("prompt-encoding"))


@pytest.mark.parametrize("make", [tiny_models.prompt_encoder, tiny_models.right_prompt_encoder])
def test_bfloat16_holds_with_its_own_tolerance(tmp_path, make):
    make(tmp_path / "model")
    recorded(tmp_path, dtype="bfloat16", **settings("prompt-encoding"))
    tensors = load_file(tmp_path / "golden" / "tensors.safetensors")
    assert tensors["0/prompt_embeds/0"].dtype == torch.bfloat16
    assert tensors["0/prompt_embeds/0"].shape == (24, 96)
    worker.start(tmp_path, dtype="bfloat16", **settings("prompt-encoding"))


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("label", "LABEL_9", "label: is another"),
        ("prediction", 7, "prediction: is another"),
        ("confidence", 0.123, r"confidence: 0\.\d+, 0.123 is golden"),
        ("probabilities", [0.1, 0.9], "probabilities: 3 entries, 2 are golden"),
        ("probabilities", [0.1, 0.8, 0.1], "probabilities: off by"),
        ("more", None, "more: is missing"),
    ],
)
def test_it_says_what_does_not_hold(tmp_path, field, value, says):
    tiny_models.classifier(tmp_path / "model")
    recorded(tmp_path, [{"text": "a film"}, {"text": "a story"}], **settings("text-classification"))
    path = tmp_path / "golden" / "cases.json"
    document = json.loads(path.read_text())
    document["cases"][1]["answer"][field] = value
    path.write_text(json.dumps(document))
    with pytest.raises(LoadError, match=f"^1 of 2 golden answers do not hold: golden answer 2: {says}"):
        worker.start(tmp_path, **settings("text-classification"))


def test_requests_that_the_handler_refuses_do_not_hold(tmp_path):
    tiny_models.classifier(tmp_path / "model")
    recorded(tmp_path, [{"texts": ["a film", "a story"]}], **settings("text-classification"))
    with pytest.raises(LoadError, match="golden answer 1: 413: texts: 2 items; the limit is 1"):
        worker.start(tmp_path, max_items=1, **settings("text-classification"))


@pytest.mark.parametrize(
    ("task", "request_", "says"),
    [
        ("text-classification", {"text": "a", "top_k": 2}, "golden request 1: the reference cannot answer it"),
        ("text-classification", {}, "golden request 1: expected either text or texts"),
        ("question-answering", {"question": "a?", "context": "a"}, "align_to_words"),
        ("question-answering", {"question": "a?", "context": "a " * 60, "align_to_words": False}, "one window"),
    ],
)
def test_what_has_no_reference_is_refused(tmp_path, task, request_, says):
    MAKERS[task](tmp_path / "model")
    with pytest.raises(record.NoReference, match=says):
        recorded(tmp_path, [request_], **settings(task))


def test_a_task_of_the_recipes_own_brings_its_own_reference(tmp_path, monkeypatch):
    (tmp_path / "own_lengths.py").write_text(OWN)
    (tmp_path / "golden").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    handler = {"task": "own_lengths:Lengths", "options": {"factor": 3}}
    requests = [{"word": "story"}, {"words": ["a", "film"]}]
    record.record(tmp_path / "model", handler, requests, tmp_path / "golden", tmp_path / "own_lengths.py")
    service = worker.start(tmp_path, **handler)
    assert frames.answer(service, word="ab")[1]["letters"] == [2]
    with pytest.raises(LoadError, match=r"2 of 2 golden answers do not hold: golden answer 1: states\[0\]"):
        worker.start(tmp_path, task="own_lengths:Lengths", options={"factor": 2})
    with pytest.raises(record.NoReference, match=r"golden\.jsonl"):
        record.record(tmp_path / "model", handler, None, tmp_path / "golden", tmp_path / "own_lengths.py")
    (tmp_path / "own_lengths.py").write_text(OWN.partition("def reference")[0])
    with pytest.raises(record.NoReference, match=r"no function reference\(directory, options, texts\)"):
        record.record(tmp_path / "model", handler, requests, tmp_path / "golden", tmp_path / "own_lengths.py")
