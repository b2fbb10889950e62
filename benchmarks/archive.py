"""How fast an archive is built, beside torch-model-archiver's default format, in the same run.

    python benchmarks/archive.py [--megabytes 500] [--runs 3]

Both pack the same model and the same handler; they take turns, and both are processes from start to end. Ours
opens the archive in a worker before it puts it in place, and that is part of its time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def write_model(folder: Path, megabytes: int) -> None:
    """Weights as a trained model's are: bfloat16 of a normal distribution, which hardly deflates."""
    import numpy  # noqa: PLC0415

    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["BertForSequenceClassification"]}')
    size = megabytes * 1_000_000
    header = json.dumps({"w": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    draw = numpy.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(megabytes // 10):
            values = draw.standard_normal(5_000_000, dtype=numpy.float32) * 0.02
            file.write((values.view(numpy.uint32) >> 16).astype(numpy.uint16).tobytes())


def timed(line: list[str], **environment: str) -> float:
    """Seconds from start to end."""
    started = time.perf_counter()
    subprocess.run(
        line, check=True, capture_output=True, env={**os.environ, **environment}, cwd=tempfile.gettempdir()
    )
    return time.perf_counter() - started


def main() -> None:
    """Builds in turns and prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=500, help="of weights; a multiple of 10")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--house", type=Path, default=ROOT, help="the repository with archiver/ and handler/")
    flags = parser.parse_args()
    times: dict[str, list[float]] = {"torch-model-archiver default": [], "archiver zip-store": []}
    with tempfile.TemporaryDirectory(prefix="bench-") as private:
        place = Path(private)
        write_model(place / "model", flags.megabytes)
        (place / "out").mkdir()
        upstream = [
            str(Path(sys.executable).with_name("torch-model-archiver")),
            "--model-name",
            "up",
            "--version",
            "1",
        ]
        upstream += ["--handler", str(flags.house / "handler" / "transformer_handler.py"), "--force"]
        upstream += ["--extra-files", str(place / "model"), "--export-path", str(place / "out")]
        ours = [sys.executable, "-P", "-m", "archiver", "build", "--model", str(place / "model"), "--force"]
        ours += ["--task", "text-classification", "--model-name", "m", "--version", "1"]
        ours += ["--export-path", str(place / "out")]
        for _ in range(flags.runs):
            times["torch-model-archiver default"].append(timed(upstream, TMPDIR=private))
            times["archiver zip-store"].append(timed(ours, PYTHONPATH=str(flags.house)))
        shutil.rmtree(place / "out")
    for name, seconds in times.items():
        print(f"{name:30}{statistics.median(seconds):8.2f} s   runs: {', '.join(f'{s:.2f}' for s in seconds)}")
    slow, fast = (statistics.median(seconds) for seconds in times.values())
    print(f"{slow / fast:.1f} times as fast, {flags.megabytes} MB of weights, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
