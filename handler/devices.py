"""The device that a worker computes on: which it is, how many threads it gets, and what its failures mean."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from handler.errors import DeviceLost, LoadError, OutOfMemory
from handler.linear import CAPACITY

logger = logging.getLogger(__name__)

# Tokens that go through a model at once, padding included, where the configuration does not say. On two CPU cores
# all-MiniLM-L6-v2 did 100, 101, 96, 95 and 88 texts/s with 256, 384, 512, 768 and 1024, in batches of 64 texts of
# 4 to 120 words, a core for each micro-batch; and small ones share out evenly. A GPU wants more; its figure is
# text-embeddings-inference's and has not been measured here.
BATCH_TOKENS = {"cpu": 512, "cuda": 16_384}

# What one forward costs by itself, in tokens: reading the weights, and transformers' Python. On one core of that
# CPU 6.5 ms beside 0.26 ms a token; a worker on a CPU measures its own. A GPU's is reckoned, not measured: 5 ms at
# a million tokens/s.
LAUNCH_TOKENS = {"cpu": 24, "cuda": 4096}
LEAST_LAUNCH, MOST_LAUNCH = 4, 128  # what is measured is kept within these

# As many tokens as so many launches go through at once, where that is more. A model of 96 dimensions, whose launch
# is 119 tokens, took 0.91 of the time with the measured launch for batches of 64, and 0.82 with this as well; 0.90
# and 0.83 for 16, 0.92 and 0.91 for 4. With all-MiniLM-L6-v2 (21 tokens) nothing changed.
LAUNCHES = 16

MEASURED_TOKENS = 128  # of the longer of the two forwards that are timed

MOST_LANES = 4  # transformers' Python holds the interpreter for about a tenth of a small forward

# oneDNN compiles kernels for each shape that it meets and keeps the last 1,024, some 20 MB that a worker grows by.
# 64 are enough for all layers of a forward in every lane; no rate was seen to fall, with 16 neither.
KEPT_KERNELS = 64

CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # cgroup v2: "QUOTA PERIOD" in microseconds, or "max PERIOD"


def choose(gpu_id: int | None, wanted: str | None) -> torch.device:
    """The worker's GPU where TorchServe has given it one, else the CPU.

    TorchServe does not narrow CUDA_VISIBLE_DEVICES, so without `set_device` every worker would also hold a
    context on the first GPU.

    Args:
        gpu_id: what TorchServe gave. It gives none where it sees no GPU, whatever the archive asks for.
        wanted: the archive's deviceType.

    Raises:
        LoadError: the archive asks for a GPU and there is none.
    """
    # float32 is to be float32: on a GPU, importing BaseHandler makes it TF32 (base_handler.py:48).
    torch.set_float32_matmul_precision("highest")
    if gpu_id is None or not torch.cuda.is_available():
        if wanted == "gpu":
            raise LoadError("deviceType is gpu, but " + _why_no_gpu(gpu_id))
        if gpu_id is not None:
            logger.warning("computing on the CPU: %s", _why_no_gpu(gpu_id))
        return torch.device("cpu")
    torch.cuda.set_device(int(gpu_id))
    return torch.device("cuda", int(gpu_id))


def _why_no_gpu(gpu_id: int | None) -> str:
    return "TorchServe sees no GPU on this machine" if gpu_id is None else "this PyTorch cannot use CUDA here"


def share_cores(workers: int, threads: int | None) -> int:
    """Sets and returns this worker's CPU threads: the usable cores shared among the workers, unless told."""
    count = threads or max(1, usable_cores() // max(1, workers))
    torch.set_num_threads(count)
    return count


def bound_kernels() -> None:
    """Makes oneDNN keep fewer kernels; it reads this once, when a process first computes."""
    os.environ.setdefault(CAPACITY, str(KEPT_KERNELS))


def lanes(device: torch.device, threads: int, wanted: int | None = None) -> int:
    """Micro-batches that run at once: as many as the configuration wants, if it says."""
    default = 1 if device.type == "cuda" else min(threads, MOST_LANES)
    return wanted or default


def launch_tokens(short: tuple[int, float], long: tuple[int, float]) -> int:
    """What a forward costs by itself, in tokens, as two of them tell: the tokens and the seconds of each."""
    a_token = (long[1] - short[1]) / (long[0] - short[0])
    launch = short[1] / a_token - short[0] if a_token > 0 else MOST_LAUNCH
    return round(min(max(launch, LEAST_LAUNCH), MOST_LAUNCH))


def lane_threads(threads: int, lanes: int) -> int:
    """What each of several micro-batches has; a lone one has all."""
    return max(1, threads // lanes)


def usable_cores(quota: Path = CGROUP_QUOTA) -> int:
    """Cores that this process may use: its affinity, or less where its control group is limited to less."""
    cores = len(os.sched_getaffinity(0))
    try:
        limit, period = quota.read_text().split()
        return cores if limit == "max" else max(1, min(cores, int(limit) // int(period)))
    except (OSError, ValueError):
        return cores


@contextmanager
def failures() -> Iterator[None]:
    """Gives the failures of a forward their names.

    Raises:
        OutOfMemory: the device or the machine has no room for it; a smaller batch may fit.
        DeviceLost: the CUDA context is unusable from here on; no further call in this process can succeed.
    """
    try:
        yield
    except torch.OutOfMemoryError as err:
        raise _out_of_device_memory(err) from None
    except MemoryError as err:
        raise OutOfMemory("the input does not fit in memory") from err
    except RuntimeError as err:
        if any(words in str(err) for words in ("CUDA error: out of memory", "ALLOC_FAILED")):  # cuBLAS's, cuDNN's
            raise _out_of_device_memory(err) from None
        if isinstance(err, torch.AcceleratorError) or "CUDA error" in str(err):
            raise DeviceLost(f"the device is gone: {str(err).splitlines()[0]}") from err
        if "DefaultCPUAllocator" in str(err):  # c10/core/impl/alloc_cpu.cpp has no type of its own
            raise OutOfMemory("the input does not fit in memory") from err
        raise


def _out_of_device_memory(err: Exception) -> OutOfMemory:
    # The frames of the failed forward hold its tensors; until they go there is nothing to give back.
    traceback.clear_frames(err.__traceback__)
    torch.cuda.empty_cache()
    return OutOfMemory("the input does not fit in the device's memory")
