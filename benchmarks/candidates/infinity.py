"""infinity-emb: embeddings over the route that OpenAI's API has."""

from __future__ import annotations

import json
from typing import ClassVar

from benchmarks.candidates.candidate import EMBED, Candidate, Job, Wire
from benchmarks.environments import Environment


def openai_body(text: str) -> bytes:
    """One text for /embeddings."""
    return json.dumps({"model": "bench", "input": [text]}).encode()


class Infinity(Candidate):
    """Its own command."""

    name = "infinity"
    about = "infinity-emb, torch engine: batch-size 64, float32, no compile"
    environment = Environment("infinity")
    wires: ClassVar = {EMBED: Wire("/embeddings", openai_body, lambda answer: answer["data"][0]["embedding"])}
    repairs = ("run with the newest transformers and sentence-transformers that it works with, which are old",)

    def command(self, job: Job) -> list[str]:
        """infinity_emb v2."""
        line = [str(self.environment.python.with_name("infinity_emb")), "v2", "--model-id", str(job.model)]
        line += ["--served-model-name", "bench", "--engine", "torch", "--device", "cpu", "--dtype", "float32"]
        line += ["--batch-size", "64", "--no-compile"]
        return [*line, "--host", "127.0.0.1", "--port", str(job.port)]

    def variables(self, job: Job) -> dict[str, str]:
        """It tells nobody."""
        return {"INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1"}
