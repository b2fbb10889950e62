"""What the server is told: the shipped config.properties, with what the command line and this machine say."""

from __future__ import annotations

import argparse
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from serving.errors import CannotServe
from serving.ports import is_port

ADDRESSES = ("inference_address", "management_address", "metrics_address")
GRPC_PORTS = ("grpc_inference_port", "grpc_management_port")


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
    if not Path(args.log_config).is_file():  # log4j would go on with a configuration of its own
        raise CannotServe(f"there is no log configuration {args.log_config}")
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
    _check_addresses(properties, source)
    (scratch / "config.properties").write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
    return properties


def _check_addresses(properties: Mapping[str, str], source: Path) -> None:
    for name in ADDRESSES[:2]:  # the server is asked there
        if name not in properties:
            raise CannotServe(f"{source}: {name}: is missing; expected http://HOST:PORT")
    for name in (*ADDRESSES, *GRPC_PORTS):
        told = properties.get(name, "unix:")
        port = told if name in GRPC_PORTS else told.rpartition(":")[2]
        if not told.startswith("unix:") and not is_port(port):
            raise CannotServe(f"{source}: {name}: {told}: expected a port from 1 to 65535")


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
        check_port(host, port)


def check_port(host: str, port: int) -> None:
    """Raises CannotServe where somebody has it, or the machine has no such address."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as err:
            raise CannotServe(f"port {port} on {host} cannot be used ({err.strerror}); try --port-base") from err
