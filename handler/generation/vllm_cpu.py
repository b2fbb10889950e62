"""vLLM on a CPU: its engine and the model in one process, which computes with all of the worker's cores.

By itself vLLM gives each a process (vllm/platforms/cpu.py:333), because it does not tell an engine that it starts
how many threads to compute with; here that is said in the environment. The engine waits for the model in a loop
(vllm/distributed/device_communicators/shm_broadcast.py:175), for which the model has one core less
(vllm/utils/ompmultiprocessing.py:43), and in every worker it is bound to the same ones.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from handler import devices

if TYPE_CHECKING:
    from vllm.utils.cpu_resource_utils import LogicalCPUInfo

ONE_PROCESS = "handler.generation.vllm_executor.OneProcess"
BINDING = "VLLM_CPU_OMP_THREADS_BIND"  # with which cores are chosen by hand


def in_one_process(arguments: Namespace) -> bool:
    """Has the engine compute in its own process, where one can; whether it will."""
    shared = any(getattr(arguments, f"{kind}_parallel_size") != 1 for kind in ("tensor", "pipeline", "data"))
    if shared or os.environ.get(BINDING) or arguments.distributed_executor_backend not in (None, "uni"):
        return False
    arguments.distributed_executor_backend = ONE_PROCESS
    return True


@contextmanager
def threads(workers: int, wanted: int | None) -> Iterator[None]:
    """What is started meanwhile has so many, or its share of one node's cores, with one sibling of each.

    The cores are those that vLLM would choose, and the one beside that it would leave free.
    """
    from vllm.utils.cpu_resource_utils import get_allowed_cpu_list, get_visible_memory_node  # noqa: PLC0415

    allowed = get_allowed_cpu_list()
    chosen = one_of_each_core(allowed, get_visible_memory_node()[0])
    count = wanted or max(1, min(len(chosen), devices.usable_cores()) // workers)
    said = {"OMP_NUM_THREADS": str(count)}
    if len(chosen) < len(allowed):
        said |= {"OMP_PLACES": f"{{{','.join(map(str, chosen))}}}", "OMP_PROC_BIND": "true"}
    before = {key: os.environ.get(key) for key in said}
    os.environ |= said
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key)
            os.environ |= {} if value is None else {key: value}


def one_of_each_core(cpus: Iterable[LogicalCPUInfo], node: int) -> list[int]:
    """The last of each core's siblings, of a node's; of all nodes' where it has none."""
    everywhere = list(cpus)
    here = [cpu for cpu in everywhere if cpu.numa_node == node] or everywhere
    return sorted({cpu.physical_core: cpu.id for cpu in sorted(here, key=lambda cpu: cpu.id)}.values())
