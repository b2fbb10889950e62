"""This project over TorchServe, over HTTP, as it is shipped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from benchmarks.candidates.candidate import CLASSIFY, EMBED, PYTHON, Candidate, Job, Wire, text_body
from benchmarks.candidates.torchserve import java_home
from benchmarks.environments import ROOT
from benchmarks.processes import run


class Ours(Candidate):
    """`scripts/archive.sh` and `scripts/serve.sh`, with every default."""

    name = "ours"
    about = (
        "this project: the archive's defaults (batchSize 64, maxBatchDelay 1), scripts/serve.sh's configuration"
    )
    environment = None
    wires: ClassVar = {
        CLASSIFY: Wire("/predictions/bench", text_body, lambda answer: answer["probabilities"]),
        EMBED: Wire("/predictions/bench", text_body, lambda answer: answer["embeddings"][0]),
    }

    def prepare(self, job: Job) -> None:
        """Builds the archive."""
        named = ("--model-name", "bench", "--version", "1.0")
        build(job, "--model", str(job.model), "--task", job.task, *named)

    def command(self, job: Job) -> list[str]:
        """What scripts/serve.sh runs."""
        return serving(job, "bench=bench.mar")

    def variables(self, job: Job) -> dict[str, str]:
        """The same Java as TorchServe's."""
        return {"PYTHONPATH": str(ROOT), **java_home()}


def pack(job: Job, name: str, handler: Mapping[str, Any], more: Sequence[str] = ()) -> None:
    """Builds an archive with this `handler:` section, and more KEY=VALUE; the weights stay where they are."""
    settings = [f"--set=handler.{key}={json.dumps(value)}" for key, value in handler.items()]
    settings += [f"--set={pair}" for pair in more]
    named = ("--model-name", name, "--version", "1.0")
    build(job, "--model", str(job.model), *named, "--archive-format", "no-archive", *settings)


def build(job: Job, *arguments: str) -> None:
    """An archive in the job's store, by the archiver that stands here."""
    line = [PYTHON, "-m", "archiver", "build", *arguments, "--force", "--export-path", str(job.store)]
    run(["env", f"PYTHONPATH={ROOT}", *line], job.scratch)


def serving(job: Job, *models: str) -> list[str]:
    """What scripts/serve.sh runs."""
    line = [PYTHON, "-m", "serving", "--model-store", str(job.store), "--models", *models]
    return [*line, "--port-base", str(job.port)]
