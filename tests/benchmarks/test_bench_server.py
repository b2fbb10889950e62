"""The benchmark itself, from start to end, on a small scale."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.server
@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed: apt-get install wrk")
@pytest.mark.slow
def test_it_measures_this_project_beside_the_ceiling(tmp_path):
    line = [sys.executable, "-P", "-m", "benchmarks", "encoder", "--only", "ours,ceiling"]
    line += ["--tasks", "text-classification", "--texts", "32", "--results", str(tmp_path)]
    line += ["--rounds", "1", "--seconds", "1", "--open-seconds", "2"]
    done = subprocess.run(
        line, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    (raw,) = tmp_path.glob("*-encoder.json")
    found = json.loads(raw.read_text())
    assert {one["candidate"]: one["state"] for one in found["standings"]} == dict.fromkeys(
        ("ours", "ceiling"), "measured"
    )
    cells = {one["cell"]: one["load"] for one in found["measurements"] if one["candidate"] == "ours"}
    assert {"mixed@1", "mixed@16", "mixed@64", "short@64", "long@64"} <= set(cells)
    assert all(load["per_second"] > 0 and load["errors"] == 0 for load in cells.values())
    assert "over the ceiling" in raw.with_suffix(".md").read_text()
