"""The server as it is shipped: scripts/serve.sh's program with the repository's configuration."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import requests

from tests.support.torchserve import TorchServe

ROOT = Path(__file__).resolve().parent.parent.parent


@contextmanager
def served(
    model_store: Path, models: list[str], *arguments: str, environment: Mapping[str, str] | None = None
) -> Iterator[Serving]:
    """A server for many tests, which ends as it should."""
    with Serving(model_store, models, *arguments, environment=environment) as running:
        yield running
    assert running.status == 0


class Serving(TorchServe):
    """`python -m serving`, inside the `with` block; `stop` drains it by SIGTERM."""

    status: int | None = None  # what it ended with

    def __init__(
        self,
        model_store: Path,
        models: list[str],
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        fails_with: str | None = None,
    ) -> None:
        environment = {"PYTHONPATH": str(ROOT), **(environment or {})}
        super().__init__(model_store, models, environment=environment, fails_with=fails_with)
        self.arguments = ["--model-store", str(model_store), "--models", *models, *arguments]

    @property
    def gateway_url(self) -> str:
        """Where `--gateway` listens."""
        return f"http://127.0.0.1:{self.port_base + 5}"

    @property
    def exporter_url(self) -> str:
        """Where the gateway's metrics are."""
        return f"http://127.0.0.1:{self.port_base + 6}/metrics"

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.port_base + 3}"

    @property
    def supervisor(self) -> int:
        assert self._launcher is not None
        return self._launcher.pid

    def _start(self) -> None:
        command = [sys.executable, "-m", "serving", "--port-base", str(self.port_base), *self.arguments]
        with self.log.open("wb") as log:
            self._launcher = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)

    def _wait_ready(self) -> None:
        super()._wait_ready()
        while "--gateway" in self.arguments and self.health() != 200:
            self._check_alive()
            time.sleep(0.05)

    def health(self) -> int:
        """What the gateway says of itself; 0 where nobody listens."""
        try:
            return requests.get(f"{self.gateway_url}/health", timeout=5).status_code
        except requests.ConnectionError:
            return 0

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Tells it to stop, and proves that no process is left."""
        try:
            if self._launcher is not None:
                family = self.processes()
                if self._launcher.poll() is None:
                    os.kill(self._launcher.pid, number)
                self.status = self._launcher.wait(90)
                _, left = psutil.wait_procs(family, timeout=10)
                for process in left:
                    process.kill()
                assert not left, f"still running after stop: {left}"
        finally:
            self._launcher = None
            shutil.rmtree(self.temp, ignore_errors=True)
