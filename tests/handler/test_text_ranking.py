"""Scores held against sentence-transformers' CrossEncoder, over its own files."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder

from handler.errors import LoadError
from handler.tasks.text_ranking import read_activation
from tests.support import frames, reference, tiny_models, worker

WORDS = [*" ".join(tiny_models.CORPUS).replace(",", " ,").split(), "zebra", "映画", "I'd", "..."]
IDENTITY = "torch.nn.modules.linear.Identity"


def ask(service, *documents) -> list[list[dict]]:
    responses = frames.predict(service, [frames.ask(document) for document in documents])
    assert [response.status for response in responses] == [200] * len(documents), responses[0].body
    return [json.loads(response.body)["results"] for response in responses]


def text(rng: random.Random, most: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(0, most)))


def assert_ranked(results: list[dict], expected: list[dict]) -> None:
    assert [entry["index"] for entry in results] == [entry["corpus_id"] for entry in expected]
    np.testing.assert_allclose(
        [entry["score"] for entry in results], [entry["score"] for entry in expected], atol=1e-4
    )


def write(directory: Path, name: str, **content) -> None:
    path = directory / name
    old = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**old, **content}))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("activation", [None, IDENTITY])
@pytest.mark.parametrize("seed", [1, 2])
def test_random_texts_rank_as_they_do_there(tmp_path, side, activation, seed):
    """Short pairs and pairs of which either text is cut, in batches of one request and of all."""
    model = tiny_models.ranker(tmp_path / "model", sentence_transformers={"activation_fn": activation})
    write(model, "tokenizer_config.json", truncation_side=side)
    service = worker.start(tmp_path, task="text-ranking", max_batch_tokens=300)
    rng = random.Random(seed)
    documents = [
        {"query": text(rng, rng.choice([5, 80])), "texts": [text(rng, rng.choice([8, 90])) for _ in range(size)]}
        for size in (1, 7, 12)
    ]
    expected = [reference.ranked(model, document) for document in documents]
    together = ask(service, *documents)
    alone = [ask(service, document)[0] for document in documents]
    for ranked, in_batch, by_itself in zip(expected, together, alone, strict=True):
        assert_ranked(in_batch, ranked)
        assert_ranked(by_itself, ranked)


def test_the_sides_of_truncation_differ(tmp_path):
    """So that the test above would notice."""
    scores = []
    for side in ("left", "right"):
        model = tiny_models.ranker(tmp_path / side / "model")
        write(model, "tokenizer_config.json", truncation_side=side)
        service = worker.start(tmp_path / side, task="text-ranking")
        [[entry]] = ask(service, {"query": "a week", "text": "good " * 60 + "story " * 60})
        scores.append(entry["score"])
    assert abs(scores[0] - scores[1]) > 1e-3


def test_equal_pairs_are_computed_once(services, monkeypatch):
    service = services["text-ranking"]
    encoder = service.handler.pipeline.task.encoder
    rows_seen = []
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda rows: rows_seen.append(len(rows)) or forward(rows))
    sigmoid, raw, _ = ask(
        service,
        {"query": "a week", "texts": ["a story", "good", "a story"]},
        {"query": "a week", "text": "a story", "raw_scores": True},
        {"query": "a story", "text": "a week"},
    )
    assert sum(rows_seen) == 3
    score = next(entry["score"] for entry in sigmoid if entry["index"] == 0)
    np.testing.assert_allclose(score, 1 / (1 + np.exp(-raw[0]["score"])), atol=1e-6)
    assert abs(score - raw[0]["score"]) > 1e-3


def test_the_configured_top_k_gives_way_to_the_request(tmp_path):
    tiny_models.ranker(tmp_path / "model")
    service = worker.start(tmp_path, task="text-ranking", top_k=1)
    document = {"query": "a week", "texts": ["a story", "good", "film"]}
    one, two = ask(service, document, {**document, "top_k": 2})
    assert (len(one), len(two)) == (1, 2)


def test_nan_is_never_sent(tmp_path):
    tiny_models.ranker(tmp_path / "model")
    service = worker.start(tmp_path, task="text-ranking", warm_up=False)
    worker.poison(service, "film")
    rows = [frames.ask({"query": query, "texts": ["a story", "good"]}) for query in ("a film", "a week")]
    bad, good = frames.predict(service, rows)
    assert (bad.status, good.status) == (500, 200)
    assert json.loads(bad.body)["error"]["type"] == "NonFiniteOutput"


def test_a_failed_pair_names_its_text(services, monkeypatch):
    service = services["text-ranking"]
    forward = worker.short_of_memory(
        service, lambda rows: max(map(len, rows)) <= 20, torch.OutOfMemoryError("CUDA out of memory")
    )
    monkeypatch.setattr(service.handler.pipeline.task, "forward", forward)
    [response] = frames.predict(service, [frames.ask({"query": "a week", "texts": ["a", "film " * 30]})])
    assert response.status == 507 and "texts[1]" in response.body.decode()


def test_describe(services):
    [response] = frames.predict(services["text-ranking"], [frames.Request([], {"describe": "True"})])
    document = json.loads(response.body)
    assert (document["task"], document["input"], document["activation"]) == ("text-ranking", "text", "Sigmoid")


# -- the activation


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"sentence_transformers": {"activation_fn": IDENTITY}},
        {"sentence_transformers": {"activation_fn": None}, "sbert_ce_default_activation_function": IDENTITY},
        {"sentence_transformers": {"version": "4.0"}, "sbert_ce_default_activation_function": IDENTITY},
        {"sbert_ce_default_activation_function": IDENTITY},
        {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"},
        {"sbert_ce_default_activation_function": None},
    ],
)
def test_the_activation_is_the_one_that_it_takes_there(tmp_path, config):
    write(tiny_models.ranker(tmp_path / "model"), "config.json", **config)
    there = CrossEncoder(str(tmp_path / "model"), device="cpu").activation_fn
    assert read_activation(tmp_path / "model").rpartition(".")[2] == type(there).__name__


@pytest.mark.parametrize("activation", [torch.nn.Identity(), torch.nn.Sigmoid()])
def test_a_model_that_cross_encoder_saved_itself(tmp_path, activation):
    """Its own file beats what config.json says."""
    tiny_models.ranker(tmp_path / "first", sentence_transformers={"activation_fn": IDENTITY})
    model = CrossEncoder(str(tmp_path / "first"), device="cpu", activation_fn=activation, max_length=20)
    model.save_pretrained(str(tmp_path / "model"))
    service = worker.start(tmp_path, task="text-ranking")
    texts = ["a wonderful story", "the film was not good at all and I would not see it again " * 2, "good"]
    [results] = ask(service, {"query": "was the film good", "texts": texts})
    assert_ranked(results, model.rank("was the film good", texts))


@pytest.mark.parametrize("model_type", ["SentenceTransformer", None])
def test_the_file_of_another_kind_of_model_is_not_read(tmp_path, model_type):
    model = tiny_models.ranker(tmp_path / "model")
    write(model, "config_sentence_transformers.json", model_type=model_type, activation_fn=IDENTITY)
    (model / "modules.json").write_text("[]")
    assert type(CrossEncoder(str(model), device="cpu").activation_fn).__name__ == "Sigmoid"
    assert read_activation(model).endswith("Sigmoid")


# -- what is refused at load


STAGES = [{"path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("config.json", {"sbert_ce_default_activation_function": "torch.nn.Tanh"}, "not supported: torch.nn.Tanh"),
        ("config.json", {"sentence_transformers": {"activation_fn": "os.abort"}}, "not supported: os.abort"),
        ("config.json", {"sentence_transformers": {"activation_fn": "a\nb"}}, r"not supported: a\?b"),
        ("config_sentence_transformers.json", {"activation_fn": "evil.Code"}, "not supported: evil.Code"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "default prompt"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"max_length": 9}}}, "processing_kwargs"),
        ("modules.json", [*STAGES, {"path": "1", "type": "x.Dense"}], "stages .* Transformer, Dense"),
    ],
)
def test_what_is_not_done_is_refused(tmp_path, name, content, says):
    model = tiny_models.ranker(tmp_path / "model")
    (model / "modules.json").write_text(json.dumps(STAGES))
    write(model, "config_sentence_transformers.json", model_type="CrossEncoder")
    if isinstance(content, list):
        (model / name).write_text(json.dumps(content))
    else:
        write(model, name, **content)
    with pytest.raises(LoadError, match=says) as caught:
        worker.start(tmp_path, task="text-ranking")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("labels", [2, 3])
def test_more_than_one_label_is_refused(tmp_path, labels):
    tiny_models.classifier(tmp_path / "model", labels=labels)
    with pytest.raises(LoadError, match=f"has {labels} labels; ranking takes a model with one"):
        worker.start(tmp_path, task="text-ranking")
