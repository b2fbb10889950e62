"""One worker's model without a server, in a process of its own: how fast are budgets and lanes?

    python -m tuning.inside JOB.json

The job names an archive's directory. A line of JSON on stdout for each measurement, and one at the end.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml

from handler import devices, wings
from handler.config import read_config
from handler.errors import HandlerError, LoadError
from handler.lanes import Lanes
from handler.pipeline import BatchPipeline

JSON_HEADER = {"Content-Type": "application/json"}


class NotAnswered(Exception):
    """The handler refuses one of the requests."""


def main() -> int:
    """Loads and measures."""
    job = json.loads(Path(sys.argv[1]).read_text())
    try:
        worker, device = load(Path(job["directory"]), job["name"])
        measure(worker, device, job, in_batches(job["bodies"], job["connections"]))
    except (LoadError, NotAnswered) as err:
        tell(error=str(err))
    return 0


def load(directory: Path, name: str) -> tuple[BatchPipeline, torch.device]:
    """The archive as a worker loads it, and the device: the first of its GPUs, if any. Raises LoadError."""
    document = yaml.safe_load((directory / "model-config.yaml").read_text())
    server = read_config(document).server
    gpu = (server.deviceIds or [0])[0] if server.deviceType != "cpu" and torch.cuda.is_available() else None
    return wings.load(directory, document, name, gpu), devices.choose(gpu, server.deviceType)


def in_batches(bodies: Sequence[str], size: int) -> list[list[dict[str, bytearray]]]:
    """Requests as the frontend hands them over, as many at once as there are connections."""
    rows = [{"body": bytearray(body.encode())} for body in bodies]
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def measure(
    worker: BatchPipeline, device: torch.device, job: dict[str, Any], batches: Sequence[list[dict[str, bytearray]]]
) -> None:
    """Every setting in every round; every other round backwards, so that a drift of the machine evens out."""
    counts = {setting["lanes"] for setting in job["settings"]}
    lanes = {count: Lanes(device, job["threads"], count) for count in counts}
    for batch in batches:
        answer(worker, batch)  # what is refused is refused before anything is measured
    for number in range(job["rounds"]):
        for index in range(len(job["settings"]))[:: -1 if number % 2 else 1]:
            setting = job["settings"][index]
            worker.batch_tokens, worker.lanes = setting["budget"], lanes[setting["lanes"]]
            answer(worker, batches[0])
            tell(index=index, round=number, rate=rate(worker, batches, job["seconds"]))
    tell(memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def rate(worker: BatchPipeline, batches: Sequence[list[dict[str, bytearray]]], seconds: float) -> float:
    """Requests a second, over all batches at least once."""
    done, begun = 0, time.perf_counter()
    while True:
        for batch in batches:
            answer(worker, batch)
            done += len(batch)
        if (took := time.perf_counter() - begun) >= seconds:
            return done / took


def answer(worker: BatchPipeline, rows: list[dict[str, bytearray]]) -> None:
    """One batch, as far as its results. Raises NotAnswered where the handler answers an error."""
    context = SimpleNamespace(get_all_request_header=lambda index: JSON_HEADER)
    for slot in worker.inference(worker.preprocess(rows, context)).slots:
        if isinstance(slot, HandlerError):
            raise NotAnswered(f"the handler answers {slot.status}: {slot}")


def tell(**report: object) -> None:
    """One line."""
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    sys.exit(main())
