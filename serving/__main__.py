"""Starts TorchServe in the foreground with this repository's configuration, and ends it without a trace."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

import requests
from ts.arg_parser import ArgParser

from client import ClientError, ManagementClient
from serving import archives, java, settings
from serving.children import own_session, reap
from serving.drain import drain
from serving.errors import CannotServe
from serving.gateway import config, grpc_front
from serving.gateway.config import Gateway
from serving.gateway.haproxy import HAProxy, check_descriptors
from serving.scratch import private_directory, scratch_directory
from serving.signals import count_signals, end_at_signals, note_signals

ROOT = Path(__file__).resolve().parent.parent
PING_SECONDS = 2.0
MOST_DRAIN_SECONDS = 86_400
STOP_SECONDS = 20.0  # for TorchServe's own shutdown, after which it is killed


def main(arguments: Sequence[str] | None = None, stopping: list[int] | None = None) -> int:
    """Serves until SIGINT or SIGTERM; 0 after an orderly stop, else 1.

    Args:
        arguments: the command line, where it is not this process's own.
        stopping: what `end_at_signals` gave to a caller that has called it.
    """
    args = read_arguments(arguments)
    stopping = end_at_signals() if stopping is None else stopping
    try:
        with scratch_directory() as scratch:
            return serve(args, scratch, stopping)
    except CannotServe as err:
        say(f"error: {err}")
        return 1


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """TorchServe's own flags, and ours."""
    parser = ArgParser.ts_parser()
    parser.prog, parser.description = "scripts/serve.sh", "Serves archives with TorchServe, in the foreground."
    ours = parser.add_argument_group("beside TorchServe's own flags")
    ours.add_argument(
        "--port-base",
        type=int,
        metavar="N",
        help="listen on N (inference), N+1 (management), N+2 (metrics), N+3 and N+4 (gRPC), "
        "N+5 (gateway) and N+6 (its metrics) in place of the configured ports",
    )
    ours.add_argument(
        "--drain-seconds",
        type=float,
        default=30.0,
        metavar="S",
        help="how long a stop waits for requests that were accepted, after the gateway's notice_seconds "
        "(default: %(default)s)",
    )
    ours.add_argument(
        "--gateway",
        nargs="?",
        const="",
        metavar="FILE",
        help="put HAProxy in front, as this YAML file says or by its defaults (docker/gateway/README.md)",
    )
    ours.add_argument(
        "--must-load",
        action="store_true",
        help="end with an error once TorchServe has given up on a model's worker, in place of serving without it; "
        "--gateway means it too, but not for what an administrator loads",
    )
    parser.set_defaults(ts_config=str(ROOT / "config.properties"), log_config=str(ROOT / "log4j2.xml"))
    args: argparse.Namespace = parser.parse_args(arguments)
    if args.stop:
        parser.error("--stop: end it with Ctrl-C or SIGTERM")
    return args


def serve(args: argparse.Namespace, scratch: Path, stopping: list[int]) -> int:
    """Starts the server and waits for its end or for a signal."""
    if not 0 <= args.drain_seconds <= MOST_DRAIN_SECONDS:
        expected = f"expected a number of seconds from 0 to {MOST_DRAIN_SECONDS}"
        raise CannotServe(f"--drain-seconds: {args.drain_seconds:g}: {expected}")
    store = Path(args.model_store or ROOT / "model_store").resolve()
    models = args.models = args.models or settings.archives_in(store)
    for model in models:
        archives.check(store, model.rpartition("=")[2])
    properties = settings.write_properties(args, store, scratch)
    gateway = read_gateway(args, properties, store, models)
    settings.check_ports(properties)
    note_signals(stopping)
    command = java.command(args, properties, store, models, scratch)
    server = subprocess.Popen(
        command,
        cwd=scratch,
        env=java.environment(scratch),
        preexec_fn=own_session,  # noqa: PLW1509 - no thread has been started
    )
    front = None
    try:
        say(f"serving {', '.join(models)} on {properties['inference_address']}")
        if gateway is not None:
            front = HAProxy(gateway, private_directory(scratch))
            say(f"the gateway listens on {' and '.join(filter(None, (gateway.listen, gateway.grpc)))}")
        watch(args, server, front, properties, stopping)
        say("stopping: waiting for what was accepted")
        left = args.drain_seconds if front is None else front.finish(args.drain_seconds)
        ports = [
            port for _, port in settings.endpoints(properties, ("inference_address",), ("grpc_inference_port",))
        ]
        addresses = properties["inference_address"], properties["management_address"]
        drain(*addresses, server.pid, ports, max(1.0, left))
    except KeyboardInterrupt:
        say("stopping at once: what has not been answered is broken off")
    finally:
        count_signals(stopping)
        if front is not None:
            front.stop()
        stop(server, stopping)
    return 0 if len(stopping) < 2 else 1


def read_gateway(
    args: argparse.Namespace, properties: Mapping[str, str], store: Path, models: Sequence[str]
) -> Gateway | None:
    """What the gateway is told, if there is to be one; --port-base moves it too, unless its file says where."""
    if args.gateway is None:
        return None
    host_port = {name: urlsplit(properties[f"{name}_address"]).netloc for name in ("inference", "management")}
    served = [archives.describe(store, model) for model in models]
    moved = {}
    if args.port_base is not None:
        moved = {"listen": f"127.0.0.1:{args.port_base + 5}", "metrics": f"127.0.0.1:{args.port_base + 6}"}
    file = Path(args.gateway) if args.gateway else None
    gateway = config.read(file, config.Server(**host_port), served, **moved)
    if gateway.grpc:
        grpc_front.check_requirement()
    check_descriptors(gateway)
    ours = settings.endpoints(dict(properties))
    for name, address in gateway.addresses.items():
        if any(config.overlap(address, f"{host}:{port}") for host, port in ours):
            where = file.name if file else "the gateway"
            raise CannotServe(f"{where}: {name}: {address}: expected another port, TorchServe has this one")
        settings.check_port(address.rpartition(":")[0].strip("[]"), int(address.rpartition(":")[2]))
    args.model_mode = args.model_mode or gateway.administration
    return gateway


def watch(
    args: argparse.Namespace,
    server: subprocess.Popen[bytes],
    front: HAProxy | None,
    properties: Mapping[str, str],
    stopping: Sequence[int],
) -> None:
    """Returns at the first signal. Raises CannotServe when anything ends by itself or a model is not there."""
    unregistered, unready, look = True, front is not None, 0.0
    while not stopping:
        if (status := server.poll()) is not None:
            raise CannotServe(f"TorchServe ended by itself with status {status}; its last lines say why")
        unregistered = unregistered and not all_registered(properties["management_address"], args.models)
        # What an administrator loads must not end what was there before.
        expected = front is not None and (unready or not front.gateway.administration)
        if (args.must_load or expected) and time.monotonic() >= look:
            look = time.monotonic() + PING_SECONDS
            check_ping(properties["inference_address"])
        reap({process.pid for process in (server, *(front.processes if front else ()))})
        if front is not None:
            front.check()
            if unready and front.models_up() and front.tell_state("ready"):
                say("every model is ready")
                unready = False
        time.sleep(0.1)


def check_ping(inference: str) -> None:
    """Raises CannotServe where TorchServe has given up on a worker: its /ping is 500 then, and stays so."""
    try:
        status = requests.get(f"{inference}/ping", timeout=5).status_code
    except requests.RequestException:
        return  # it does not listen yet, or is busy
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        raise CannotServe("TorchServe has given up on a model's worker; its lines say why")


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


def stop(server: subprocess.Popen[bytes], stopping: Sequence[int]) -> None:
    """Ends the server and its workers, whatever state they are in; whoever is in a hurry waits for nothing."""
    server.terminate()
    end = time.monotonic() + STOP_SECONDS
    while server.poll() is None and len(stopping) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    with suppress(ProcessLookupError):  # workers share its session; they outlive it only where it was killed
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def say(line: str) -> None:
    """Our own lines go to stderr; stdout holds the server's."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
