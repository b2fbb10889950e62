"""The process with id 1, and platforms played: what they mount, what they set, where they ask."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests
import tritonclient.grpc

from serving.ports import free_ports
from tests.support import archives
from tests.support.serving import ROOT
from tests.support.torchserve import runs

pytestmark = pytest.mark.server

# A container has the platform's own paths; here they lie elsewhere.
CODE = (
    "import sys; from pathlib import Path; from serving import container; "
    "container.KSERVE = Path(sys.argv[1]); container.SAGEMAKER = Path(sys.argv[2]); "
    "container.REPOSITORY = Path(sys.argv[3]); sys.exit(container.main(sys.argv[4:]))"
)


class Container:
    """`python -m serving.container`, with a platform's mounts and variables, and with a TMPDIR of its own."""

    def __init__(self, mounts, *arguments, **variables):
        self.base = free_ports(9)
        self.port, self.grpc = self.base + 7, self.base + 8
        self.temp = tempfile.TemporaryDirectory(prefix="tc-")
        self.log = Path(self.temp.name) / "output.log"
        paths = [str(mounts.get(name, "/nowhere")) for name in ("kserve", "sagemaker", "repository")]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TMPDIR": self.temp.name,
            "PORT_BASE": str(self.base),
            "PORT": str(self.port),
            "METRICS": f"127.0.0.1:{self.base + 6}",
            **variables,
        }
        if "AIP_HTTP_PORT" in variables:
            environment["AIP_HTTP_PORT"] = str(self.port)
        if "GRPC_PORT" in variables:
            environment["GRPC_PORT"] = str(self.grpc)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CODE, *paths, *arguments], env=environment, stdout=log, stderr=log
            )

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        family = self.family()
        self.stop()
        _, left = psutil.wait_procs(family, timeout=10)
        self.output = self.log.read_text(errors="replace")
        self.temp.cleanup()
        assert not left

    def family(self):
        """What it has started; nothing once it has ended."""
        return psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []

    def dies_with(self, name):
        """Kills one of its processes: it ends by itself, with 1, and leaves nothing."""
        family = self.family()
        next(process for process in family if process.name() == name).kill()
        assert self.process.wait(60) == 1
        assert not psutil.wait_procs(family, timeout=10)[1]

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.status = self.process.wait(90)

    def get(self, path):
        """The status of a GET; 0 where nobody listens yet."""
        try:
            return requests.get(f"http://127.0.0.1:{self.port}{path}", timeout=5).status_code
        except requests.ConnectionError:
            return 0

    def post(self, path, document):
        return requests.post(f"http://127.0.0.1:{self.port}{path}", json=document, timeout=60)

    def probe(self, path):
        """Asks once a second, as platforms do, until it is ready; returns what was answered before."""
        seen = []
        while (status := self.get(path)) != 200:
            assert self.process.poll() is None, self.log.read_text()
            seen.append(status)
            time.sleep(1)
        return set(seen)


@pytest.fixture(scope="module")
def model(tiny):
    return tiny["text-classification"] / "model"


def test_hugging_face_inference_endpoints(model):
    with Container({"repository": model}, KEYS="platform", HEALTH_ROUTE="/well") as here:
        assert here.probe("/well") <= {0, 503}
        assert here.post("/predict", {"text": "a"}).json()["label"]
        assert here.post("/", {"inputs": "a"}).status_code == 200
        here.stop()
        assert here.status == 0 and here.get("/well") == 0


def test_sagemaker(model):
    with Container({"sagemaker": model}, "serve") as here:
        assert here.probe("/ping") <= {0, 503}
        assert here.post("/invocations", {"text": "a"}).json()["label"]
        here.dies_with("haproxy")
    assert "HAProxy ended by itself" in here.output


def test_vertex_ai(model):
    routes = {
        "AIP_HEALTH_ROUTE": "/v1/e/1/deployedModels/2",
        "AIP_PREDICT_ROUTE": "/v1/e/1/deployedModels/2:predict",
    }
    with Container({}, AIP_HTTP_PORT="set", AIP_STORAGE_URI=str(model), **routes) as here:
        assert here.probe(routes["AIP_HEALTH_ROUTE"]) <= {0, 503}
        answer = here.post(routes["AIP_PREDICT_ROUTE"], {"instances": ["a", "b"]}).json()
        assert len(answer["predictions"]) == 2
        here.dies_with("java")
    assert "TorchServe ended by itself" in here.output


def test_kserve(model, tmp_path):
    store = tmp_path / "model-store"
    store.mkdir()
    archives.build_model(store, "film", model, "text-classification")
    (tmp_path / "config").mkdir()
    snapshot = {"models": {"film": {"1.0": {"marName": "film.mar"}}}}
    (tmp_path / "config" / "config.properties").write_text(f"model_snapshot={json.dumps(snapshot)}")
    with Container({"kserve": tmp_path}, GRPC_PORT="set") as here:
        assert here.probe("/v2/health/ready") <= {0, 503}
        assert here.get("/v2/models/film/ready") == 200
        assert len(here.post("/v1/models/film:predict", {"instances": ["a"]}).json()["predictions"]) == 1
        wanted = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}]}
        assert here.post("/v2/models/film/infer", wanted).json()["model_name"] == "film"
        with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{here.grpc}") as client:
            assert client.is_server_ready() and client.is_model_ready("film")
            text = tritonclient.grpc.InferInput("text", [1], "BYTES")
            text.set_data_from_numpy(np.array(["a"], object))
            assert client.infer("film", [text]).as_numpy("label").shape == (1,)


def test_a_model_that_does_not_load_ends_it(model):
    quick = "maxRetryTimeoutInSec=1 handler.max_tokens=65"
    with Container({"repository": model}, KEYS="platform", SET=quick) as here:
        while here.process.poll() is None:
            assert here.get("/health") in (0, 503)
            time.sleep(0.2)
        assert here.process.returncode == 1
    assert "given up on a model's worker" in here.output and "max_tokens is 65" in here.output


def test_a_stop_is_heard_before_anything_is_served(model):
    """As the process with id 1 it would not be without a handler, until the platform kills it."""

    def handles_it(here):
        status = Path(f"/proc/{here.process.pid}/status").read_text()
        return int(status.partition("SigCgt:")[2].split()[0], 16) >> (signal.SIGTERM - 1) & 1

    def makes_the_archive(here):
        return any("archiver" in process.cmdline() for process in here.family())

    for moment in (handles_it, makes_the_archive):
        with Container({"repository": model}, KEYS="platform") as here:
            while not moment(here):
                assert here.process.poll() is None
            family = here.family()
            asked = time.monotonic()
            here.stop()
            assert here.status == 0 and time.monotonic() - asked < 3
            assert not [process for process in psutil.wait_procs(family, timeout=1)[1] if runs(process)]
            assert os.listdir(here.temp.name) == [here.log.name]


def test_without_keys_it_does_not_start(model):
    with Container({"repository": model}) as here:
        assert here.process.wait(60) == 1
    assert "error: KEYS: is missing" in here.output
