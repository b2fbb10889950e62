"""huggingface_hub's InferenceClient, pointed at workers."""

from __future__ import annotations

import json
import threading

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from tests.support import frames, tiny_models, worker
from tests.support import protocols as spoken
from tests.support.answers import assert_scored
from tests.support.listening import Quiet, listening

TEXT = spoken.TEXTS[1]


@pytest.fixture(scope="module")
def url(services):
    """HTTP in front of the workers: /predictions/TASK/VERSION/PATH, as TorchServe's frontend has it."""
    one_at_a_time = threading.Lock()

    class Front(Quiet):
        def do_POST(self):
            _, _, task, *rest = self.path.split("/", 4)
            body = self.rfile.read(int(self.headers["content-length"]))
            asked = frames.post(body, self.headers["content-type"], url_path="".join(rest[1:]))
            with one_at_a_time:
                [response] = frames.predict(services[task], [asked])
            self.send_response(response.status)
            self.send_header("content-type", response.content_type)
            self.send_header("content-length", str(len(response.body)))
            self.end_headers()
            self.wfile.write(response.body)

    with listening(Front) as (host, port):
        yield f"http://{host}:{port}/predictions"


@pytest.fixture(params=["", "/1.0/v1/hub"])
def client(request, url, monkeypatch):
    """Task -> a client of it, at either address."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return lambda task: InferenceClient(f"{url}/{task}{request.param}", token="-")


@pytest.fixture
def hub(url, monkeypatch):
    """Task -> a client of it, at the address for such clients."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return lambda task: InferenceClient(f"{url}/{task}/1.0/v1/hub", token="-")


def native(services, task, **document):
    status, answered = frames.answer(services[task], document)
    assert status == 200
    return answered


def test_text_classification(services, hub):
    task = "text-classification"
    found = hub(task).text_classification(TEXT)
    wanted = native(services, task, text=TEXT)["probabilities"]
    np.testing.assert_allclose([one.score for one in found], sorted(wanted, reverse=True), atol=1e-4)
    assert found[0].label == f"LABEL_{np.argmax(wanted)}"
    assert hub(task).text_classification(TEXT, top_k=2) == found[:2]


def test_zero_shot_classification(services, hub):
    task, labels = "zero-shot-classification", ["film", "battery"]
    for more in ({}, {"multi_label": True, "hypothesis_template": "It is {}."}):
        found = hub(task).zero_shot_classification(TEXT, labels, **more)
        wanted = native(services, task, text=TEXT, candidate_labels=labels, **more)
        assert [one.label for one in found] == wanted["labels"]
        np.testing.assert_allclose([one.score for one in found], wanted["scores"], atol=1e-4)


def test_token_classification(services, client):
    task = "token-classification"
    for strategy in ("simple", "first"):
        found = client(task).token_classification(TEXT, aggregation_strategy=strategy)
        wanted = native(services, task, text=TEXT, aggregation_strategy=strategy)["entities"]
        assert_scored(
            [{"entity_group": one.entity_group, "score": one.score, "word": one.word} for one in found],
            [{name: one[name] for name in ("entity_group", "score", "word")} for one in wanted],
        )


def test_fill_mask(services, client):
    task, text = "fill-mask", spoken.MASKED[1]
    for more in ({}, {"top_k": 2}, {"targets": ["film", "story"]}):
        found = client(task).fill_mask(text, **more)
        wanted = native(services, task, text=text, **more)["predictions"]
        assert [one.token_str for one in found] == [one["token_str"] for one in wanted]


def test_question_answering(services, client):
    task, asked = "question-answering", {"question": "who?", "context": spoken.CONTEXT}
    assert client(task).question_answering(**asked).answer == native(services, task, **asked)["answer"]
    several = client(task).question_answering(**asked, top_k=2, align_to_words=False)
    wanted = native(services, task, **asked, top_k=2, align_to_words=False)["answers"]
    assert [one.answer for one in several] == [one["answer"] for one in wanted]


def test_feature_extraction(services, client):
    task, texts = "feature-extraction", list(spoken.TEXTS)
    wanted = native(services, task, texts=texts)["embeddings"]
    same = {"normalize": False, "dimensions": 32, "truncation_direction": "right", "encoding_format": "float"}
    for more in ({}, {"truncate": True}, same):
        np.testing.assert_allclose(client(task).feature_extraction(texts, **more), wanted, atol=1e-4)
    np.testing.assert_allclose(client(task).feature_extraction(texts[0]), wanted[0], atol=1e-4)


@pytest.mark.parametrize(
    ("keys", "status", "says"),
    [
        ({"normalize": True}, 422, "normalize: this model's vectors do not have unit length"),
        ({"dimensions": 7}, 422, "dimensions: this model's vectors have 32"),
        ({"prompt_name": "query"}, 422, "prompt_name: prompts are not put before texts"),
        ({"truncation_direction": "left"}, 422, "truncation_direction: expected right"),
        ({"encoding_format": "base64"}, 422, "encoding_format: expected float"),
        ({"truncate": True, "parameters": {"truncation": True}}, 422, "truncation: is also in parameters"),
        ({"truncate": 7}, 422, "truncation: expected true or false"),
        ({"options": {"use_caches": True}}, 422, "use_caches: unknown key"),
        ({"options": []}, 422, "options: expected an object"),
    ],
)
def test_what_a_model_does_not_do_is_refused(services, keys, status, says):
    answered, document = frames.answer(services["feature-extraction"], {"inputs": TEXT, **keys})
    assert answered == status and says in document["error"]
    assert frames.answer(services["text-classification"], {"inputs": TEXT, "normalize": False})[0] == 422


def test_the_hubs_words_about_its_queue_and_cache_change_nothing(services):
    # HuggingFaceInferenceAPIEmbeddings of langchain-community 0.4.2 says them by itself
    options = {"wait_for_model": True, "use_cache": True}
    for service in (services["feature-extraction"], services["text-classification"]):
        plain = frames.answer(service, {"inputs": [TEXT]})
        assert plain[0] == 200 and frames.answer(service, {"inputs": [TEXT], "options": options}) == plain


def test_vectors_of_unit_length_may_be_asked_for_where_they_are(tmp_path):
    tiny_models.encoder(tmp_path / "model", "mean_tokens", normalize=True)
    service = worker.start(tmp_path, task="feature-extraction")
    [status, vector] = frames.answer(service, {"inputs": TEXT, "normalize": True})
    assert status == 200 and np.linalg.norm(vector) == pytest.approx(1, abs=1e-4)


def test_what_the_client_is_told(hub):
    with pytest.raises(HfHubHTTPError, match="422"):
        hub("text-classification").text_classification(TEXT, function_to_apply="none")
    with pytest.raises(HfHubHTTPError, match="422"):
        hub("feature-extraction").sentence_similarity(TEXT, ["a", "b"])


@pytest.mark.parametrize(("body", "status"), [(b"{", 400), (b"[]", 400), (b"{}", 422), (b'{"inputs": null}', 422)])
def test_wrong_bodies(services, body, status):
    for service in services.values():
        [response] = frames.predict(service, [frames.post(body, url_path="v1/hub")])
        assert response.status in (status, 422) and response.body.startswith(b'{"error":"')


def test_lists(services):
    texts, labels = list(spoken.TEXTS), {"candidate_labels": ["film", "battery"]}
    for task, more in (("text-classification", {}), ("zero-shot-classification", labels)):
        body = {"inputs": texts, "parameters": more}
        [response] = frames.predict(services[task], [frames.post(json.dumps(body).encode(), url_path="v1/hub")])
        answered = json.loads(response.body)
        assert len(answered) == 3 and all(one.keys() == {"label", "score"} for text in answered for one in text)
