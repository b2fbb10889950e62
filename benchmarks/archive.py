"""How fast an archive is built, beside torch-model-archiver's default format, in the same run.

Both pack the same model and the same handler; they take turns, and both are processes from start to end. Ours
opens the archive in a worker before it puts it in place, and that is part of its time.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.candidates.candidate import PYTHON
from benchmarks.environments import ROOT
from benchmarks.figures import Results
from benchmarks.processes import Failed

UPSTREAM, OURS = "torch-model-archiver default", "archiver zip-store"
Say = Callable[[str], None]


def write_model(folder: Path, megabytes: int) -> None:
    """Weights as a trained model's are: bfloat16 of a normal distribution, which hardly deflates."""
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["BertForSequenceClassification"]}')
    size = megabytes * 1_000_000
    header = json.dumps({"w": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    draw = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(megabytes):
            values = draw.standard_normal(500_000, dtype=np.float32) * 0.02
            file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())


def timed(line: list[str], **environment: str) -> float:
    """Seconds from start to end. Raises Failed."""
    started = time.perf_counter()
    done = subprocess.run(
        line,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        cwd=tempfile.gettempdir(),
        check=False,
    )
    if done.returncode:
        raise Failed(f"{Path(line[0]).name} failed: {done.stderr.strip()[-200:]}")
    return time.perf_counter() - started


def measure(megabytes: int, rounds: int, results: Results, say: Say) -> None:
    """Builds in turns."""
    times: dict[str, list[float]] = {UPSTREAM: [], OURS: []}
    results.extra = {"megabytes": megabytes, "seconds": times}
    with tempfile.TemporaryDirectory(prefix="bench-") as private:
        place = Path(private)
        say(f"writing {megabytes} MB of weights")
        write_model(place / "model", megabytes)
        (place / "out").mkdir()
        upstream = [str(Path(PYTHON).with_name("torch-model-archiver")), "--model-name", "up", "--version", "1"]
        upstream += ["--handler", str(ROOT / "handler" / "transformer_handler.py"), "--force"]
        upstream += ["--extra-files", str(place / "model"), "--export-path", str(place / "out")]
        ours = [PYTHON, "-P", "-m", "archiver", "build", "--model", str(place / "model"), "--force"]
        ours += ["--task", "text-classification", "--model-name", "m", "--version", "1"]
        ours += ["--export-path", str(place / "out")]
        for number in range(rounds):
            times[UPSTREAM].append(timed(upstream, TMPDIR=private))
            times[OURS].append(timed(ours, PYTHONPATH=str(ROOT)))
            say(
                f"[{number + 1}/{rounds}] " + ", ".join(f"{name} {took[-1]:.2f} s" for name, took in times.items())
            )
