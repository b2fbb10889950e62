"""What a run was made on."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
import ts

from handler.devices import usable_cores
from serving import java
from tuning.machine import processor


@dataclass(frozen=True)
class Machine:
    """The facts that a figure means nothing without."""

    processor: str
    cores: int
    gpu: str  # empty: none
    driver: str
    cuda: str  # of torch
    python: str
    torch: str
    transformers: str
    torchserve: str
    java: str
    java_home: str
    load: float  # average of the last minute, when the run began


def look() -> Machine:
    """This machine."""
    home = java.find_java()
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    return Machine(
        processor=processor(),
        cores=usable_cores(),
        gpu=gpu,
        driver=_first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        cuda=torch.version.cuda or "",
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        torchserve=ts.__version__,
        java=_first_line([home, "-version"]),
        java_home=str(Path(home).parent.parent),
        load=os.getloadavg()[0],
    )


def gpu_processes() -> list[str]:
    """What nvidia-smi says of processes on the GPU: "pid, memory" each."""
    return _run(["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader"]).splitlines()


def gpu_memory() -> int:
    """Bytes of the first GPU's memory that are taken; 0 where there is none."""
    taken = _first_line(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"])
    return int(taken) << 20 if taken.isdigit() else 0


def _first_line(command: Sequence[str]) -> str:
    return (_run(command).splitlines() or [""])[0]


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except OSError:
        return ""
    return done.stdout.strip() or done.stderr.strip()
