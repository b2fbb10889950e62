"""TorchServe without this project: stock launcher and logging; and with the seed's handler and configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from benchmarks.candidates.candidate import CLASSIFY, PYTHON, Candidate, Job, Wire, text_body
from benchmarks.environments import PEERS
from benchmarks.processes import run
from serving.java import find_java

ADDRESSES = ("inference_address", "management_address", "metrics_address")
GRPC_PORTS = ("grpc_inference_port", "grpc_management_port")
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


class TorchServeSeed(Candidate):
    """The seed's handler.py, archive and config.yaml."""

    name = "torchserve-seed"
    about = "TorchServe, the seed's handler and configuration: batchSize 32, maxBatchDelay 100, stock logging"
    environment = None
    wires: ClassVar = {
        CLASSIFY: Wire("/predictions/classifier", text_body, lambda answer: answer["probabilities"])
    }
    repairs = (
        "config.yaml is written as config.properties, which is what TorchServe reads; its keys as they stand",
        "no --model-file and no --serialized-file: the handler reads neither; the model's directory travels as "
        "--extra-files instead, with model.safetensors",
        "listens on 127.0.0.1, on ports of its own",
        "disable_token_authorization=true: without it an anonymous call is refused",
    )

    def prepare(self, job: Job) -> None:
        """Builds the archive with torch-model-archiver."""
        files = ",".join(str(job.model / name) for name in MODEL_FILES)
        archive(job, "classifier", PEERS / "seed_handler.py", "--extra-files", files)

    def command(self, job: Job) -> list[str]:
        """With what config.yaml says."""
        model = {
            "defaultVersion": True,
            "marName": "classifier.mar",
            "minWorkers": 1,
            "maxWorkers": 4,
            "batchSize": 32,
            "maxBatchDelay": 100,
            "responseTimeout": 120,
        }
        properties = {
            "number_of_netty_threads": "4",
            "job_queue_size": "1000",
            "default_workers_per_model": "1",
            "install_py_dep_per_model": "true",
            "async_logging": "true",
            "models": json.dumps({"classifier": {"1.0": model}}),
        }
        return stock(job, "classifier=classifier.mar", properties)

    def variables(self, job: Job) -> dict[str, str]:
        """The same Java as ours."""
        return java_home()


def archive(job: Job, name: str, handler: Path, *more: str) -> None:
    """torch-model-archiver, with its default format."""
    program = str(Path(PYTHON).with_name("torch-model-archiver"))
    line = [program, "--model-name", name, "--version", "1.0", "--handler", str(handler), "--force", *more]
    run([*line, "--export-path", str(job.store)], job.scratch)


def stock(job: Job, model: str, properties: Mapping[str, str]) -> list[str]:
    """`torchserve --start`, kept in the foreground as a service manager would."""
    ours = {name: f"http://127.0.0.1:{job.port + offset}" for offset, name in enumerate(ADDRESSES)}
    ours |= {name: str(job.port + len(ADDRESSES) + offset) for offset, name in enumerate(GRPC_PORTS)}
    ours |= {"disable_token_authorization": "true"}
    config = job.scratch / "config.properties"
    config.write_text("".join(f"{name}={value}\n" for name, value in (ours | dict(properties)).items()))
    line = [PYTHON, "-m", "ts.model_server", "--start", "--foreground", "--ncs", "--ts-config", str(config)]
    return [*line, "--model-store", str(job.store), "--models", model]


def java_home() -> dict[str, str]:
    """The Java that this project would choose, for all that need one."""
    return {"JAVA_HOME": str(Path(find_java()).resolve().parent.parent)}
