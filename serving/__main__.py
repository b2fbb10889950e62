"""Starts TorchServe in the foreground with this repository's configuration, and ends it without a trace."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from ts.arg_parser import ArgParser

from client import ClientError, ManagementClient
from serving import java, settings
from serving.children import own_session
from serving.drain import drain
from serving.errors import CannotServe
from serving.scratch import scratch_directory

ROOT = Path(__file__).resolve().parent.parent
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
STOP_SECONDS = 20.0  # for TorchServe's own shutdown, after which it is killed


def main() -> int:
    """Serves until SIGINT or SIGTERM; 0 after an orderly stop, else 1."""
    args = read_arguments()
    try:
        with scratch_directory() as scratch:
            return serve(args, scratch)
    except CannotServe as err:
        say(f"error: {err}")
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
    models = args.models or settings.archives_in(store)
    for model in models:
        settings.check_archive(store, model.rpartition("=")[2])
    properties = settings.write_properties(args, store, scratch)
    settings.check_ports(properties)
    stopping = on_signals()
    command = java.command(args, properties, store, models, scratch)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TS_CONFIG_FILE")
    }
    server = subprocess.Popen(
        command,
        cwd=scratch,
        env={**environment, **OFFLINE, "TMPDIR": str(scratch)},
        preexec_fn=own_session,  # noqa: PLW1509 - no thread has been started
    )
    try:
        say(f"serving {', '.join(models)} on {properties['inference_address']}")
        unchecked = True
        while not stopping:
            if (status := server.poll()) is not None:
                raise CannotServe(f"TorchServe ended by itself with status {status}; its last lines say why")
            unchecked = unchecked and not all_registered(properties["management_address"], models)
            time.sleep(0.1)
        say("stopping: waiting for what was accepted")
        ports = [
            port for _, port in settings.endpoints(properties, ("inference_address",), ("grpc_inference_port",))
        ]
        drain(
            properties["inference_address"],
            properties["management_address"],
            server.pid,
            ports,
            args.drain_seconds,
        )
    except KeyboardInterrupt:
        say("stopping at once")
    finally:
        stop(server)
    return 0


def all_registered(management: str, models: Sequence[str]) -> bool:
    """Whether TorchServe has taken every archive; it reads them before it listens, and goes on without a bad one.

    Raises:
        CannotServe: it listens, and one is not there.
    """
    try:
        with ManagementClient(management, timeout=5) as client:
            urls = {model.url for model in client.models()}
    except ClientError:
        return False  # it does not listen yet
    if missing := [model for model in models if model.rpartition("=")[2] not in urls]:
        raise CannotServe(f"{', '.join(missing)} could not be loaded; TorchServe's lines say why")
    return True


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


def say(line: str) -> None:
    """Our own lines go to stderr; stdout holds the server's."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
