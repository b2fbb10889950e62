from __future__ import annotations

import pytest

from handler import devices
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


@pytest.mark.parametrize(
    ("short", "long", "launch"),
    [
        ((4, 0.0104), (132, 0.0232), 100),  # 10 ms, and 0.1 ms a token
        ((4, 0.0014), (132, 0.129), devices.LEAST_LAUNCH),
        ((4, 0.01), (132, 0.0101), devices.MOST_LAUNCH),
        ((4, 0.01), (132, 0.009), devices.MOST_LAUNCH),  # so small that the clock is not fine enough
    ],
)
def test_what_a_forward_costs_by_itself(short, long, launch):
    assert devices.launch_tokens(short, long) == launch
