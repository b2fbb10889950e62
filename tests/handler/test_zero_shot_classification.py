"""Labels and scores held against transformers' own pipeline."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from handler.errors import LoadError
from tests.support import frames, reference, tiny_models, worker

WORDS = [*" ".join(tiny_models.CORPUS).replace(",", " ,").split(), "zebra", "映画", "I'd", "..."]
LABELS = ["film", "battery", "wonderful story", "not good", "a week", "zebra"]


def ask(service, *documents) -> list[list[dict]]:
    responses = frames.predict(service, [frames.ask(document) for document in documents])
    assert [response.status for response in responses] == [200] * len(documents), responses[0].body
    answers = [json.loads(response.body) for response in responses]
    return [answer.get("predictions", [answer]) for answer in answers]


def assert_judged(predictions: list[dict], expected: list[dict]) -> None:
    assert [prediction["labels"] for prediction in predictions] == [entry["labels"] for entry in expected]
    for prediction, entry in zip(predictions, expected, strict=True):
        np.testing.assert_allclose(prediction["scores"], entry["scores"], atol=1e-4)


def random_document(rng: random.Random) -> dict:
    texts = [" ".join(rng.choices(WORDS, k=rng.choice([1, 5, 12, 90]))) for _ in range(rng.randint(1, 4))]
    return {
        "texts": texts,
        "candidate_labels": rng.sample(LABELS, k=rng.randint(1, 5)),
        "multi_label": rng.random() < 0.5,
        "hypothesis_template": rng.choice(["This example is {}.", "it was a {} story", "{}"]),
    }


@pytest.mark.parametrize(
    "names",
    [
        ("contradiction", "neutral", "entailment"),
        ("ENTAILMENT", "neutral", "contradiction"),
        ("contradiction", "entails", "neutral"),
        ("entailment", "not_entailment"),
        ("not_entailment", "entailment"),
    ],
)
def test_random_texts_and_labels_are_judged_as_they_are_there(tmp_path, names):
    model = tiny_models.entailment(tmp_path / "model", names)
    service = worker.start(tmp_path, task="zero-shot-classification", max_batch_tokens=300)
    rng = random.Random(5)
    documents = [random_document(rng) for _ in range(8)]
    expected = [reference.judged(model, document) for document in documents]
    together = ask(service, *documents)
    for document, predictions, entries in zip(documents, together, expected, strict=True):
        assert_judged(predictions, entries)
        assert_judged(ask(service, document)[0], entries)


def test_the_scores_depend_on_where_the_labels_are(tmp_path):
    """So that the test above would notice."""
    document = {"text": "the battery died", "candidate_labels": ["film", "battery"]}
    scores = []
    for index, names in enumerate([("contradiction", "neutral", "entailment"), ("entailment", "neutral", "no")]):
        tiny_models.entailment(tmp_path / str(index) / "model", names)
        service = worker.start(tmp_path / str(index), task="zero-shot-classification")
        [several], [one] = ask(service, {**document, "multi_label": True}, document)
        scores += [max(several["scores"]), max(one["scores"])]
    assert len({round(score, 2) for score in scores}) == 4


def test_equal_pairs_are_computed_once(services, monkeypatch):
    service = services["zero-shot-classification"]
    encoder = service.handler.pipeline.task.encoder
    rows_seen = []
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda rows: rows_seen.append(len(rows)) or forward(rows))
    ask(
        service,
        {"texts": ["a story", "good", "a story"], "candidate_labels": ["film", "battery"]},
        {"text": "good", "candidate_labels": ["battery"], "multi_label": True},
        {"text": "good", "candidate_labels": "film,week"},
        {"text": "good", "candidate_labels": ["film"], "hypothesis_template": "it is {}"},
    )
    assert sum(rows_seen) == 2 * 2 + 1 + 1


def test_equal_scores_keep_the_order_of_the_labels(services):
    labels = ["film", "battery", "film "]
    [[prediction]] = ask(
        services["zero-shot-classification"], {"text": "a story", "candidate_labels": labels, "multi_label": True}
    )
    assert prediction["labels"].index("film") < prediction["labels"].index("film ")


def test_an_empty_text_is_a_text(services):
    """The pipeline refuses it; the model has an answer, as it has in every other task."""
    blank, empty = ask(
        services["zero-shot-classification"],
        *({"text": text, "candidate_labels": ["film", "battery"]} for text in (" ", "")),
    )
    assert empty == blank


def test_large_logits_stay_finite(services, monkeypatch):
    service = services["zero-shot-classification"]
    task = service.handler.pipeline.task
    monkeypatch.setattr(task, "forward", lambda rows: [np.float32([-900, 0, 900])] * len(rows))
    [[one]] = ask(service, {"text": "a", "candidate_labels": ["film", "battery"]})
    [[several]] = ask(service, {"text": "a", "candidate_labels": ["film", "battery"], "multi_label": True})
    assert (one["scores"], several["scores"]) == ([0.5, 0.5], [1, 1])


def test_nan_is_never_sent(tmp_path):
    tiny_models.entailment(tmp_path / "model")
    service = worker.start(tmp_path, task="zero-shot-classification", warm_up=False)
    worker.poison(service, "film")
    rows = [frames.ask({"text": "a story", "candidate_labels": ["good", label]}) for label in ("film", "battery")]
    bad, good = frames.predict(service, rows)
    assert (bad.status, good.status) == (500, 200)
    assert json.loads(bad.body)["error"]["type"] == "NonFiniteOutput"


def test_a_label_without_room_costs_only_its_request(services):
    """The tokenizer refuses the whole batch for it."""
    labels = ("film", "film " * 80, "good")
    rows = [frames.ask({"texts": ["a", "b"], "candidate_labels": [label, "week"]}) for label in labels]
    responses = frames.predict(services["zero-shot-classification"], rows)
    assert [response.status for response in responses] == [200, 413, 200]


def test_too_long_a_template(services):
    document = {"text": "a", "candidate_labels": ["film"], "hypothesis_template": "{}" + "a" * 20_000}
    [response] = frames.predict(services["zero-shot-classification"], [frames.ask(document)])
    assert response.status == 413
    assert "hypothesis_template: 20002 bytes; the limit is 20000" in response.body.decode()


def test_describe(services):
    [response] = frames.predict(services["zero-shot-classification"], [frames.Request([], {"describe": "True"})])
    document = json.loads(response.body)
    assert (document["entailment_label"], document["contradiction_label"]) == ("entailment", "contradiction")
    assert document["labels"] == ["contradiction", "neutral", "entailment"]


# -- which label says entailment


def test_the_configuration_names_the_label(tmp_path):
    named = tiny_models.entailment(tmp_path / "named" / "model", ("no", "perhaps", "entailment"))
    tiny_models.entailment(tmp_path / "model", ("no", "perhaps", "yes"))
    service = worker.start(tmp_path, task="zero-shot-classification", entailment_label="yes")
    document = {"texts": ["the battery died"], "candidate_labels": ["film", "battery"], "multi_label": True}
    assert_judged(ask(service, document)[0], reference.judged(named, document))


def test_the_configuration_beats_the_name(tmp_path):
    tiny_models.entailment(tmp_path / "model", ("entailment", "neutral", "entails too"))
    service = worker.start(tmp_path, task="zero-shot-classification", entailment_label="entails too")
    assert service.handler.pipeline.task.entailment == 2


@pytest.mark.parametrize(
    ("names", "handler", "says"),
    [
        (("no", "perhaps", "yes"), {}, "no label of the model begins with entail; .* one of no, perhaps, yes"),
        (("no", "yes"), {"entailment_label": "Yes"}, "entailment_label is none of the model's labels: no, yes"),
        (("entailment",), {}, "expected two or more"),
    ],
)
def test_a_model_that_does_not_say_what_entails(tmp_path, names, handler, says):
    tiny_models.entailment(tmp_path / "model", names)
    with pytest.raises(LoadError, match=says) as caught:
        worker.start(tmp_path, task="zero-shot-classification", **handler)
    assert "\n" not in str(caught.value)


def test_a_label_beyond_the_models_outputs(tmp_path):
    path = tiny_models.entailment(tmp_path / "model", ("no", "yes")) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "label2id": {"no": 0, "entailment": 2}}))
    with pytest.raises(LoadError, match="not those of entailment"):
        worker.start(tmp_path, task="zero-shot-classification")
