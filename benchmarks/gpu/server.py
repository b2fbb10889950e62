"""The real TorchServe, started by `python -m serving` as an operator starts it, and ended without a trace."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import psutil

from benchmarks.gpu.models import ROOT, Deployment
from benchmarks.processes import Failed
from client import ManagementClient, MetricsClient, NotReachable, NotReady
from serving.ports import free_ports

READY_SECONDS = 300.0
STOP_SECONDS = 90.0
TASK = "feature-extraction"  # of every deployment
SAID_SECONDS = 10.0  # until a worker's line, which goes through TorchServe's log, is there
STEPS = ("parse", "encode", "forward", "decode", "write")


def served_on(log: Path, task: str, workers: int = 0) -> list[str]:
    """The device that each worker said it computes on, once so many have; one that finds no GPU is on the CPU."""
    end = time.monotonic() + SAID_SECONDS
    while True:
        said = re.findall(rf"serving {task} on (\S+) with", log.read_text(errors="replace"))
        if len(said) >= workers or time.monotonic() >= end:
            return said
        time.sleep(0.1)


class Server:
    """One TorchServe inside the `with` block.

    Attributes:
        host_port: where to predict.
        log: everything that the server and its workers print.
    """

    def __init__(self, temp: Path, store: Path, deployments: Sequence[Deployment], device: str) -> None:
        """Say what to serve.

        Args:
            temp: a short path of a directory for sockets and logs.
            store: the model store.
            deployments: the archives in it to serve.
            device: cpu or cuda; workers that compute elsewhere are an error.
        """
        self.store, self.deployments, self.device = store, deployments, device
        self.temp = temp
        self.temp.mkdir(exist_ok=True)
        self.log = temp / "server.log"
        self.port_base = free_ports(5)
        self.host_port = ("127.0.0.1", self.port_base)
        self._process: subprocess.Popen[bytes] | None = None
        self._family: list[psutil.Process] = []

    def __enter__(self) -> Server:
        """Starts, waits until every worker is ready, and proves where they compute."""
        try:
            self._start()
            self._wait_ready()
            self._check_device()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops it."""
        self.stop()

    def devices(self) -> list[str]:
        """The device that each worker said it computes on."""
        return served_on(self.log, TASK)

    def steps(self, name: str) -> dict[str, float]:
        """Seconds that a model's workers have spent in each of the handler's steps so far."""
        with MetricsClient(f"http://127.0.0.1:{self.port_base + 2}") as client:
            samples = client.metrics()
        found = dict.fromkeys(STEPS, 0.0)
        for sample in samples:
            if sample.name == "HandlerStepSeconds_sum" and sample.labels.get("ModelName") == name:
                found[sample.labels["Step"]] += sample.value
        return found

    def output(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def stop(self) -> None:
        """Ends it by SIGTERM, and whatever is left of it by force."""
        if self._process is None:
            return
        self._remember()
        try:
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)
                self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        finally:
            for process in psutil.wait_procs(self._family, timeout=10)[1]:
                process.kill()
            self._process.wait()
            self._process = None

    def _remember(self) -> None:
        if self._process is not None and psutil.pid_exists(self._process.pid):
            parent = psutil.Process(self._process.pid)
            self._family = [parent, *parent.children(recursive=True)]

    def _start(self) -> None:
        names = [deployment.name for deployment in self.deployments]
        line = [sys.executable, "-P", "-m", "serving", "--port-base", str(self.port_base)]
        line += ["--model-store", str(self.store), "--drain-seconds", "10", "--models", *names]
        mine = {name: value for name, value in os.environ.items() if not name.startswith("TS_")}
        environment = {**mine, "PYTHONPATH": str(ROOT), "TMPDIR": str(self.temp), "TEMP": str(self.temp)}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                line, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.temp
            )

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        with ManagementClient(f"http://127.0.0.1:{self.port_base + 1}", timeout=10) as client:
            for deployment in self.deployments:
                while True:
                    if self._process is None or self._process.poll() is not None:
                        raise self._failed("TorchServe ended")
                    try:
                        client.ready(deployment.name, workers=deployment.workers, timeout=1)
                        break
                    except (NotReachable, NotReady) as err:
                        if time.monotonic() > deadline:
                            raise self._failed(f"not ready after {READY_SECONDS:.0f} s: {err}") from err

    def _check_device(self) -> None:
        expected = sum(deployment.workers for deployment in self.deployments)
        said = served_on(self.log, TASK, expected)
        if len(said) < expected or not all(device.startswith(self.device) for device in said):
            raise self._failed(f"{expected} workers on {self.device} were expected, they said {said}")

    def _failed(self, reason: str) -> Failed:
        """With the end of the server's output, which says why."""
        return Failed("\n".join([reason, *self.output().splitlines()[-30:]]))
