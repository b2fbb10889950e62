"""The gateway's gRPC over the real server, with tritonclient: what gets through, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
import requests
import tritonclient.grpc as triton
from transformers import AutoTokenizer
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from client import ManagementClient
from serving.gateway import keys
from serving.ports import free_ports
from tests.support import archives, scenarios
from tests.support import protocols as spoken
from tests.support.grpc import INFERENCE, OPEN_INFERENCE
from tests.support.load import TEXTS as MANY
from tests.support.serving import ROOT, Serving

pytestmark = pytest.mark.server

TEXTS = list(spoken.TEXTS)
SERVICE = "/inference.GRPCInferenceService/"
SETTINGS = [f"--set=handler.{name}={value}" for name, value in scenarios.LIMITS.items()]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """Name -> key; `file` is the file of their hashes."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    made = {"ann": keys.new("ann", "inference"), "root": keys.new("root", "administration")}
    file.write_text("".join(f"{line}\n" for _, line in made.values()))
    return {**{name: token for name, (token, _) in made.items()}, "file": file}


@pytest.fixture(scope="module")
def address():
    return f"127.0.0.1:{free_ports(1)}"


@pytest.fixture(scope="module")
def server(tiny, tokens, address, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    archives.build_model(store, "tiny", tiny["text-classification"] / "model", "text-classification", *SETTINGS)
    file = tmp_path_factory.mktemp("gateway") / "gateway.yaml"
    file.write_text(
        json.dumps({"grpc": address, "keys": str(tokens["file"]), "limits": {"body_bytes": 2_000_000}})
    )
    with Serving(store, ["tiny.mar"], "--gateway", str(file)) as running:
        running.worker = worker_of(running)
        yield running
    assert running.status == 0


def worker_of(server):
    [worker] = ManagementClient(server.management_url).describe("tiny").workers
    return worker.pid


@contextmanager
def client_of(address, token):
    """Every call of such a client has the key."""
    with triton.InferenceServerClient(address) as client:
        if token is not None:
            client.register_plugin(lambda request: request.headers.update(authorization=f"Bearer {token}"))
        yield client


@pytest.fixture
def client(server, address, tokens):
    with client_of(address, tokens["ann"]) as client:
        yield client


@pytest.fixture
def channel(server, address):
    with grpc.insecure_channel(address) as opened:
        yield opened


@pytest.fixture
def native(server, tokens):
    """What the native protocol answers over HTTP."""
    headers = {"Authorization": f"Bearer {tokens['ann']}"}
    answer = requests.post(f"{server.gateway_url}/predict", json={"texts": TEXTS}, headers=headers, timeout=30)
    return answer.json()["predictions"]


def tensor(name, values, datatype):
    tensor = triton.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    return tensor


def texts(values=TEXTS):
    return [tensor("text", np.array(values, object), "BYTES")]


def labels(answer):
    return [label.decode() for label in answer.as_numpy("label")]


# -- what it answers


def test_a_client_of_the_protocol_gets_what_http_gets(client, native, tiny):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("tiny") and client.is_model_ready("tiny", "1.0")
    assert client.get_server_metadata().name == "torchserve"
    metadata = client.get_model_metadata("tiny")
    assert [column.name for column in metadata.outputs] == ["label", "score", "probabilities", "logits"]
    assert (metadata.inputs[0].name, list(metadata.versions)) == ("text", ["1.0"])
    answered = client.infer("tiny", texts(), request_id="7", parameters={"truncation": True})
    assert labels(answered) == [one["label"] for one in native] and answered.get_response().id == "7"
    np.testing.assert_allclose(
        answered.as_numpy("probabilities"), [one["probabilities"] for one in native], atol=1e-4
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny["text-classification"] / "model")
    encoded = tokenizer(TEXTS, padding=True, return_tensors="np")
    tensors = [tensor(name, encoded[name], "INT64") for name in ("input_ids", "attention_mask")]
    outputs = [triton.InferRequestedOutput("logits")]
    logits = client.infer("tiny", tensors, model_version="1.0", outputs=outputs).as_numpy("logits")
    np.testing.assert_allclose(logits, answered.as_numpy("logits"), atol=1e-5)


def test_contents_that_are_not_raw(channel, tokens, native):
    """As other clients of the protocol send them."""
    request = service_pb2.ModelInferRequest(model_name="tiny")
    told = request.inputs.add(name="text", datatype="BYTES", shape=[len(TEXTS)])
    told.contents.bytes_contents.extend(text.encode() for text in TEXTS)
    call = channel.unary_unary(
        f"{SERVICE}ModelInfer",
        service_pb2.ModelInferRequest.SerializeToString,
        service_pb2.ModelInferResponse.FromString,
    )
    key = [("authorization", f"Bearer {tokens['ann']}")]
    assert labels(triton.InferResult(call(request, timeout=30, metadata=key))) == [one["label"] for one in native]
    told.datatype = "INT8"
    told.contents.int_contents.append(300)
    with pytest.raises(grpc.RpcError, match="expected values of INT8"):
        call(request, timeout=30, metadata=key)


@pytest.mark.parametrize(
    ("name", "version", "tensors", "code"),
    [
        ("tiny", "", [("x", np.array(["a"], object), "BYTES")], "INVALID_ARGUMENT"),
        ("tiny", "", [("input_ids", np.array([[10**6]]), "INT64")], "INVALID_ARGUMENT"),
        ("tiny", "", [("text", np.array(["a"] * 33, object), "BYTES")], "RESOURCE_EXHAUSTED"),
        ("tiny", "", [("text", np.array(["a" * 2_100_000], object), "BYTES")], "RESOURCE_EXHAUSTED"),
        ("tiny", "2.0", [("text", np.array(["a"], object), "BYTES")], "NOT_FOUND"),
        ("nobody", "", [("text", np.array(["a"], object), "BYTES")], "NOT_FOUND"),
        ("a/b", "", [("text", np.array(["a"], object), "BYTES")], "INVALID_ARGUMENT"),
    ],
)
def test_an_error_is_a_code_of_grpcs_own(client, name, version, tensors, code):
    with pytest.raises(InferenceServerException) as refused:
        client.infer(name, [tensor(*one) for one in tensors], model_version=version)
    assert refused.value.status() == f"StatusCode.{code}"


def test_a_malformed_tensor_costs_only_its_own_call(channel, client, tokens):
    request = service_pb2.ModelInferRequest(model_name="tiny", raw_input_contents=[b"\xff\xff\xff\xff"])
    request.inputs.add(name="text", datatype="BYTES", shape=[1])
    call = channel.unary_unary(f"{SERVICE}ModelInfer", service_pb2.ModelInferRequest.SerializeToString)
    for content in (request, service_pb2.ModelInferRequest(model_name="tiny", raw_input_contents=[b"a"])):
        with pytest.raises(grpc.RpcError) as refused:
            call(content, timeout=30, metadata=[("authorization", f"Bearer {tokens['ann']}")])
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert client.infer("tiny", texts()).as_numpy("label").shape == (len(TEXTS),)


# -- what gets through


@pytest.mark.parametrize(
    ("who", "code"), [(None, "UNAUTHENTICATED"), ("nobody", "UNAUTHENTICATED"), ("root", "PERMISSION_DENIED")]
)
def test_a_call_needs_a_key(server, address, tokens, who, code):
    with client_of(address, tokens.get(who, who)) as client:
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("tiny")
        for call in (
            client.get_server_metadata,
            lambda: client.get_model_metadata("tiny"),
            lambda: client.infer("tiny", texts()),
        ):
            with pytest.raises(InferenceServerException) as refused:
                call()
            assert refused.value.status() == f"StatusCode.{code}"


@pytest.mark.parametrize(
    "method",
    [
        f"{SERVICE}ModelStreamInfer",
        f"{SERVICE}RepositoryModelLoad",
        f"{SERVICE}modelinfer",
        f"{SERVICE}ModelInfer/",
        f"{OPEN_INFERENCE}ModelInfer",
        f"{INFERENCE}Predictions",
        "/org.pytorch.serve.grpc.management.ManagementAPIsService/ListModels",
        "/org.pytorch.serve.grpc.management.ManagementAPIsService/UnregisterModel",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/v2/models/tiny/infer",
        "/models",
    ],
)
def test_nothing_else_gets_through(channel, tokens, method):
    with pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(method)(b"", timeout=30, metadata=[("authorization", f"Bearer {tokens['ann']}")])
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_its_port_takes_no_http_1(server, address):
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://{address}/v2/health/live", timeout=5)


def test_a_call_is_two_lines_of_the_log_with_the_clients_own_id(server, client, tokens):
    own = f"mine-{uuid.uuid4()}"
    client.infer("tiny", texts(), headers={"x-request-id": own})
    end = time.monotonic() + 20
    while f" ms: {own}:200" not in server.output():  # the handler's own line
        assert time.monotonic() < end
        time.sleep(0.1)
    lines = [json.loads(line) for line in server.output().splitlines() if own in line and line.startswith("{")]
    told = {(line["path"], line["key"], line["client"] == "127.0.0.1", line["server"]) for line in lines}
    assert told == {
        (f"{SERVICE}ModelInfer", "ann", True, "grpc/front"),
        ("/v2/models/tiny/infer", "-", False, "m.tiny/local"),
    }
    assert tokens["ann"] not in server.output()


# -- the front by itself


def front(*arguments):
    return [sys.executable, "-m", "serving.open_inference", *arguments]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--address", "0.0.0.0:8001"],
            "--address: 0.0.0.0:8001: expected a loopback address, for it has no keys",
        ),
        (["--address", "[::]:8001"], "expected a loopback address"),
        (["--threads", "0"], "--threads: expected a number above 0"),
        (["--gateway", "127.0.0.1:8000"], "--gateway: 127.0.0.1:8000: expected http://HOST:PORT"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, says):
    ended = subprocess.run(front(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2 and says in ended.stderr.splitlines()[-1]


def test_the_command_hands_keys_on(server, address, tokens):
    taken = subprocess.run(front("--address", address), cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert taken.returncode == 1 and b"cannot be used" in taken.stderr
    here = f"127.0.0.1:{free_ports(1)}"
    command = front("--address", here, "--gateway", server.gateway_url)
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as started:
        try:
            assert b"Open Inference Protocol on" in started.stderr.readline()
            with client_of(here, tokens["ann"]) as client:
                assert client.is_server_ready() and len(labels(client.infer("tiny", texts()))) == len(TEXTS)
            with client_of(here, None) as client, pytest.raises(InferenceServerException) as refused:
                client.infer("tiny", texts())
            assert refused.value.status() == "StatusCode.UNAUTHENTICATED"
        finally:
            started.terminate()
            assert started.wait(60) == 0


# -- the end, which is the server's: nothing comes behind it


class Calls:
    """Clients that call without a pause until they are refused, over one connection or always a new one."""

    def __init__(self, address, token, clients, keep):
        self.address, self.token, self.keep = address, token, keep
        self.outcomes = Counter()
        self.threads = [threading.Thread(target=self._call) for _ in range(clients)]
        for thread in self.threads:
            thread.start()

    def _call(self):
        try:
            while True:
                with client_of(self.address, self.token) as client:
                    self._infer(client)
                    while self.keep:
                        self._infer(client)
        except InferenceServerException as refused:
            said = "refused" if "Connection refused" in refused.message() else refused.message()
            self.outcomes[refused.status(), said] += 1

    def _infer(self, client):
        client.infer("tiny", texts(MANY["texts"]))
        self.outcomes["answered"] += 1


def test_a_stop_under_load_answers_all_that_was_accepted(server, address, tokens):
    assert worker_of(server) == server.worker, "a worker died of what came before"
    loads = [Calls(address, tokens["ann"], 6, keep) for keep in (True, False)]
    while not all(load.outcomes["answered"] for load in loads):
        time.sleep(0.1)
    said = []
    with client_of(address, None) as watcher:
        stopper = threading.Thread(target=server.stop)
        assert watcher.is_server_ready()
        stopper.start()
        try:
            while stopper.is_alive():
                said.append(watcher.is_server_ready(client_timeout=5))
                time.sleep(0.05)
        except InferenceServerException as refused:
            assert refused.status() == "StatusCode.UNAVAILABLE"
        stopper.join()
    assert server.status == 0
    assert False in said and True not in said[said.index(False) :]
    for load in loads:
        for thread in load.threads:
            thread.join(60)
        assert set(load.outcomes) == {"answered", ("StatusCode.UNAVAILABLE", "refused")}, load.outcomes
