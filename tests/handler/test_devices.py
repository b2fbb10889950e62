from __future__ import annotations

import os
import subprocess
import sys

import pytest

KERNELS = """
import sys
import torch
from handler import devices

if sys.argv[1] == "bounded":
    devices.bound_kernels()
for size in [*range(10, devices.KEPT_KERNELS + 20), 10]:
    torch.nn.functional.gelu(torch.zeros(1, size))
"""


@pytest.mark.parametrize(("bound", "times"), [("bounded", 2), ("unbounded", 1)])
def test_kernels_of_shapes_long_past_are_forgotten(bound, times):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ONEDNN")}
    ended = subprocess.run(
        [sys.executable, "-c", KERNELS, bound],
        env={**inherited, "ONEDNN_VERBOSE": "profile_create"},  # without what an earlier test's worker has set
        capture_output=True,
        text=True,
        check=True,
    )
    created = [line for line in ended.stdout.splitlines() if "create:cache_miss" in line]
    assert sum(",1x10," in line for line in created) == times, ended.stdout[-500:]
