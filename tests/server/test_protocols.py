"""The protocols over the real server, with the clients that people have."""

from __future__ import annotations

import json
from contextlib import contextmanager

import grpc
import huggingface_hub
import numpy as np
import openai
import pytest
import requests
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from transformers import AutoTokenizer
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from client import ManagementClient
from tests.support import archives, scenarios
from tests.support import protocols as spoken
from tests.support.grpc import Inference, open_inference
from tests.support.listening import Quiet, listening
from tests.support.serving import served

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("workers_stay")]

NAMES = {"text-classification": "classifier", "feature-extraction": "embedder", "token-classification": "entities"}
TEXTS = list(spoken.TEXTS)
SETTINGS = [f"--set=handler.{name}={value}" for name, value in scenarios.LIMITS.items()]


@pytest.fixture(scope="module")
def server(tiny, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    for task, name in NAMES.items():
        archives.build_model(store, name, tiny[task] / "model", task, "--set=batchSize=8", *SETTINGS)
    models = [f"{name}.mar" for name in NAMES.values()]
    with served(store, models, environment={"TS_OPEN_INFERENCE_PROTOCOL": "oip"}) as running:
        yield running


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.grpc_address) as opened:
        yield opened


@pytest.fixture(scope="module")
def native(server):
    """What the native protocol answers."""

    def ask(name, **document):
        response = requests.post(f"{server.inference_url}/predictions/{name}", json=document, timeout=30)
        assert response.status_code == 200, response.text
        return response.json()

    return ask


@contextmanager
def gateway(server):
    """What a gateway has to do for clients of the Open Inference Protocol over HTTP: rewrite two paths."""
    management = ManagementClient(server.management_url)

    class Gateway(Quiet):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            *_, name = self.path.removesuffix("/ready").split("/")
            if self.path.endswith("/ready"):
                [model] = [model for model in management.models() if model.name == name]
                self.answer(200 if any(worker.status == "READY" for worker in model.workers) else 503, b"")
            else:
                url = f"{server.inference_url}/predictions/{name}/1.0/v2/metadata"
                answered = requests.get(url, timeout=30)
                self.answer(answered.status_code, answered.content)

        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            answered = requests.post(server.inference_url + self.path, body, headers=self.headers, timeout=30)
            header = "inference-header-content-length"
            told = {header: answered.headers[header]} if header in answered.headers else {}
            self.answer(answered.status_code, answered.content, told)

        def answer(self, status, body, headers=None):
            self.send_response(status)
            for name, value in {"content-length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    with listening(Gateway) as (host, port):
        yield f"{host}:{port}"


# -- tritonclient over HTTP


def http_tensor(name, values, datatype, binary=True):
    tensor = triton_http.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values, binary_data=binary)
    return tensor


@pytest.mark.parametrize("binary", [True, False])
def test_triton_over_http(server, native, tiny, binary):
    """As the client of the project's first documents uses it, and with texts."""
    wanted = native("classifier", texts=TEXTS)["predictions"]
    with gateway(server) as url, triton_http.InferenceServerClient(url) as client:
        assert client.is_model_ready("classifier")
        metadata = client.get_model_metadata("classifier")
        assert metadata["inputs"][0] == {"name": "text", "datatype": "BYTES", "shape": [-1]}
        texts = http_tensor("text", np.array(TEXTS, object), "BYTES", binary)
        answered = client.infer("classifier", [texts], request_id="7")
        labels = [label.decode() if isinstance(label, bytes) else label for label in answered.as_numpy("label")]
        assert labels == [one["label"] for one in wanted] and answered.get_response()["id"] == "7"
        encoded = AutoTokenizer.from_pretrained(tiny["text-classification"] / "model")(
            TEXTS, padding=True, return_tensors="np"
        )
        tensors = [http_tensor(name, encoded[name], "INT64", binary) for name in ("input_ids", "attention_mask")]
        outputs = [triton_http.InferRequestedOutput("logits", binary_data=binary)]
        logits = client.infer("classifier", tensors, outputs=outputs).as_numpy("logits")
        np.testing.assert_allclose(logits, answered.as_numpy("logits"), atol=1e-5)
        exponents = np.exp(logits)
        np.testing.assert_allclose(
            exponents / exponents.sum(axis=1, keepdims=True), [one["probabilities"] for one in wanted], atol=1e-4
        )
        best = client.infer("classifier", [texts], parameters={"top_k": 1})
        np.testing.assert_allclose(best.as_numpy("score"), [one["confidence"] for one in wanted], atol=1e-4)


def test_triton_is_told_what_is_wrong(server):
    with triton_http.InferenceServerClient(server.inference_url.removeprefix("http://")) as client:
        for tensor in (
            http_tensor("texts_", np.array(["a"], object), "BYTES"),
            http_tensor("input_ids", np.array([[10**6]]), "INT64"),
        ):
            with pytest.raises(InferenceServerException, match=r"text is missing|expected ids from 0"):
                client.infer("classifier", [tensor])


# -- KServe's routes, Hugging Face's and OpenAI's requests


def test_kserves_own_routes(server, native):
    wanted = native("classifier", texts=TEXTS)["predictions"]
    answered = requests.post(
        f"{server.inference_url}/v1/models/classifier:predict", json={"instances": TEXTS}, timeout=30
    )
    assert answered.json() == {"predictions": wanted}
    document = spoken.tensors("text-classification")
    answered = requests.post(
        f"{server.inference_url}/v2/models/classifier/infer", json=document, timeout=30
    ).json()
    [label] = [tensor["data"] for tensor in answered["outputs"] if tensor["name"] == "label"]
    assert label == [one["label"] for one in wanted]
    assert requests.get(f"{server.inference_url}/v2/health/ready", timeout=30).status_code == 200


def test_hugging_faces_requests(server, native):
    answered = requests.post(
        f"{server.inference_url}/predictions/classifier", json={"inputs": TEXTS[0]}, timeout=30
    ).json()
    wanted = native("classifier", text=TEXTS[0])
    assert answered == [{"label": wanted["label"], "score": wanted["confidence"]}]


def test_the_hubs_client(server, native, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    client = huggingface_hub.InferenceClient(
        f"{server.inference_url}/predictions/classifier/1.0/v1/hub", token="-"
    )
    found = client.text_classification(TEXTS[0])
    wanted = sorted(native("classifier", text=TEXTS[0])["probabilities"], reverse=True)
    np.testing.assert_allclose([one.score for one in found], wanted, atol=1e-4)


def test_the_openai_client(server, native):
    url = f"{server.inference_url}/predictions/embedder/1.0/v1"
    with openai.OpenAI(base_url=url, api_key="-", max_retries=0) as client:
        # It asks for base64 by itself, and for floats where it is told to.
        for told in ({}, {"encoding_format": "float"}):
            answered = client.embeddings.create(model="embedder", input=TEXTS, **told)
            vectors = [entry.embedding for entry in answered.data]
            np.testing.assert_allclose(vectors, native("embedder", texts=TEXTS)["embeddings"], atol=1e-5)
        with pytest.raises(openai.NotFoundError, match="only embedder"):
            client.embeddings.create(model="other", input="a")


def test_digests_are_described(server):
    [model] = requests.get(f"{server.management_url}/models/classifier?customized=true", timeout=30).json()
    described = model["customizedMetadata"]
    assert len(described["sha256"]["model.safetensors"]) == 64 and "config.json" in described["sha256"]


# -- TorchServe's own gRPC


def test_torchserves_grpc(channel, native):
    inference, wanted = Inference(channel), native("classifier", text="a")
    assert json.loads(inference.predict("classifier", data=b'{"text": "a"}')) == wanted
    assert json.loads(inference.predict("classifier", text=b"a")) == wanted
    assert [json.loads(piece) for piece in inference.stream("classifier", data=b'{"text": "a"}')] == [wanted]
    assert json.loads(inference.predict("classifier", body=b'{"instances": ["a"]}')) == {"predictions": [wanted]}


@pytest.mark.parametrize("parameters", [{}, {"data": b""}, {"x": b"\xff"}, {"data": b'{"inputs": 7}'}])
def test_wrong_requests_over_grpc(channel, parameters):
    """Errors are answers there: TorchServe has no other way that would not fail the whole batch."""
    inference = Inference(channel)
    [streamed] = inference.stream("classifier", **parameters)
    assert json.loads(streamed) == json.loads(inference.predict("classifier", **parameters))
    assert "error" in json.loads(streamed)


# -- TorchServe's Open Inference gRPC


def infer_request(name, tensors, **fields):
    request = service_pb2.ModelInferRequest(model_name=name, id="7", **fields)
    for tensor in tensors:
        told = request.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        if tensor["datatype"] == "BYTES":
            told.contents.bytes_contents.extend(text.encode() for text in tensor["data"])
        else:
            told.contents.int64_contents.extend(np.ravel(tensor["data"]).tolist())
    return request


def infer(channel, name, tensors, **fields):
    request = infer_request(name, tensors, **fields)
    answered = open_inference(channel, "ModelInfer", request, service_pb2.ModelInferResponse)
    return answered, {tensor.name: tensor for tensor in answered.outputs}


def test_open_inference_grpc(channel, native, tiny):
    wanted = native("classifier", texts=TEXTS)["predictions"]
    answered, outputs = infer(channel, "classifier", [spoken.text_tensor("text", TEXTS)])
    assert (answered.id, answered.model_name, answered.model_version) == ("7", "classifier", "1.0")
    # The frontend writes each element of BYTES as JSON, strings in quotes.
    labels = [json.loads(label) for label in outputs["label"].contents.bytes_contents]
    assert labels == [one["label"] for one in wanted]
    tokenizer = AutoTokenizer.from_pretrained(tiny["text-classification"] / "model")
    _, of_tokens = infer(channel, "classifier", spoken.tokenized(tokenizer, TEXTS))
    for name in ("logits", "probabilities", "score"):
        np.testing.assert_allclose(
            of_tokens[name].contents.fp32_contents, outputs[name].contents.fp32_contents, atol=1e-5
        )
    np.testing.assert_allclose(
        outputs["probabilities"].contents.fp32_contents, np.ravel([p["probabilities"] for p in wanted]), atol=1e-4
    )
    _, outputs = infer(channel, "entities", [spoken.text_tensor("text", TEXTS[:1])])
    [entities] = outputs["entities"].contents.bytes_contents
    assert json.loads(entities) == native("entities", text=TEXTS[0])["entities"]


WRONG = [
    [],
    [spoken.text_tensor("x", ["a"])],
    [{**spoken.text_tensor("text", ["a"]), "shape": [2]}],
    [{"name": "input_ids", "datatype": "INT64", "shape": [1, 1], "data": [10**9]}],
    [{"name": "input_ids", "datatype": "BYTES", "shape": [1], "data": ["a"]}],
]


@pytest.mark.parametrize("tensors", WRONG)
def test_wrong_requests_over_open_inference_grpc(channel, tensors):
    answered, outputs = infer(channel, "classifier", tensors)
    [error] = outputs["error"].contents.bytes_contents
    assert list(outputs) == ["error"] and 400 <= json.loads(error)["code"] < 500
    assert answered.model_name == "classifier"


def test_what_tritons_grpc_client_sends_is_lost_in_torchserve(channel):
    """Its tensors are raw, which the frontend does not hand on: the answer says so, and the worker lives."""
    tensor = triton_grpc.InferInput("text", [1], "BYTES")
    tensor.set_data_from_numpy(np.array(["a"], object))
    request = service_pb2.ModelInferRequest(model_name="classifier")
    request.inputs.append(tensor._get_tensor())
    request.raw_input_contents.append(tensor._get_content())
    answered = open_inference(channel, "ModelInfer", request, service_pb2.ModelInferResponse)
    [error] = answered.outputs[0].contents.bytes_contents
    assert "raw_input_contents" in json.loads(error)["error"]
