"""The closed loop: wrk keeps so many connections busy, and each sends its next request when it has its answer."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environments import Unavailable
from benchmarks.figures import Load
from benchmarks.http_client import HOST
from benchmarks.processes import Failed

SCRIPT = Path(__file__).with_name("wrk.lua")
WARM_SECONDS = 1.0  # more than is asked for: until each connection has its first answer, nothing is counted
NO_TIMEOUT = "60s"


def find_wrk() -> str:
    """The program.

    Raises:
        Unavailable: it is not installed.
    """
    if found := shutil.which("wrk"):
        return found
    raise Unavailable("wrk is not installed: apt-get install wrk")


def closed_loop(url: str, bodies: Path, connections: int, seconds: float, *, lumps: bool = True) -> Load:
    """Runs wrk.

    Args:
        url: where to POST.
        bodies: a file with one body a line, sent in turn.
        connections: how many are kept busy.
        seconds: how long, about.
        lumps: whether answers come in batches that are large beside what comes in these seconds; see `rate`.

    Raises:
        Failed: wrk does not run, or nothing was answered.
    """
    line = [find_wrk(), "--threads", "1", "--connections", str(connections), "--timeout", NO_TIMEOUT]
    line += ["--duration", f"{round(seconds + WARM_SECONDS)}s", "--script", str(SCRIPT), url, "--", str(bodies)]
    done = subprocess.run([*line, *(["times"] if lumps else [])], capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.strip().endswith("}"):
        raise Failed(f"wrk failed: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")
    return read(json.loads(done.stdout.strip().splitlines()[-1]), connections)


def read(said: dict[str, Any], connections: int) -> Load:
    """What wrk.lua prints."""
    good = said["requests"] - said["errors"]
    if good <= 0:
        raise Failed(f"nothing was answered within {said['seconds']:.0f} s at {connections} connections")
    per_second = rate(said["times"], connections) or good / said["seconds"]
    percentiles = {name: said[name] for name in ("p50", "p90", "p95", "p99")}
    return Load(per_second=per_second, requests=said["requests"], errors=said["errors"], **percentiles)


def rate(times: Sequence[float], connections: int) -> float | None:
    """Answers a second between each connection's first answer and its last; nothing where there are too few.

    A server that batches answers in lumps, at 64 connections a tenth of all that come in six seconds, and a count
    over the whole time would be off by half a lump. The first and the last answers of all connections are as many
    as there are connections, and the mean moments of these two groups bound the count.
    """
    moments = np.sort(np.asarray(times))
    if len(moments) < 2 * connections:
        return None
    took = moments[-connections:].mean() - moments[:connections].mean()
    return float((len(moments) - connections) / took)


def url(port: int, path: str) -> str:
    """Where to POST."""
    return f"http://{HOST}:{port}{path}"
