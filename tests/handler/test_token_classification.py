"""token-classification against transformers' own pipeline."""

from __future__ import annotations

import random

import pytest

from handler.errors import LoadError
from tests.support import frames, reference, tiny_models, worker
from tests.support.answers import assert_scored

TASK = "token-classification"
STRATEGIES = ("none", "simple", "first", "average", "max")
PARTS = [
    *("the", "film", "Everybody's", "battery", "died", "a-week;", "🎬", "映画", "dïed", "👩\u200d👩\u200d👧"),
    *("wonderfulstory,", "e\u0301", "x", "", ""),
]


def random_texts(seed: int, count: int, most: int) -> list[str]:
    chooser = random.Random(seed)
    return [" ".join(chooser.choices(PARTS, k=chooser.randint(0, most))) for _ in range(count)]


def predictions(service, **document):
    status, answered = frames.answer(service, **document)
    assert status == 200, answered
    return [prediction["entities"] for prediction in answered["predictions"]]


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """A worker whose tokenizer knows no words, and pads on the left."""
    home = tmp_path_factory.mktemp("left")
    tiny_models.left_tagger(home / "model")
    return home, worker.start(home, task=TASK, max_batch_tokens=400)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("seed", [1, 2])
def test_as_the_pipeline(tiny, services, strategy, seed):
    texts = random_texts(seed, count=30, most=25)
    expected = reference.entities(tiny[TASK] / "model", texts, aggregation_strategy=strategy)
    answered = predictions(services[TASK], texts=texts, aggregation_strategy=strategy)
    assert_scored(answered, expected)
    assert [] in answered, "one text should have no entities"


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_padding_on_the_left_and_pieces_of_bytes(left, strategy):
    home, service = left
    texts = random_texts(3, count=20, most=8)
    expected = reference.entities(home / "model", texts, aggregation_strategy=strategy)
    assert_scored(predictions(service, texts=texts, aggregation_strategy=strategy), expected)


def test_what_shares_the_batch_does_not_matter(services):
    texts = random_texts(4, count=12, most=20)
    alone = [predictions(services[TASK], texts=[text])[0] for text in texts]
    chosen = random.Random(4).choices(range(len(texts)), k=30)
    together = predictions(services[TASK], texts=[texts[index] for index in chosen])
    assert_scored(together, [alone[index] for index in chosen])


def test_offsets_count_the_characters_of_what_was_sent(services):
    text = "🎬🎬 the film 👩‍👩‍👧 story"
    [entities] = predictions(services[TASK], texts=[text], aggregation_strategy="none", ignore_labels=[])
    words = {entity["word"]: text[entity["start"] : entity["end"]] for entity in entities}
    assert words["film"] == "film" and words["story"] == "story"


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
@pytest.mark.parametrize("stride", [0, 7, 30])
def test_windows_as_the_pipeline(tiny, tmp_path, strategy, stride):
    (tmp_path / "model").symlink_to(tiny[TASK] / "model")
    service = worker.start(tmp_path, task=TASK, stride=stride, aggregation_strategy=strategy, max_batch_tokens=500)
    texts = random_texts(5, count=8, most=90)
    expected = reference.entities(tiny[TASK] / "model", texts, stride=stride, aggregation_strategy=strategy)
    assert_scored(predictions(service, texts=texts), expected)
    assert max(entity["end"] for found in expected for entity in found) > 200, "several windows"


def test_windows_are_not_for_single_tokens(tiny, tmp_path):
    (tmp_path / "model").symlink_to(tiny[TASK] / "model")
    service = worker.start(tmp_path, task=TASK, stride=8)
    status, answered = frames.answer(service, text="a", aggregation_strategy="none")
    assert status == 422 and "windows" in answered["error"]["message"]
    assert frames.answer(service, text="story " * 100, truncation=False)[0] == 413
    with pytest.raises(LoadError, match="other than none"):
        worker.start(tmp_path, task=TASK, stride=8, aggregation_strategy="none")


@pytest.mark.parametrize(("stride", "loads"), [(61, True), (62, False)])
def test_a_stride_that_leaves_no_room(tiny, tmp_path, stride, loads):
    (tmp_path / "model").symlink_to(tiny[TASK] / "model")
    if loads:
        assert frames.answer(worker.start(tmp_path, task=TASK, stride=stride), text="story " * 70)[0] == 200
    else:
        with pytest.raises(LoadError, match="room for 62 tokens"):
            worker.start(tmp_path, task=TASK, stride=stride)


def test_nan_is_never_sent(tiny, tmp_path):
    (tmp_path / "model").symlink_to(tiny[TASK] / "model")
    service = worker.start(tmp_path, task=TASK, warm_up=False)
    worker.poison(service, "film")
    rows = [frames.ask({"text": text}) for text in ("the film", "the story")]
    bad, good = frames.predict(service, rows)
    assert (bad.status, good.status) == (500, 200)


def test_describe(services):
    described = services[TASK].handler.pipeline.describe()
    assert described["labels"] == list(tiny_models.TAGS) and described["aggregation_strategy"] == "simple"
