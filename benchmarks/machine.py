"""What a run was made on, and with which versions."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from typing import Any

import psutil

from benchmarks.environments import ROOT
from serving.java import find_java
from tuning.machine import processor

PACKAGES = ("torch", "transformers", "tokenizers", "torchserve", "numpy", "orjson")
PEERS = (
    "torch",
    "transformers",
    "fastapi",
    "uvicorn",
    "litserve",
    "nvidia-pytriton",
    "infinity_emb",
    "infinity-emb",
)


def describe() -> dict[str, Any]:
    """Machine, versions and commit."""
    changed = bool(_said("git", "status", "--porcelain", "--untracked-files=no"))
    return {
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_at_start": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "java": _said(find_java(), "-version").partition("\n")[0],
        "wrk": _said("wrk", "-v").partition(" Copyright")[0],
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "commit": _said("git", "rev-parse", "--short=12", "HEAD") + (" and changes" if changed else ""),
    }


def busy_cores() -> float:
    """Cores that are in use now, while nothing of ours runs: whoever is measured next has to share with that."""
    return float(psutil.cpu_percent(interval=1)) / 100 * len(os.sched_getaffinity(0))


def pick(versions: dict[str, str]) -> dict[str, str]:
    """Of all that an environment holds, what matters."""
    return {name: version for name, version in versions.items() if name in PEERS}


def today() -> str:
    """The date, in UTC."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    except OSError:
        return "none"
    return (done.stdout or done.stderr).strip()
