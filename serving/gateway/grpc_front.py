"""The gateway's gRPC: serving/open_inference.py as a child, called by HAProxy and calling HAProxy."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from serving.children import own_session
from serving.errors import CannotServe
from serving.gateway import render
from serving.gateway.config import Gateway

ROOT = Path(__file__).resolve().parent.parent.parent
NEEDED = ("grpc", "tritonclient")


def check_requirement() -> None:
    """Raises CannotServe where gRPC is not installed."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise CannotServe(f"grpc: needs {' and '.join(missing)}: pip install -r requirements-grpc.txt")


class GrpcFront:
    """The process.

    Args:
        gateway: what the gateway is told.
        folder: its own directory, where the sockets are.
    """

    def __init__(self, gateway: Gateway, folder: Path) -> None:
        told = {
            "address": f"unix:{folder}/{render.FRONT}",
            "health-address": f"unix:{folder}/{render.HEALTH}",
            "gateway": f"unix:{folder}/{render.INNER}",
            "threads": render.CALLS_IN_FLIGHT,
            "timeout": render.call_seconds(gateway),
            "body-bytes": gateway.limits.body_bytes,
        }
        command = [sys.executable, "-m", "serving.open_inference"]
        self.process = subprocess.Popen(
            [*command, *(f"--{name}={value}" for name, value in told.items())],
            cwd=ROOT,
            preexec_fn=own_session,  # noqa: PLW1509 - no thread has been started
        )

    def check(self) -> None:
        """Raises CannotServe when it has ended."""
        if (status := self.process.poll()) is not None:
            raise CannotServe(f"the gateway's gRPC ended by itself with status {status}; its last lines say why")
