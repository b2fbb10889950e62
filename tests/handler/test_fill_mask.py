"""fill-mask against transformers' own pipeline."""

from __future__ import annotations

import json
import random

import pytest

from handler.errors import LoadError
from handler.tasks import fill_mask
from tests.support import frames, reference, tiny_models, worker
from tests.support.answers import assert_scored

TASK = "fill-mask"
PARTS = [
    "the",
    "film",
    "Everybody's",
    "was",
    "not",
    "good;",
    "🎬",
    "映画",
    "dïed",
    "e\u0301",
    "wonderfulstory",
    "",
    "",
]


def random_texts(seed: int, count: int, mask: str, most: int = 2) -> list[str]:
    chooser = random.Random(seed)
    texts = []
    for _ in range(count):
        words = chooser.choices(PARTS, k=chooser.randint(0, 12)) + [mask] * chooser.randint(1, most)
        chooser.shuffle(words)
        texts.append(" ".join(words))
    return texts


def predictions(service, **document):
    status, answered = frames.answer(service, **document)
    assert status == 200, answered
    return answered["predictions"]


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """A worker whose tokenizer pads on the left."""
    home = tmp_path_factory.mktemp("left")
    tiny_models.left_filler(home / "model")
    return home, worker.start(home, task=TASK, max_batch_tokens=300)


@pytest.mark.parametrize(
    "parameters", [{}, {"top_k": 2}, {"top_k": 3, "targets": ["not", "[PAD]", "##a", "a", "[SEP]"]}]
)
@pytest.mark.parametrize("seed", [1, 2])
def test_as_the_pipeline(tiny, services, parameters, seed):
    texts = random_texts(seed, 20, "[MASK]")
    expected = reference.fillings(tiny[TASK] / "model", texts, **parameters)
    assert_scored(predictions(services[TASK], texts=texts, **parameters), expected)


@pytest.mark.parametrize("parameters", [{}, {"targets": [" the", " was", " well", "fi"]}])
def test_padding_on_the_left_and_pieces_of_bytes(left, parameters):
    home, service = left
    texts = random_texts(3, 20, "<mask>")
    expected = reference.fillings(home / "model", texts, **parameters)
    assert_scored(predictions(service, texts=texts, **parameters), expected)


def test_equal_texts_with_different_parameters(tiny, services):
    texts = random_texts(4, 6, "[MASK]")
    asked = [{}, {"top_k": 1}, {"top_k": 7}, {"targets": ["not"]}, {"targets": ["good", "not"]}, {}]
    rows = [frames.ask({"texts": texts, **parameters}) for parameters in asked]
    for parameters, response in zip(asked, frames.predict(services[TASK], rows), strict=True):
        expected = reference.fillings(tiny[TASK] / "model", texts, **parameters)
        assert_scored(json.loads(response.body)["predictions"], expected)


def test_only_what_was_asked_for_leaves_the_device(services, monkeypatch):
    task = services[TASK].handler.pipeline.task
    seen = []
    forward = type(task).forward
    monkeypatch.setattr(task, "forward", lambda rows: seen.extend(found := forward(task, rows)) or found)
    predictions(services[TASK], texts=["[MASK] [MASK] a", "b [MASK]"], top_k=3)
    assert (
        sorted(filled.ids.shape for filled in seen)
        == sorted(filled.scores.shape for filled in seen)
        == [(1, 3), (2, 3)]
    )


@pytest.mark.parametrize(("texts", "count"), [(["[MASK] " * 30], 150), (["[MASK]"] * 25, 125)])
def test_too_many_sequences(services, monkeypatch, texts, count):
    monkeypatch.setattr(fill_mask, "MOST_SEQUENCES", 100)
    task = services[TASK].handler.pipeline.task
    forward = type(task).forward
    monkeypatch.setattr(task, "forward", lambda rows: ran.extend(rows) or forward(task, rows))
    ran = []
    status, answered = frames.answer(services[TASK], texts=texts)
    assert status == 413 and f"ask for {count} sequences; the limit is 100" in answered["error"]["message"]
    assert bool(ran) is (len(texts) > 1), "one text that asks for too much is not run"
    assert frames.answer(services[TASK], texts=["[MASK] " * 20])[0] == 200


@pytest.mark.parametrize(("texts", "ran"), [(["[MASK] " * 30], False), (["[MASK] a a"] * 25, True)])
def test_sequences_that_are_too_long_together(services, monkeypatch, texts, ran):
    monkeypatch.setattr(fill_mask, "MOST_TOKENS", 300)
    task = services[TASK].handler.pipeline.task
    forward, seen = type(task).forward, []
    monkeypatch.setattr(task, "forward", lambda rows: seen.extend(rows) or forward(task, rows))
    status, answered = frames.answer(services[TASK], texts=texts)
    assert status == 413 and "tokens in all; the limit is 300" in answered["error"]["message"]
    assert bool(seen) is ran, "one text that asks for too much is not run"
    assert frames.answer(services[TASK], text="[MASK] a a")[0] == 200


def test_the_configured_top_k_gives_way_to_the_request(tiny, tmp_path):
    (tmp_path / "model").symlink_to(tiny[TASK] / "model")
    service = worker.start(tmp_path, task=TASK, top_k=2)
    assert len(predictions(service, text="[MASK]")) == 2
    assert len(predictions(service, text="[MASK]", top_k=3)) == 3
    with pytest.raises(LoadError, match=r"top_k is 1000, but the model knows \d+ tokens"):
        worker.start(tmp_path, task=TASK, top_k=1000)


def test_the_whole_vocabulary(services):
    task = services[TASK].handler.pipeline.task
    assert len(predictions(services[TASK], text="[MASK]", top_k=task.size)) == task.size
    assert frames.answer(services[TASK], text="[MASK]", top_k=task.size + 1)[0] == 422


def test_a_target_beyond_the_models_vocabulary(services, monkeypatch):
    """An index out of range on a GPU would end the worker."""
    task = services[TASK].handler.pipeline.task
    monkeypatch.setitem(task.vocabulary, "added", task.size)
    status, answered = frames.answer(services[TASK], text="[MASK]", targets=["not", "added"])
    assert status == 422 and "targets[1]" in answered["error"]["message"]


def test_a_tokenizer_without_a_mask(tmp_path):
    path = tiny_models.filler(tmp_path / "model") / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["mask_token"]
    path.write_text(json.dumps(settings))
    with pytest.raises(LoadError, match="no mask token"):
        worker.start(tmp_path, task=TASK)


def test_nan_is_never_sent(tiny, tmp_path):
    (tmp_path / "model").symlink_to(tiny[TASK] / "model")
    service = worker.start(tmp_path, task=TASK, warm_up=False)
    worker.poison(service, "film")
    rows = [frames.ask({"text": text}) for text in ("the film [MASK]", "the story [MASK]")]
    bad, good = frames.predict(service, rows)
    assert (bad.status, good.status) == (500, 200)


def test_describe(services):
    described = services[TASK].handler.pipeline.describe()
    assert (described["mask"], described["top_k"]) == ("[MASK]", 5)
