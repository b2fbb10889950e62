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
WARM_SECONDS = 1.0  # at the start of every load, in which a server gets into its stride; not counted
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
        seconds: what is counted; WARM_SECONDS go before.
        lumps: whether answers come in batches that are large beside what comes in these seconds; see `rate`.

    Raises:
        Failed: wrk does not run, or nothing was answered.
    """
    line = [find_wrk(), "--threads", "1", "--connections", str(connections), "--timeout", NO_TIMEOUT]
    line += ["--duration", f"{round(seconds + WARM_SECONDS)}s", "--script", str(SCRIPT), url, "--", str(bodies)]
    done = subprocess.run([*line, *(["times"] if lumps else [])], capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.strip().endswith("}"):
        raise Failed(f"wrk failed: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")
    return read(json.loads(done.stdout.strip().splitlines()[-1]))


def read(said: dict[str, Any]) -> Load:
    """What wrk.lua prints."""
    good = said["requests"] - said["errors"]
    per_second = rate(said["times"]) or good / said["seconds"]
    percentiles = {name: said[name] for name in ("p50", "p90", "p95", "p99")}
    return Load(per_second=per_second, requests=said["requests"], errors=said["errors"], **percentiles)


def rate(times: Sequence[float]) -> float | None:
    """Answers a second, from the end of one lump to the end of another; nothing where there are no two.

    A server that batches answers in lumps, at 64 connections a tenth of all that come in six seconds, and a count
    would be off by half a lump. A lump ends before a pause: the longest in the first third begins the count, the
    longest in the last third ends it. Where there are no lumps any two answers do.
    """
    moments = np.sort(np.asarray(times))
    moments = moments[moments >= moments[0] + WARM_SECONDS] if len(moments) else moments
    pauses, length = np.diff(moments), moments[-1] - moments[0] if len(moments) else 0.0
    nowhere = np.empty(0, dtype=int)
    early = np.flatnonzero(moments[:-1] < moments[0] + length / 3) if len(pauses) else nowhere
    late = np.flatnonzero(moments[:-1] > moments[0] + length * 2 / 3) if len(pauses) else nowhere
    if not len(early) or not len(late):
        return None
    first, last = (int(part[np.argmax(pauses[part])]) for part in (early, late))
    return float((last - first) / (moments[last] - moments[first]))


def url(port: int, path: str) -> str:
    """Where to POST."""
    return f"http://{HOST}:{port}{path}"
