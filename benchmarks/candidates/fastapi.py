"""The seed's FastAPI servers: each request by itself, and batched."""

from __future__ import annotations

import json
from typing import ClassVar

from benchmarks.candidates.candidate import CLASSIFY, Candidate, Job, Wire, confidence, text_body
from benchmarks.environments import PEERS

MODEL_BY_VARIABLE = "the model's path comes from a variable in place of the hub's name of a model"


def texts_body(text: str) -> bytes:
    """{"texts": [one]}."""
    return json.dumps({"texts": [text]}).encode()


class FastapiPlain(Candidate):
    """fastapi_server.py."""

    name = "fastapi-plain"
    about = "the seed's FastAPI server: every request by itself, uvicorn with its defaults"
    wires: ClassVar = {
        CLASSIFY: Wire("/predict", texts_body, lambda answer: answer["predictions"][0]["probabilities"])
    }
    repairs: ClassVar[tuple[str, ...]] = (MODEL_BY_VARIABLE,)
    module = "seed_fastapi"

    def command(self, job: Job) -> list[str]:
        """The seed's command line."""
        line = [self.python, "-m", "uvicorn", f"{self.module}:app", "--app-dir", str(PEERS)]
        return [*line, "--host", "127.0.0.1", "--port", str(job.port)]

    def variables(self, job: Job) -> dict[str, str]:
        """Where the model is."""
        return {"BENCH_MODEL": str(job.model)}


class FastapiBatched(FastapiPlain):
    """batched_server.py."""

    name = "fastapi-batched"
    about = "the seed's batched FastAPI server: batches of 32, waiting up to 100 ms, uvicorn with its defaults"
    wires: ClassVar = {CLASSIFY: Wire("/predict", text_body, confidence)}
    repairs = (
        MODEL_BY_VARIABLE,
        "the loop that collects a batch sleeps 1 ms where the queue is empty; as written it does not yield, so "
        "that no request comes in during the 100 ms that it waits for them",
    )
    module = "seed_batched"
