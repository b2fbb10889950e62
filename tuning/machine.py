"""The machine that a recommendation is for."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

from handler.config import ModelConfig

PACKAGES = ("torch", "transformers", "torchserve")


def device_of(config: ModelConfig) -> str:
    """Where workers of this configuration compute: cpu or cuda."""
    import torch  # noqa: PLC0415  seconds, and a wrong recipe is told before

    return "cuda" if config.server.deviceType != "cpu" and torch.cuda.is_available() else "cpu"


def describe(device: str, cores: int) -> str:
    """The processor and, where it computes, the GPU."""
    described = f"{processor()}, {cores} cores"
    if device == "cuda":
        import torch  # noqa: PLC0415

        described += f", {torch.cuda.get_device_name(0)}"
    return described


def versions() -> str:
    """Of what the figures depend on."""
    found = [f"{name} {version(name)}" for name in PACKAGES]
    return ", ".join([f"Python {platform.python_version()}", *found])


def busy() -> float:
    """Processes that wanted to run in the last minute, on average."""
    return os.getloadavg()[0]


def free_memory() -> int:
    """Bytes that new processes may take, as the kernel reckons."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    raise OSError("/proc/meminfo names no MemAvailable")


def processor() -> str:
    """What the kernel calls it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
