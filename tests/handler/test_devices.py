from __future__ import annotations

import pytest

from tests.support import onednn

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
    output = onednn.told(KERNELS, bound)
    created = [line for line in output.splitlines() if "create:cache_miss" in line]
    assert sum(",1x10," in line for line in created) == times, output[-500:]
