"""LitServe with batching."""

from __future__ import annotations

from typing import ClassVar

from benchmarks.candidates.candidate import CLASSIFY, EMBED, Candidate, Job, Wire, text_body
from benchmarks.environments import PEERS

BATCH_TIMEOUT = "0.005"  # s


class LitServe(Candidate):
    """peers/litserve_server.py."""

    name = "litserve"
    about = f"LitServe: max_batch_size 64, batch_timeout {BATCH_TIMEOUT} s, one worker, padding a batch"
    wires: ClassVar = dict.fromkeys(
        (CLASSIFY, EMBED), Wire("/predict", text_body, lambda answer: answer["output"])
    )

    def command(self, job: Job) -> list[str]:
        """The script."""
        script = PEERS / "litserve_server.py"
        return [self.python, str(script), job.task, str(job.model), str(job.port), BATCH_TIMEOUT]
