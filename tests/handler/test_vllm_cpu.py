"""vLLM on a CPU: engine and model in one process with all cores, and kernels that are made while loading."""

from __future__ import annotations

import os
from argparse import Namespace

import pytest
from vllm.utils import cpu_resource_utils
from vllm.utils.cpu_resource_utils import LogicalCPUInfo

from handler import devices
from handler.generation import vllm_cpu
from handler.linear import SIZES
from tests.support import onednn, tiny_models

ALONE = dict.fromkeys(("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"), 1)
# 0 and 4 are siblings, and so on; the last two cores are of another node.
CPUS = [LogicalCPUInfo(number, number % 4, int(number % 4 > 1)) for number in range(8)]

SERVED = """
import sys
from pathlib import Path
import psutil
from tests.support import worker
from tests.support.rounds import Frontend

vllm = {"enforce_eager": True, "kv_cache_memory_bytes": 50_000_000, "max_model_len": 512}
service = worker.start(Path(sys.argv[1]), None, task="text-generation", engine="vllm", threads=2, vllm=vllm)
names = [child.name() for child in psutil.Process().children(recursive=True)]
print("its processes:", *(name for name in names if name.startswith("VLLM")))
print("READY", flush=True)
for words in (1, 5, 20, 33, 70, 130, 200, 300):
    asked = {"prompt": "a " * words, "max_new_tokens": 3}
    assert Frontend(service).ask(asked).status == 200
"""


@pytest.mark.parametrize(
    ("given", "bound", "alone"),
    [
        ({}, "", True),
        ({"distributed_executor_backend": "uni"}, "", True),
        ({"distributed_executor_backend": "mp"}, "", False),
        ({"tensor_parallel_size": 2}, "", False),
        ({"pipeline_parallel_size": 2}, "", False),
        ({"data_parallel_size": 2}, "", False),
        ({}, "0-1", False),
    ],
)
def test_who_says_how_it_is_to_compute_is_heard(monkeypatch, given, bound, alone):
    monkeypatch.setenv(vllm_cpu.BINDING, bound)
    arguments = Namespace(**{"distributed_executor_backend": None, **ALONE, **given})
    assert vllm_cpu.in_one_process(arguments) is alone
    told = vllm_cpu.ONE_PROCESS if alone else given.get("distributed_executor_backend")
    assert arguments.distributed_executor_backend == told


@pytest.mark.parametrize(
    ("cpus", "workers", "wanted", "said"),
    [
        (CPUS, 1, None, ("2", "{4,5}")),
        (CPUS, 2, None, ("1", "{4,5}")),
        (CPUS, 9, None, ("1", "{4,5}")),
        (CPUS, 2, 3, ("3", "{4,5}")),
        (CPUS[:2], 1, None, ("2", "kept")),
        (CPUS[2:4], 1, None, ("2", "kept")),  # none is of the node whose memory it has
    ],
)
def test_it_has_its_share_of_a_nodes_cores(monkeypatch, cpus, workers, wanted, said):
    monkeypatch.setattr(cpu_resource_utils, "get_allowed_cpu_list", lambda: cpus)
    monkeypatch.setattr(cpu_resource_utils, "get_visible_memory_node", lambda: [0, 1])
    monkeypatch.setattr(devices, "usable_cores", lambda: 8)
    monkeypatch.setenv("OMP_PLACES", "kept")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with vllm_cpu.threads(workers, wanted):
        assert (os.environ["OMP_NUM_THREADS"], os.environ["OMP_PLACES"]) == said
    assert "OMP_NUM_THREADS" not in os.environ and os.environ["OMP_PLACES"] == "kept"


def test_a_container_may_have_fewer_cores_than_its_machine(monkeypatch):
    monkeypatch.setattr(cpu_resource_utils, "get_allowed_cpu_list", lambda: CPUS)
    monkeypatch.setattr(devices, "usable_cores", lambda: 1)
    with vllm_cpu.threads(1, None):
        assert os.environ["OMP_NUM_THREADS"] == "1"


def test_its_one_process_makes_no_kernel_once_it_is_ready(tmp_path):
    tiny_models.chatter(tmp_path / "model", hidden=128)
    loading, _, serving = onednn.told(SERVED, str(tmp_path)).partition("READY")
    assert "its processes: VLLM::EngineCore\n" in loading
    made = "create:cache_miss,cpu,matmul"
    assert loading.count(made) >= 4 * len(SIZES)  # of four kinds of layers, two of them of one shape
    assert made not in serving
