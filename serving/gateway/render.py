"""The files that HAProxy is started with: the filled-in template and the maps."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import jinja2

from serving.gateway import keys
from serving.gateway.config import HEALTH_CALLS, NAME, PLATFORM, Canary, Gateway, Model, Server
from serving.gateway.routes import METHODS, calls_map, route_map, table

TEMPLATE = Path(__file__).resolve().parent.parent.parent / "docker" / "gateway" / "haproxy.cfg.j2"
CHECK_MS = 100  # how stale the readiness of a model may be
DEFAULT_IN_FLIGHT = 1000  # TorchServe's jobQueueSize, as recipes and config.properties have it
CALLS_IN_FLIGHT = 256  # gRPC's, of all models
EXPORTED = 16  # connections to the exporter
FRONT, HEALTH, INNER = "grpc.sock", "health.sock", "inner.sock"  # where that front is called, and where it calls
ERRORS = (  # what HAProxy says by itself
    (400, "BadRequest", "this is no HTTP that is taken here"),
    (408, "RequestTimeout", "the request did not come whole in time"),
    (413, "TooLarge", "the body is too large"),
    (500, "InternalError", "the gateway failed"),
    (502, "BadGateway", "the server broke off"),
    (503, "Unavailable", "no server can take this now"),
    (504, "GatewayTimeout", "the server did not answer in time"),
)


@dataclass(frozen=True)
class Variant:
    """A version of a model on some servers: one backend."""

    backend: str
    model: str
    version: str
    servers: Mapping[str, Server]
    max_in_flight: int
    seconds: int
    canary: bool = False  # whether it is one
    has_canary: bool = False


def variants(gateway: Gateway) -> Iterator[Variant]:
    """Every model's own, and its canary's."""
    for name, model in gateway.models.items():
        yield _variant(gateway, name, model, backend_of(name), model)
        if isinstance(model.canary, Canary):
            yield _variant(gateway, name, model, f"{backend_of(name)}.canary", model.canary)


def _variant(gateway: Gateway, name: str, model: Model, backend: str, of: Model | Canary) -> Variant:
    servers = {server: gateway.servers[server] for server in of.servers or gateway.servers}
    version = of.version or model.version or ""
    in_flight = model.max_in_flight or DEFAULT_IN_FLIGHT
    canary = isinstance(of, Canary)
    has_canary = model.canary is not None and not canary
    return Variant(backend, name, version, servers, in_flight, model.seconds, canary, has_canary)


def write(gateway: Gateway, folder: Path) -> Path:
    """Writes everything into a folder, and returns the configuration's path.

    Raises:
        CannotServe: the file of keys is not one.
    """
    rows = table(gateway)
    maps = {
        "routes": route_map(rows),
        "calls": calls_map(),
        "models": models_map(gateway),
        "names": names_map(gateway),
        "canary": canary_map(gateway),
        "state": ["state starting"],
        "keys": keys_map(gateway),
    }
    for name, lines in maps.items():
        write_lines(folder / f"{name}.map", lines)
    path = folder / "haproxy.cfg"
    path.write_text(haproxy_configuration(gateway, folder))
    path.chmod(0o600)
    return path


def haproxy_configuration(gateway: Gateway, folder: Path) -> str:
    """The template, filled in."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    every = tuple(variants(gateway))
    return environment.from_string(TEMPLATE.read_text()).render(
        folder=folder,
        listen=gateway.listen,
        metrics=gateway.metrics,
        grpc=gateway.grpc,
        front=FRONT,
        health=HEALTH,
        inner=INNER,
        calls=CALLS_IN_FLIGHT,
        connections=clients(gateway) + inside(gateway),
        exported=EXPORTED,
        grpc_seconds=call_seconds(gateway),
        tls=gateway.tls,
        keys=gateway.keys not in (None, PLATFORM),
        limits=gateway.limits,
        administration=gateway.administration,
        servers=gateway.servers,
        variants=every,
        errors=ERRORS,
        check_ms=CHECK_MS,
        threads=max(1, (os.cpu_count() or 1) // 8),  # one does thousands a second; the cores are the models'
        methods=METHODS,
        in_flight=DEFAULT_IN_FLIGHT,
        server_seconds=max(variant.seconds for variant in every),
        hard_stop_seconds=3600,
        name=NAME,
        host=lambda address: address.rpartition(":")[0],
        port=lambda address: address.rpartition(":")[2],
        retry_after=lambda status: "hdr Retry-After 1" if status == 503 else "",
    )


def clients(gateway: Gateway) -> int:
    """Connections that clients may have, on all addresses."""
    each: int = gateway.limits.connections
    return 2 * each if gateway.grpc else each


def inside(gateway: Gateway) -> int:
    """Connections that no client has: the exporter's, and those of the front of gRPC."""
    return EXPORTED + (CALLS_IN_FLIGHT + HEALTH_CALLS if gateway.grpc else 0)


def call_seconds(gateway: Gateway) -> int:
    """How long a gRPC call may take inside: longer than any request that it can become, which so says why."""
    waits: float = gateway.limits.queue_seconds
    return math.ceil(waits + max(variant.seconds for variant in variants(gateway)) + 5)


def models_map(gateway: Gateway) -> Iterator[str]:
    """A model's name, name and version, or role -> its backend."""
    for variant in variants(gateway):
        if not variant.canary:
            yield f"{variant.model} {variant.backend}"
            yield f"{variant.model}/{variant.version} {variant.backend}"
        elif variant.version != gateway.models[variant.model].version:
            yield f"{variant.model}/{variant.version} {variant.backend}"
    routes = gateway.routes
    roles = {**vars(routes), "models": routes.generate or routes.embeddings}
    for role, name in roles.items():
        if name:
            yield f"@{role} {backend_of(name)}"


def names_map(gateway: Gateway) -> Iterator[str]:
    """What a request's `model` may say -> the model."""
    for name, model in gateway.models.items():
        for called in dict.fromkeys((name, *(model.names or ()))):
            yield f"{called} {name}"


def canary_map(gateway: Gateway) -> Iterator[str]:
    """A model's backend -> how many of 100 requests its canary gets."""
    for name, model in gateway.models.items():
        if isinstance(model.canary, Canary):
            yield f"{backend_of(name)} {model.canary.weight}"


def backend_of(model: str) -> str:
    """What HAProxy calls a model's own backend."""
    return f"m.{model}"


def keys_map(gateway: Gateway) -> Iterator[str]:
    """Hash -> NAME:SCOPES."""
    if gateway.keys not in (None, PLATFORM):
        for digest, opens in keys.read(Path(gateway.keys)).items():
            yield f"{digest} {opens}"


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """A map, readable by its owner only."""
    path.touch(0o600)
    path.write_text("".join(f"{line}\n" for line in lines))
