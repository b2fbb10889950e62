"""Every protocol for every task: each asks for the same, and tells the same results in its own way."""

from __future__ import annotations

import base64
import json
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers
import tritonclient.http as triton_http
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from handler.errors import InvalidRequest
from handler.protocols import table
from handler.protocols.gathering import gather
from handler.protocols.protocol import Model
from serving.open_inference import read_answer, write_request
from tests.support import frames, scenarios, tiny_models, worker
from tests.support import protocols as spoken
from tests.support.answers import assert_scored

TOKENIZED = ("text-classification", "feature-extraction", "fill-mask")
HEADER = "Inference-Header-Content-Length"
DTYPES = {"FP32": "<f4", "FP64": "<f8", "INT64": "<i8", "BOOL": "?"}


def ask(service, request):
    [response] = frames.predict(service, [request])
    return response.status, json.loads(response.body)


def good(service, request):
    status, document = ask(service, request)
    assert status == 200, document
    return document


def columns(document):
    """An answer of the Open Inference Protocol: name -> array, or list of what BYTES hold."""
    found = {}
    for tensor in document["outputs"]:
        assert np.prod(tensor["shape"]) == len(tensor["data"])
        if tensor["datatype"] == "BYTES":
            found[tensor["name"]] = tensor["data"]
        else:
            found[tensor["name"]] = np.array(tensor["data"], DTYPES[tensor["datatype"]]).reshape(tensor["shape"])
    return found


def expected_columns(task, native):
    """What the native answer comes to as tensors."""
    if task == "feature-extraction":
        return {"embedding": native["embeddings"]}
    if task == "text-ranking":
        return {"score": [entry["score"] for entry in sorted(native["results"], key=lambda e: e["index"])]}
    each = native["predictions"]
    if task == "text-classification":
        probabilities = [one["probabilities"] for one in each]
        return {
            "label": [one["label"] for one in each],
            "score": np.max(probabilities, axis=1),
            "probabilities": probabilities,
        }
    if task == "zero-shot-classification":
        scores = [[one["scores"][one["labels"].index(name)] for name in ("film", "battery")] for one in each]
        return {"label": [one["labels"][0] for one in each], "score": np.max(scores, axis=1), "scores": scores}
    if task == "question-answering":
        return {name: [one[name] for one in each] for name in ("answer", "score", "start", "end")}
    name = {"token-classification": "entities", "fill-mask": "fillings"}[task]
    return {name: [one["entities"] if task == "token-classification" else one for one in each]}


def assert_columns(found, wanted):
    for name, values in wanted.items():
        if isinstance(found[name], list) and not isinstance(values[0], str):
            assert_scored([json.loads(text) for text in found[name]], values)
        elif isinstance(found[name], list):
            assert found[name] == list(values)
        else:
            np.testing.assert_allclose(found[name], values, atol=1e-5)


# -- the same request and the same results


@pytest.mark.parametrize("task", scenarios.TASKS)
def test_instances_get_predictions(services, task):
    native = good(services[task], spoken.native(task))
    document = good(services[task], spoken.instances(task))
    assert set(document) == {"predictions"}
    if task == "text-ranking":
        wanted = expected_columns(task, native)["score"]
    else:
        wanted = native["embeddings"] if task == "feature-extraction" else native["predictions"]
    assert document["predictions"] == wanted


@pytest.mark.parametrize("task", scenarios.TASKS)
@pytest.mark.parametrize("form", ["json", "binary", "path", "grpc"])
def test_tensors_get_tensors(services, task, form):
    wanted = expected_columns(task, good(services[task], spoken.native(task)))
    document = spoken.tensors(task)
    if form == "grpc":
        for tensor in document["inputs"]:
            tensor["data"] = [base64.b64encode(text.encode()).decode() for text in tensor["data"]]
    request = {
        "json": frames.ask,
        "binary": spoken.binary,
        "path": lambda d: frames.post(json.dumps(d).encode(), url_path="v2/infer"),
        "grpc": spoken.over_open_inference_grpc,
    }[form](document)
    answered = good(services[task], request)
    assert (answered["model_name"], answered["model_version"], answered["id"]) == ("tiny", "1.0", "7")
    for tensor in answered["outputs"]:
        if form == "grpc":  # where the frontend writes each element of BYTES as JSON
            tensor["data"] = [x if isinstance(x, (str, int, float)) else json.dumps(x) for x in tensor["data"]]
    assert_columns(columns(answered), wanted)
    declared = {column.name for column in services[task].handler.pipeline.task.outputs}
    assert declared == {tensor["name"] for tensor in answered["outputs"]}


@pytest.mark.parametrize("task", scenarios.TASKS)
def test_binary_outputs(services, task):
    plain = columns(good(services[task], frames.ask(spoken.tensors(task))))
    document = {**spoken.tensors(task), "parameters": {"binary_data_output": True}}
    [response] = frames.predict(services[task], [spoken.binary(document)])
    length = int(response.headers[HEADER])
    head, rest = json.loads(response.body[:length]), response.body[length:]
    assert response.status == 200 and response.content_type == "application/octet-stream"
    for tensor in head["outputs"]:
        size = tensor["parameters"]["binary_data_size"]
        content, rest = rest[:size], rest[size:]
        if tensor["datatype"] == "BYTES":
            texts = []
            while content:
                [count] = struct.unpack_from("<I", content)
                texts.append(content[4 : 4 + count].decode())
                content = content[4 + count :]
            assert texts == plain[tensor["name"]]
        else:
            values = np.frombuffer(content, DTYPES[tensor["datatype"]]).reshape(tensor["shape"])
            np.testing.assert_array_equal(values, plain[tensor["name"]])
    assert rest == b""


def test_the_outputs_that_are_named(services):
    service = services["text-classification"]
    outputs = [{"name": "logits"}, {"name": "label", "parameters": {"binary_data": False}}]
    answered = good(service, frames.ask(spoken.tensors("text-classification", outputs=outputs)))
    found = columns(answered)
    assert list(found) == ["logits", "label"]
    exponents = np.exp(found["logits"])
    probabilities = [one["probabilities"] for one in good(service, spoken.native(TOKENIZED[0]))["predictions"]]
    np.testing.assert_allclose(exponents / exponents.sum(axis=1, keepdims=True), probabilities, atol=1e-6)
    status, refused = ask(service, frames.ask(spoken.tensors(TOKENIZED[0], outputs=[{"name": "logit"}])))
    assert status == 422 and refused["error"].startswith("outputs: logit is none of label")


def test_an_output_over_grpc_is_raw_whatever_its_parameters_say(services):
    request = service_pb2.ModelInferRequest(model_name="tiny")
    told = request.inputs.add(name="text", datatype="BYTES", shape=[1])
    told.contents.bytes_contents.append(b"a")
    request.parameters["binary_data_output"].bool_param = False
    request.outputs.add(name="label").parameters["binary_data"].bool_param = False
    request.outputs.add(name="score")
    body, length = write_request(request)
    [response] = frames.predict(services[TOKENIZED[0]], [frames.post(body, **{HEADER: str(length)})])
    answered = read_answer(response.body, int(response.headers[HEADER]))
    assert [output.name for output in answered.outputs] == ["label", "score"]
    assert answered.raw_output_contents[0][4:].startswith(b"LABEL_") and len(answered.raw_output_contents[1]) == 4


def triton_request(**more):
    tensor = triton_http.InferInput("text", [1], "BYTES")
    tensor.set_data_from_numpy(np.array(["a"], object))
    body, length = triton_http.InferenceServerClient.generate_request_body([tensor], **more)
    return frames.post(bytes(body), "application/octet-stream", **{HEADER: str(length)})


def test_words_of_triton_and_mlserver_about_themselves(services):
    service = services["text-classification"]
    plain, hinted = frames.predict(service, [triton_request(), triton_request(priority=1, timeout=1000)])
    assert plain.status == 200 and hinted.body == plain.body
    # MLServer 1.7.1's StringRequestCodec.encode_request
    hint = {"content_type": "str"}
    tensor = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "parameters": hint, "data": ["a"]}
    answered = good(service, frames.ask({"parameters": hint, "inputs": [tensor]}))
    assert answered == good(service, frames.ask({"inputs": [spoken.text_tensor("text", ["a"])]}))
    status, refused = ask(service, triton_request(sequence_id=5, sequence_start=True))
    assert status == 422 and refused["error"].startswith("parameters: sequences are not offered")


# -- Hugging Face, beside transformers' own pipelines


@pytest.fixture(scope="module")
def pipelines(tiny):
    made = {}

    def make(task):
        if task not in made:
            made[task] = transformers.pipeline(task, model=str(tiny[task] / "model"), device="cpu")
        return made[task]

    return make


ONE, LIST = spoken.TEXTS[0], list(spoken.TEXTS)
LABELS = {"candidate_labels": ["film", "battery"]}
MASKED = list(spoken.MASKED)
PIPED = [
    ("text-classification", ONE, {}),
    ("text-classification", LIST, {}),
    ("text-classification", [ONE], {}),
    ("text-classification", ONE, {"top_k": 2}),
    ("text-classification", LIST, {"top_k": 2}),
    ("text-classification", LIST, {"top_k": None}),
    ("text-classification", ONE, {"top_k": 1}),
    ("token-classification", ONE, {"aggregation_strategy": "simple"}),
    ("token-classification", LIST, {"aggregation_strategy": "none"}),
    ("token-classification", [ONE], {"aggregation_strategy": "first"}),
    ("zero-shot-classification", ONE, LABELS),
    ("zero-shot-classification", [ONE], LABELS),
    ("zero-shot-classification", LIST, {**LABELS, "multi_label": True}),
    ("fill-mask", MASKED[0], {}),
    ("fill-mask", MASKED, {"top_k": 2}),
    ("fill-mask", MASKED[:1], {}),
    ("fill-mask", "a [MASK] and [MASK]", {}),
]


@pytest.mark.parametrize(("task", "inputs", "parameters"), PIPED)
def test_as_the_pipeline(services, pipelines, task, inputs, parameters):
    answered = good(services[task], frames.ask({"inputs": inputs, "parameters": parameters}))
    expected = json.loads(json.dumps(pipelines(task)(inputs, **parameters), default=float))
    if task == "zero-shot-classification":
        for found, wanted in zip(np.ravel([answered]), np.ravel([expected]), strict=True):
            np.testing.assert_allclose(found.pop("scores"), wanted.pop("scores"), atol=1e-4)
        assert answered == expected
    else:
        assert_scored(answered, expected)


def test_vectors_are_the_pipelines_pooled(services, pipelines):
    answered = good(services["feature-extraction"], frames.ask({"inputs": LIST}))
    tokens = pipelines("feature-extraction")(LIST)  # text -> (1, tokens, size)
    np.testing.assert_allclose(answered, [np.mean(vectors[0], axis=0) for vectors in tokens], atol=1e-4)
    assert good(services["feature-extraction"], frames.ask({"inputs": ONE})) == pytest.approx(
        answered[0], abs=1e-5
    )


def test_answers_as_transformers_4_shaped_them(services):
    service, one = services["question-answering"], {"question": "who?", "context": spoken.CONTEXT}
    native = good(service, frames.ask(one))
    assert_scored(good(service, frames.ask({"inputs": one})), native)
    assert_scored(good(service, frames.ask({"inputs": [one]})), native)
    assert_scored(good(service, frames.ask({"inputs": [one, one]})), [native, native])
    several = good(service, frames.ask({"inputs": one, "parameters": {"top_k": 3}}))
    assert_scored(several, good(service, frames.ask({**one, "top_k": 3}))["answers"])
    assert len(several) == 3
    other = {**one, "context": "the battery died"}
    assert_scored(good(service, frames.ask({"inputs": [one, other]}))[1], good(service, frames.ask(other)))


def test_ranked_texts(services):
    service = services["text-ranking"]
    wanted = good(service, spoken.native("text-ranking"))["results"]
    assert good(service, spoken.hugging_face("text-ranking")) == wanted


# -- OpenAI's embeddings


def embeddings(service, **fields):
    body = json.dumps({"model": "tiny", **fields}).encode()
    return ask(service, frames.post(body, url_path="v1/embeddings"))


def test_openai_embeddings(tiny, services):
    service = services["feature-extraction"]
    vectors = good(service, spoken.native("feature-extraction"))["embeddings"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny["feature-extraction"] / "model")
    ids = tokenizer(LIST)["input_ids"]
    for given_ in (LIST, ids):
        status, document = embeddings(service, input=given_)
        assert status == 200 and document["object"] == "list" and document["model"] == "tiny"
        assert [entry["embedding"] for entry in document["data"]] == vectors
        assert [entry["index"] for entry in document["data"]] == [0, 1, 2]
        assert document["usage"] == dict.fromkeys(("prompt_tokens", "total_tokens"), sum(map(len, ids)))
    status, document = embeddings(service, input=ONE, encoding_format="base64", dimensions=32, user="a")
    content = base64.b64decode(document["data"][0]["embedding"])
    np.testing.assert_allclose(np.frombuffer(content, "<f4"), vectors[0], atol=1e-5)
    assert len(embeddings(service, input=ids[0])[1]["data"]) == 1


def test_an_embedder_is_known_by_its_name_on_the_hub(tiny, services):
    named = worker.start(tiny["feature-extraction"], task="feature-extraction", served_model_names=["org/tiny"])
    assert embeddings(named, input=ONE, model="org/tiny") == embeddings(services["feature-extraction"], input=ONE)
    assert embeddings(named, input=ONE, model="other")[0] == 404
    models = good(named, frames.post(b"", "", url_path="v1/models"))
    assert models["object"] == "list" and [model["id"] for model in models["data"]] == ["tiny", "org/tiny"]
    one = good(named, frames.post(b"", "", url_path="v1/models/org/tiny"))
    assert one == {**one, "id": "org/tiny", "object": "model"}
    status, document = ask(named, frames.post(b"", "", url_path="v1/models/other"))
    assert status == 404 and "only tiny, org/tiny" in document["error"]["message"]


def test_a_model_that_embeds_nothing_has_no_openai_protocol(services):
    status, document = ask(services["text-classification"], frames.post(b"", "", url_path="v1/models"))
    assert status == 404 and document["error"]["message"] == "this model makes no embeddings"


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({"input": "a", "model": "other"}, 404, "only tiny is served"),
        ({"input": "a", "dimensions": 7}, 400, "vectors have 32"),
        ({"input": "a", "encoding_format": "int8"}, 400, "one of float, base64"),
        ({"inputs": "a"}, 400, "input"),
        ({"input": []}, 400, "at least one"),
        ({"input": [[]]}, 400, "expected a string"),
        ({"input": [[64, 11364, 3446]]}, 400, "of this model's own tokenizer"),  # LangChain's, by cl100k_base
        ({"input": ["a"] * 33}, 413, "the limit is 32"),
    ],
)
def test_openai_errors_have_its_shape(services, fields, status, says):
    answered, document = embeddings(services["feature-extraction"], **fields)
    assert answered == status and says in document["error"]["message"]
    assert document["error"].keys() == {"message", "type", "param", "code"}


def test_no_embeddings_from_what_makes_none(services):
    status, document = embeddings(services["text-classification"], input="a")
    assert status == 404 and document["error"]["type"] == "invalid_request_error"


# -- what a client has tokenized itself


@pytest.mark.parametrize("task", TOKENIZED)
def test_tokens_get_what_their_text_gets(tiny, services, task):
    _, inputs, _ = spoken.GOOD[task]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny[task] / "model")
    wanted = columns(good(services[task], frames.ask(spoken.tensors(task))))
    tensors = spoken.tokenized(tokenizer, inputs)
    assert {tensor["name"] for tensor in tensors} == {"input_ids", "attention_mask", "token_type_ids"}
    for request in (frames.ask({"inputs": tensors}), spoken.binary({"inputs": tensors})):
        found = columns(good(services[task], request))
        for name, values in wanted.items():
            if isinstance(values, list) and task == "fill-mask":
                assert_scored(list(map(json.loads, found[name])), list(map(json.loads, values)))
            elif isinstance(values, list):
                assert found[name] == values
            else:
                np.testing.assert_allclose(found[name], values, atol=1e-5)


def test_tokens_of_pairs(tiny, services):
    task = "text-ranking"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny[task] / "model")
    _, texts, beside = spoken.GOOD[task]
    wanted = columns(good(services[task], frames.ask(spoken.tensors(task))))["score"]
    tensors = spoken.tokenized(tokenizer, [beside["query"]] * 3, list(texts))
    np.testing.assert_allclose(
        columns(good(services[task], frames.ask({"inputs": tensors})))["score"], wanted, atol=1e-5
    )


def test_equal_tokens_are_computed_once_and_padding_is_none_of_them(services, monkeypatch):
    service, seen = services["text-classification"], []
    encoder = service.handler.pipeline.task.encoder
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda rows: seen.extend(map(len, rows)) or forward(rows))
    ids = spoken.number_tensor("input_ids", np.array([[2, 9, 3, 0], [0, 2, 9, 3], [2, 9, 9, 3]]))
    mask = spoken.number_tensor("attention_mask", np.array([[1, 1, 1, 0], [0, 1, 1, 1], [1, 1, 1, 1]]))
    frames.predict(service, [frames.ask({"inputs": [ids, mask]})] * 2)
    assert sorted(seen) == [3, 4]


def test_an_encoder_that_pads_on_the_left_takes_tokens(tmp_path):
    tiny_models.left_filler(tmp_path / "model")
    service = worker.start(tmp_path, task="fill-mask")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    texts = [f"a {tokenizer.mask_token} story", f"the film was {tokenizer.mask_token} and long"]
    wanted = columns(good(service, frames.ask({"inputs": [spoken.text_tensor("text", texts)]})))["fillings"]
    offered = [column["name"] for column in good(service, frames.post(b"", "", url_path="v2/metadata"))["inputs"]]
    assert offered == ["text", "input_ids", "attention_mask"]  # it has no token types
    encoded = tokenizer(
        texts, padding=True, return_tensors="np", return_token_type_ids="token_type_ids" in offered
    )
    tensors = [spoken.number_tensor(name, values) for name, values in encoded.items()]
    found = columns(good(service, frames.ask({"inputs": tensors})))["fillings"]
    assert_scored(list(map(json.loads, found)), list(map(json.loads, wanted)))


IDS = [[2, 9, 3]]


@pytest.mark.parametrize(
    ("ids", "more", "status", "says"),
    [
        ([[2, 10**6, 3]], {}, 422, "expected ids from 0 to"),
        ([[-1]], {}, 422, "expected ids from 0 to"),
        ([[2] * 65], {}, 413, "65 tokens; the limit is 64"),
        ([[]], {}, 422, "at least one"),
        (IDS, {"attention_mask": [[0, 0, 0]]}, 422, "has no tokens"),
        (IDS, {"attention_mask": [[1, 0, 1]]}, 422, "without a gap"),
        (IDS, {"attention_mask": [[1, 2, 1]]}, 422, "expected 0 and 1"),
        (IDS, {"attention_mask": [[1, 1]]}, 422, "in the shape of input_ids"),
        (IDS, {"token_type_ids": [[0, 0, 9]]}, 422, "token_type_ids: expected from 0 to 1"),
        ([[[2]]], {}, 422, "the shape [inputs, tokens]"),
        ([IDS[0]] * 33, {}, 413, "33 items; the limit is 32"),
    ],
)
def test_wrong_tokens(services, ids, more, status, says):
    tensors = [spoken.number_tensor("input_ids", np.array(ids, np.int64))]
    tensors += [spoken.number_tensor(name, np.array(values)) for name, values in more.items()]
    answered, document = ask(services["text-classification"], frames.ask({"inputs": tensors}))
    assert (answered, set(document)) == (status, {"error"}) and says in document["error"]


@pytest.mark.parametrize("task", ["token-classification", "question-answering", "zero-shot-classification"])
def test_where_tokens_are_not_enough(services, task):
    _, _, beside = spoken.GOOD[task]
    tensors = [spoken.number_tensor("input_ids", np.array(IDS))]
    document = {"inputs": tensors, "parameters": beside}
    assert ask(services[task], frames.ask(document)) == (
        422,
        {"error": "input_ids[0]: expected a string, not tokens"},
    )


# -- what is said of the model


@pytest.mark.parametrize("task", scenarios.TASKS)
def test_metadata(services, task):
    document = good(services[task], frames.post(b"", "", url_path="v2/metadata"))
    assert document.keys() == {"name", "versions", "platform", "inputs", "outputs"}
    assert (document["name"], document["versions"]) == ("tiny", ["1.0"])
    answered = {
        tensor["name"]: tensor for tensor in good(services[task], frames.ask(spoken.tensors(task)))["outputs"]
    }
    for column in document["outputs"]:
        tensor = answered[column["name"]]
        assert tensor["datatype"] == column["datatype"] and len(tensor["shape"]) == len(column["shape"])
        assert all(said in (-1, size) for said, size in zip(column["shape"], tensor["shape"], strict=True))


def test_describe_says_what_metadata_says(services):
    [response] = frames.predict(services["text-classification"], [frames.Request([], {"describe": "True"})])
    described = json.loads(response.body)
    metadata = good(services["text-classification"], frames.post(b"", "", url_path="v2/metadata"))
    assert (described["inputs"], described["outputs"]) == (metadata["inputs"], metadata["outputs"])
    every = ["native", "hugging-face", "kserve-v1", "open-inference"]
    assert described["protocols"] == every
    [response] = frames.predict(services["feature-extraction"], [frames.Request([], {"describe": "True"})])
    assert json.loads(response.body)["protocols"] == [*every, "openai-embeddings"]
    assert described["sha256"] == {}  # the archiver writes them down


# -- TorchServe's own gRPC


@pytest.mark.parametrize("parameters", [{"data": b'{"text": "a"}'}, {"text": b"a"}, {"body": b"a"}])
def test_grpc_never_lacks_what_ends_a_stream(services, parameters):
    [response, refused] = frames.predict(
        services["text-classification"], [spoken.over_grpc(**parameters), spoken.over_grpc(x=b"\xff")]
    )
    assert (
        json.loads(response.body)["label"] == good(services["text-classification"], frames.ask(text="a"))["label"]
    )
    assert response.headers["ts_stream_next"] == refused.headers["ts_stream_next"] == "false"
    assert json.loads(refused.body)["error"]["code"] == 400


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"inputs": 7},
        {"id": 7, "inputs": []},
        {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["!"]}]},
        {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": []}]},  # raw_input_contents
    ],
)
def test_an_error_over_open_inference_grpc_is_an_answer_that_it_can_carry(services, document):
    """Anything else kills the worker: GRPCJob.java reads these keys without asking whether they are there."""
    answered = good(services["text-classification"], spoken.over_open_inference_grpc(document))
    assert answered.keys() == {"id", "model_name", "model_version", "outputs"}
    [tensor] = answered["outputs"]
    assert (tensor["name"], tensor["datatype"], tensor["shape"]) == ("error", "BYTES", [1])
    [said] = tensor["data"]
    assert 400 <= said["code"] < 500 and isinstance(said["error"], str)


def test_a_defect_over_open_inference_grpc_too(services, monkeypatch):
    monkeypatch.setattr(services["text-classification"].handler, "preprocess", lambda data: 1 / 0)
    answered = good(services["text-classification"], spoken.over_open_inference_grpc({}))
    assert answered["outputs"][0]["data"] == [{"code": 500, "error": "the request could not be answered"}]


@pytest.mark.parametrize(
    ("document", "plain"),
    [
        ({"instances": ["a" * 100_000]}, True),
        ({"parameters": {}, "inputs": "a" * 100_000}, True),
        ({"id": "7", "inputs": [spoken.text_tensor("text", ["a" * 100_000])]}, True),
        ({"text": '{"inputs": "a"}' + "a" * 100_000}, False),
    ],
)
def test_a_body_over_the_limit_is_refused_in_its_protocols_shape(services, document, plain):
    status, answered = ask(services["text-classification"], frames.ask(document))
    assert status == 413 and isinstance(answered["error"], str) is plain


# -- who asks wrongly is told so, in the protocol's shape


@pytest.mark.parametrize("task", scenarios.TASKS)
@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"instances": "a"}, "instances: expected a list"),
        ({"instances": []}, "at least one"),
        ({"instances": [7]}, "instances[0]: expected a string"),
        ({"instances": [{}]}, "instances[0]: expected an object with"),
        ({"instances": ["a", {}]}, "either objects or strings"),
        ({"instances": ["a"], "parameters": []}, "parameters: expected an object"),
        ({"instances": ["a"], "signature": 1}, "signature: unknown key"),
        ({"inputs": None}, "inputs[0]: expected a string|inputs: expected a string"),
        ({"inputs": ["a"], "option": {}}, "option: unknown key"),
        ({"inputs": [{"datatype": "BYTES"}]}, "inputs[0].name"),
        ({"inputs": [{"name": "x", "datatype": "BF16"}]}, "inputs[0].datatype"),
        ({"inputs": [{"name": "x", "datatype": "INT8", "shape": [1], "data": [300]}]}, "values of INT8"),
        ({"inputs": [{"name": "x", "datatype": "INT8", "shape": [2], "data": [3]}]}, "1 values for a shape of 2"),
        ({"inputs": [{"name": "x", "datatype": "INT8", "shape": [-1], "data": [3]}]}, "inputs[0].shape"),
        ({"inputs": [spoken.text_tensor("x", ["a"])]}, "is missing; this model reads"),
    ],
)
def test_wrong_requests(services, task, document, says):
    if "datatype" not in str(document):
        document = {"parameters": spoken.GOOD[task][2], **document}
    status, answered = ask(services[task], frames.ask(document))
    assert 400 <= status < 500 and set(answered) == {"error"}
    assert any(part in answered["error"] for part in says.split("|")), answered


def test_two_instances_that_disagree(services):
    asked = [{"text": "a", "query": "b"}, {"text": "a", "query": "c"}]
    status, answered = ask(services["text-ranking"], frames.ask({"instances": asked}))
    assert status == 422 and "the same query in all" in answered["error"]


@pytest.mark.parametrize("key", ["inputs", "instances"])
def test_what_is_said_twice(services, key):
    for task, own, beside, name in (
        ("text-classification", {"text": "a", "top_k": 1}, {"top_k": 3}, "top_k"),
        ("question-answering", {"question": "a", "context": "b"}, {"contexts": ["c", "d"]}, "contexts"),
    ):
        status, answered = ask(services[task], frames.ask({key: [own, own], "parameters": beside}))
        assert (status, answered) == (422, {"error": f"parameters: {name} is also in {key}"})


def test_a_query_beside_tokens_that_hold_one(services):
    tensors = [spoken.number_tensor("input_ids", np.array(IDS)), spoken.text_tensor("query", ["a"])]
    status, answered = ask(services["text-ranking"], frames.ask({"inputs": tensors}))
    assert status == 422 and answered["error"].startswith("query: expected none beside input_ids")


def calls_of(work):
    """How many functions of C it calls: what a body costs, whatever the machine is busy with."""
    counted = [0]
    sys.setprofile(lambda frame, event, function: counted.__setitem__(0, counted[0] + (event == "c_call")))
    try:
        work()
    finally:
        sys.setprofile(None)
    return counted[0]


def gathered(objects, keys):
    """Many objects, the last of which has many keys: what no other has."""
    values = [{"text": "a"} for _ in range(objects)]
    values[-1].update(dict.fromkeys(map(str, range(keys))))
    model = Model("tiny", "1.0", "text", "", (), (), 10**6, max_items=10**6)
    with pytest.raises(InvalidRequest, match="the same 0 in all"):
        gather("instances", values, None, model)


def test_objects_with_many_keys_cost_no_more_than_their_bytes():
    once, twice = (calls_of(lambda size=size: gathered(size, size)) for size in (500, 1000))
    assert twice < 3 * once


@pytest.mark.parametrize("key", ["inputs", "instances"])
def test_objects_are_counted_before_their_keys_are_read(services, key):
    objects = [{"text": "a", "x": 1}] + [{"text": "a"}] * 32
    status, answered = ask(services["text-classification"], frames.ask({key: objects}))
    assert (status, answered) == (413, {"error": f"{key}: 33 items; the limit is 32"})


def test_words_of_other_protocols_are_only_words(services):
    service = services["text-classification"]
    for text in ('{"inputs": "a"}', '{"instances": ["a"]}'):
        assert good(service, frames.ask(text=text)).keys() >= {"prediction"}
        assert good(service, frames.post(text.encode(), "text/plain")) == good(service, frames.ask(text=text))


def test_a_path_that_is_none_is_not_answered_as_if_it_were(services):
    for path, document in (
        ("v1/chat/completions", {"text": "a"}),
        ("v1/rerank", {"inputs": "a"}),
        ("x", {"instances": ["a"]}),
    ):
        request = frames.post(json.dumps(document).encode(), url_path=path)
        status, answered = ask(services["text-classification"], request)
        assert status == 404 and answered["error"]["message"].startswith("there is no such path; expected v2/")


# -- any bytes, over anything

LEAVES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
WORDS = [
    *("inputs", "instances", "parameters", "outputs", "id", "text", "question", "context", "query", "data"),
    *("name", "datatype", "shape", "input", "model", "encoding_format", "top_k", "candidate_labels"),
]
NAMES = ["text", "question", "context", "query", "input_ids", "attention_mask", "token_type_ids", "top_k", "x"]
DOCUMENTS = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=4), inner, max_size=5)
    ),
    max_leaves=10,
)
TENSORS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(NAMES) | DOCUMENTS,
        "datatype": st.sampled_from(["BYTES", "INT64", "INT32", "FP32", "BOOL", "FP16"]) | DOCUMENTS,
        "shape": st.lists(st.integers(-1, 3), max_size=3) | DOCUMENTS,
    },
    optional={
        "data": st.lists(st.integers(-2, 99) | st.text(max_size=5), max_size=4) | DOCUMENTS,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 9) | DOCUMENTS}) | DOCUMENTS,
    },
)
ASKED = (
    st.fixed_dictionaries({"inputs": st.lists(TENSORS, max_size=3)}, optional={"outputs": DOCUMENTS})
    | st.fixed_dictionaries({"inputs": DOCUMENTS}, optional={"parameters": DOCUMENTS})
    | st.fixed_dictionaries({"instances": DOCUMENTS}, optional={"parameters": DOCUMENTS})
    | st.fixed_dictionaries({"input": DOCUMENTS, "model": st.just("tiny")})
    | DOCUMENTS
)
BODIES = ASKED.map(lambda document: json.dumps(document).encode()) | st.binary(max_size=60)
ROWS = st.one_of(
    st.builds(frames.post, BODIES, url_path=st.sampled_from(["", *table.PATHS, "x"])),
    st.builds(
        lambda head, rest, length: frames.post(
            head + rest, "application/octet-stream", **{HEADER: str(len(head) + length)}
        ),
        BODIES,
        st.binary(max_size=12),
        st.sampled_from([0, 0, -1, 10**12]),
    ),
    st.builds(lambda body: frames.Request([("body", "application/json", body)]), BODIES),
    st.builds(lambda body: spoken.over_grpc(data=body), BODIES),
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(rows=st.lists(ROWS, min_size=1, max_size=6))
def test_any_bytes_get_a_status(services, rows):
    for service in services.values():
        for row, response in zip(rows, frames.predict(service, rows), strict=True):
            assert response.status == 200 or 400 <= response.status < 500, (row, response.body)
            document = json.loads(response.body[: int(response.headers.get(HEADER, len(response.body)))])
            if not row.headers and row.parameters[0][1]:
                assert document.keys() >= {"id", "model_name", "model_version", "outputs"}
                said = [tensor["data"][0]["code"] for tensor in document["outputs"] if tensor["name"] == "error"]
                assert all(400 <= code < 500 for code in said), row


@pytest.mark.parametrize("task", scenarios.TASKS)
def test_a_bad_row_of_any_protocol_leaves_the_others_bytes_unchanged(services, task):
    kinds = (spoken.native, spoken.hugging_face, spoken.instances, lambda task: frames.ask(spoken.tensors(task)))
    sound = [kind(task) for kind in kinds]
    bad = [
        frames.ask({"instances": [1]}),
        spoken.over_open_inference_grpc({}),
        frames.post(b"{", url_path="v2/infer"),
        spoken.over_grpc(x=b""),
    ]
    alone = frames.predict(services[task], sound)
    mixed = frames.predict(services[task], [row for pair in zip(sound, bad, strict=True) for row in pair])[::2]
    timeless = [re.sub(rb'"inference_time_ms":[0-9.e-]+', b"", r.body) for r in (*alone, *mixed)]
    assert {response.status for response in alone} == {200}
    assert timeless[: len(alone)] == timeless[len(alone) :]


# -- tasks whose answers are tensors, or whatever a recipe's class says

OWN = """
import numpy as np


class Mine:
    field = "input"  # whose list has the name that other protocols begin with

    def __init__(self, directory, options, device):
        pass

    def run(self, texts):
        return [{"size": len(text), "said": text, "about": {"of": [text]}} for text in texts]


class Vectors(Mine):
    field = "text"

    def run(self, texts):
        return [{"vector": np.full(2, len(text), np.float32), "size": len(text)} for text in texts]


class Numbers(Mine):
    field = "text"

    def run(self, texts):
        return [
            {
                "scalar": np.float32(0.5),
                "whole": np.int64(len(text)),
                "flag": np.bool_(len(text) > 1),
                "half": len(text) // 2 if len(text) % 2 == 0 else len(text) / 2,
            }
            for text in texts
        ]


class Wide(Mine):
    field = "text"

    def run(self, texts):
        return [{"third": np.array([1 / 3]), "half": np.array([0.5], np.float16)} for text in texts]
"""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    home = tmp_path_factory.mktemp("prompts")
    tiny_models.prompt_encoder(home / "model")
    return worker.start(home, task="prompt-encoding", layers=[1, 2], max_length=16)


@pytest.mark.parametrize("binary", [True, False])
def test_prompts(encoder, binary):
    native = good(encoder, frames.ask(prompts=["a cat", "a dog on a roof"]))
    document = {"inputs": [spoken.text_tensor("prompt", ["a cat", "a dog on a roof"])]}
    if binary:
        document["parameters"] = {"binary_data_output": True}
        [response] = frames.predict(encoder, [spoken.binary(document)])
        length = int(response.headers[HEADER])
        outputs = {tensor["name"]: tensor for tensor in json.loads(response.body[:length])["outputs"]}
        size = outputs["prompt_embeds"]["parameters"]["binary_data_size"]
        embeds = np.frombuffer(response.body[length : length + size], "<f4").reshape(2, 16, -1)
    else:
        found = columns(good(encoder, frames.ask(document)))
        embeds = found["prompt_embeds"]
        assert found["text_ids"].tolist() == native["text_ids"] and found["tokens"].tolist() == native["tokens"]
        assert found["truncated"].tolist() == native["truncated"]
    np.testing.assert_allclose(embeds, native["prompt_embeds"], atol=1e-4)


def test_prompts_of_other_protocols(encoder):
    native = good(encoder, frames.ask(prompt="a cat"))
    piped = good(encoder, frames.ask({"inputs": "a cat"}))
    assert piped.keys() == native.keys() and piped["shapes"] == native["shapes"]
    [predicted] = good(encoder, frames.ask({"instances": ["a cat"]}))["predictions"]
    np.testing.assert_allclose(predicted["prompt_embeds"], native["prompt_embeds"][0], atol=1e-4)
    compact = {"inputs": [spoken.text_tensor("prompt", ["a cat", "a"])], "parameters": {"compact": True}}
    found = columns(good(encoder, frames.ask(compact)))
    assert {"prompt_embeds.0", "prompt_embeds.1", "padding"} <= found.keys()
    request = frames.post(json.dumps({"inputs": "a cat"}).encode(), accept="application/x-safetensors")
    assert frames.predict(encoder, [request])[0].content_type == "application/x-safetensors"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("room", "status"), [(8192 + 4096, 200), (8192 - 1, 413)])
def test_prompts_are_judged_by_the_bytes_that_they_come_to(encoder, tmp_path, dtype, room, status):
    """2 layers x 32 numbers for each of 32 tokens are 8,192 bytes as FP32, which all outputs in binary are."""
    (tmp_path / "model").symlink_to(Path(encoder.context.system_properties["model_dir"]) / "model")
    narrow = worker.start(
        tmp_path, task="prompt-encoding", layers=[1, 2], max_length=32, dtype=dtype, max_response_bytes=room
    )
    asked = {"inputs": [spoken.text_tensor("prompt", ["a cat"])]}
    named = {"outputs": [{"name": "prompt_embeds", "parameters": {"binary_data": True}}]}
    for how in (named, {"parameters": {"binary_data_output": True}}):
        [response] = frames.predict(narrow, [spoken.binary(asked | how)])
        assert response.status == status, response.body[:200]
        assert status == 200 or b"may have 8192 bytes as application/octet-stream" in response.body


def test_tasks_of_ones_own(tmp_path, monkeypatch):
    tiny_models.classifier(tmp_path / "model")
    (tmp_path / "own_of_protocols.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    mine = worker.start(tmp_path, task="own_of_protocols:Mine")
    assert good(mine, frames.ask(inputs=["ab"]))["predictions"][0]["size"] == 2  # native, by its own field
    said = {"size": 2, "said": "ab", "about": {"of": ["ab"]}}
    assert good(mine, frames.ask({"instances": ["ab"]})) == {"predictions": [said]}
    found = columns(
        good(
            mine,
            frames.post(
                json.dumps({"inputs": [spoken.text_tensor("input", ["ab", "c"])]}).encode(), url_path="v2/infer"
            ),
        )
    )
    assert found["size"].tolist() == [2, 1] and found["said"] == ["ab", "c"]
    assert [json.loads(text) for text in found["about"]] == [{"of": ["ab"]}, {"of": ["c"]}]
    vectors = worker.start(tmp_path, task="own_of_protocols:Vectors")
    found = columns(good(vectors, frames.ask({"inputs": [spoken.text_tensor("text", ["ab", "c"])]})))
    assert found["vector"].tolist() == [[2, 2], [1, 1]] and found["size"].tolist() == [2, 1]
    assert good(vectors, frames.ask({"instances": ["ab"]})) == {"predictions": [{"vector": [2, 2], "size": 2}]}


def test_numbers_of_ones_own(tmp_path, monkeypatch):
    tiny_models.classifier(tmp_path / "model")
    (tmp_path / "numbers_of_protocols.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    numbers = worker.start(tmp_path, task="numbers_of_protocols:Numbers")
    answered = good(numbers, frames.ask({"inputs": [spoken.text_tensor("text", ["ab", "a"])]}))
    datatypes = {tensor["name"]: tensor["datatype"] for tensor in answered["outputs"]}
    assert datatypes == {"scalar": "FP64", "whole": "INT64", "flag": "BOOL", "half": "FP64"}
    assert columns(answered)["half"].tolist() == [1, 0.5]
    assert good(numbers, frames.ask(text="ab")) == {"scalar": 0.5, "whole": 2, "flag": True, "half": 1}
    wide = worker.start(tmp_path, task="numbers_of_protocols:Wide")
    answered = good(wide, frames.ask({"inputs": [spoken.text_tensor("text", ["ab"])]}))
    assert [tensor["datatype"] for tensor in answered["outputs"]] == ["FP64", "FP32"]
    assert columns(answered)["third"].tolist() == [[1 / 3]]
    assert good(wide, frames.ask(text="ab"))["third"] == [[1 / 3]]


def test_one_label_is_a_list_of_one(services):
    asked = {
        "inputs": [spoken.text_tensor("text", ["a"]), spoken.text_tensor("candidate_labels", ["film, battery"])]
    }
    found = columns(good(services["zero-shot-classification"], frames.ask(asked)))
    assert found["label"] == ["film, battery"] and found["scores"].shape == (1, 1)


@pytest.mark.parametrize("task", scenarios.TASKS)
def test_words_about_a_request_change_nothing(services, task):
    """The seeds' PredictRequest and InferenceRequest have them."""
    plain = good(services[task], spoken.native(task))
    worded = good(services[task], spoken.native(task, model_name="default", request_id=None))
    assert {**plain, "inference_time_ms": 0} == {**worded, "inference_time_ms": 0}


def test_words_about_a_request_are_judged(services):
    service = services["text-classification"]
    fields = {"text": b"a", "model_name": b"default", "request_id": b"7"}
    assert good(service, frames.form(fields))["label"]
    for wrong in ({"model_name": None}, {"model_name": 5}, {"request_id": 5}):
        status, answered = ask(service, frames.ask({"text": "a", **wrong}))
        assert status == 422 and answered["error"]["message"].startswith(f"{next(iter(wrong))}: expected a string")
