"""Triton with its dynamic batcher, through nvidia-pytriton."""

from __future__ import annotations

import json
from typing import ClassVar

from benchmarks.candidates.candidate import CLASSIFY, EMBED, Candidate, Job, Wire
from benchmarks.environments import PEERS, Environment

QUEUE_DELAY = "0"  # microseconds


def infer_body(text: str) -> bytes:
    """One text in the KServe v2 protocol."""
    inputs = [{"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [text]}]
    return json.dumps({"inputs": inputs}).encode()


class Triton(Candidate):
    """peers/triton_server.py."""

    name = "triton"
    about = f"Triton (nvidia-pytriton): dynamic batcher, max_batch_size 64, queue delay {QUEUE_DELAY} us"
    environment = Environment("triton", "/usr/bin/python3")
    wires: ClassVar = dict.fromkeys(
        (CLASSIFY, EMBED), Wire("/v2/models/bench/infer", infer_body, lambda answer: answer["outputs"][0]["data"])
    )
    repairs = (
        "the seed's config.pbtxt asks for a TorchScript file and a GPU, and its client tokenizes; here the server "
        "takes texts, as all others do",
        "max_batch_size 64 and no queue delay, not its 32 and 100 ms: a batch starts when the model is free",
    )

    def command(self, job: Job) -> list[str]:
        """The script; it starts Triton itself."""
        script = PEERS / "triton_server.py"
        return [self.python, str(script), job.task, str(job.model), str(job.port), QUEUE_DELAY]

    def variables(self, job: Job) -> dict[str, str]:
        """Where it unpacks itself."""
        return {"PYTRITON_HOME": str(job.scratch / "triton")}
