"""The gateway's configuration: a YAML file, read once and judged whole, and what it becomes."""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from handler.config import GENERATION, SERVED_NAMES
from handler.rules import BOOLEAN, Problem, Rule, check, integer, key, label, nearest, number, optional
from serving.archives import Served
from serving.errors import CannotServe

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"  # of a model or a version, in a path and in the name of a backend
LOCAL = "local"  # the TorchServe that was started beside the gateway
PLATFORM = "platform"
PUBLIC = ("listen", "grpc")  # what needs keys where others reach it
EMBEDDERS = ("feature-extraction",)
REQUESTS_PER_ADDRESS = 10_000  # in ten seconds
CONNECTIONS_PER_ADDRESS = 1_000
HEALTH_CALLS = 16  # of gRPC, that go on beside all others
LOOPBACK = {"localhost": "127.0.0.1"}
WILDCARDS = ("0.0.0.0", "::")


ADDRESS = Rule(
    "HOST:PORT",
    lambda v: isinstance(v, str) and bool(re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}", v)),
)
FILE = Rule("a file that can be read", lambda v: isinstance(v, str) and Path(v).is_file())
PEM = Rule("a PEM file with certificate and key", lambda v: FILE.accepts(v) and _is_pem(v))
KEYS = Rule(
    "a file of keys, or `platform` where a platform in front asks for them",
    lambda v: v == PLATFORM or FILE.accepts(v),
)
MODEL = Rule("the name of a model", lambda v: isinstance(v, str) and bool(re.fullmatch(NAME, v)))
PATHS = Rule(
    "a list of paths such as /health",
    lambda v: (
        isinstance(v, list) and all(isinstance(p, str) and re.fullmatch(r"/[A-Za-z0-9_/.:-]*", p) for p in v)
    ),
)
SECTIONS = Rule("a mapping of names", lambda v: isinstance(v, dict) and all(MODEL.accepts(name) for name in v))
NAMES = Rule(
    "a list of names", lambda v: isinstance(v, list) and bool(v) and all(MODEL.accepts(name) for name in v)
)
SECTION = Rule("a mapping", lambda v: isinstance(v, dict))


@dataclass(frozen=True)
class Server:
    """A TorchServe."""

    inference: str = key(ADDRESS, "where it predicts")
    management: str = key(ADDRESS, "where it is asked whether a model is ready")


@dataclass(frozen=True)
class Canary:
    """The other version of a model, or the other deployment of it."""

    weight: int = key(integer(0, 100), "how many of 100 requests it gets, until it is told another number")
    version: str | None = key(optional(MODEL), "its version; that of the model where it is null", None)
    servers: list[str] | None = key(optional(NAMES), "the servers that have it; all where it is null", None)


@dataclass(frozen=True)
class Model:
    """A model, as it is reached."""

    version: str | None = key(
        optional(MODEL), "the version that is served; an archive beside it knows its own", None
    )
    servers: list[str] | None = key(optional(NAMES), "the servers that have it; all where it is null", None)
    names: list[str] | None = key(
        optional(SERVED_NAMES), "what else `model` may say; an archive beside it knows its own", None
    )
    canary: dict[str, Any] | None = key(optional(SECTION), "another version or deployment of it", None)
    max_in_flight: int | None = key(
        optional(integer(1, 100_000)),
        "requests that one server is handed; its jobQueueSize where it is null",
        None,
    )
    seconds: int = key(integer(1, 86_400), "to wait for an answer, or for the next piece of one", 120)


@dataclass(frozen=True)
class Routes:
    """Which model the paths without a name mean."""

    predict: str | None = key(optional(MODEL), "of /predict, /invocations and /; the first where it is null", None)
    generate: str | None = key(
        optional(MODEL), "of /generate and /v1/; the first that generates where it is null", None
    )
    embeddings: str | None = key(optional(MODEL), "of /v1/embeddings; the first embedder where it is null", None)


@dataclass(frozen=True)
class Limits:
    """What one client may do, and all together."""

    requests_per_key: int = key(integer(1, 10_000_000), "in ten seconds", 10_000)
    # None: behind a platform all clients have its address, and on loopback they share ours.
    requests_per_address: int | None = key(
        optional(integer(1, 10_000_000)),
        "in ten seconds; 10000 where it is null, but none with `keys: platform` or on loopback",
        None,
    )
    connections_per_address: int | None = key(
        optional(integer(1, 1_000_000)),
        "at a time; 1000 where it is null, but none with `keys: platform` or on loopback",
        None,
    )
    connections: int = key(
        integer(1, 1_000_000),
        "at a time on each of `listen` and `grpc`, of all clients; two open files each",
        4_000,
    )
    body_bytes: int = key(integer(1, 2**31 - 1), "of one request; TorchServe has a limit of its own", 6_553_500)
    request_seconds: int = key(
        integer(1, 3_600),
        "for a request's headers, again for the first 64 KB of its body, and for who reads nothing",
        30,
    )
    queue: int = key(integer(0, 1_000_000), "requests that wait for a place, for each model", 100)
    queue_seconds: float = key(number(0.1, 3_600), "that one waits", 5.0)


@dataclass(frozen=True)
class Gateway:
    """Everything that the gateway is told."""

    listen: str = key(ADDRESS, "the public address", "127.0.0.1:8000")
    metrics: str = key(ADDRESS, "where Prometheus is answered", "127.0.0.1:8083")
    grpc: str | None = key(optional(ADDRESS), "where the Open Inference Protocol over gRPC is answered", None)
    keys: str | None = key(optional(KEYS), "a file of keys, or `platform`; null on loopback only", None)
    tls: str | None = key(optional(PEM), "what clients are shown, over TLS 1.2 or later; null is plain HTTP", None)
    health: Sequence[str] = key(PATHS, "more paths that tell whether every model is ready", ())
    predict: Sequence[str] = key(PATHS, "more paths that mean /predict", ())
    administration: bool = key(BOOLEAN, "whether administrators may load and unload models", False)
    notice_seconds: float = key(number(0, 3_600), "between `not ready` and the end, for whoever asks seldom", 1.0)
    servers: Mapping[str, Any] = key(SECTIONS, "the servers, by name; the one beside it where there is none", None)
    models: Mapping[str, Any] = key(
        SECTIONS, "the models, by name; those of the server beside it by default", None
    )
    routes: Any = key(SECTION, "which model the paths without a name mean", None)
    limits: Any = key(SECTION, "what one client may do, and all together", None)

    @property
    def addresses(self) -> dict[str, str]:
        """Where it listens, by the key that says so."""
        found = {name: getattr(self, name) for name in ("listen", "metrics", "grpc")}
        return {name: address for name, address in found.items() if address is not None}


SUBSECTIONS: Mapping[str, type[Any]] = {"servers": Server, "models": Model}


def read(path: Path | None, beside: Server | None, archives: Sequence[Served], **unless_said: str) -> Gateway:
    """Reads and judges a gateway's configuration.

    Args:
        path: the YAML file; None is all defaults.
        beside: the TorchServe that is started beside it, if one is.
        archives: what that one serves.
        unless_said: values of keys that the file leaves out.

    Raises:
        CannotServe: with every wrong setting, each with its value and what was expected.
    """
    document = {**unless_said, **(document_of(path) if path else {})}
    problems = check(document, Gateway, quote=True)
    for name, schema in SUBSECTIONS.items():
        if isinstance(document.get(name), dict):
            for item, section in document[name].items():
                problems += _section(section, f"{name}.{label(item)}", schema)
                if name == "models" and isinstance(section, dict) and isinstance(section.get("canary"), dict):
                    problems += _section(section["canary"], f"models.{label(item)}.canary", Canary)
    for name, schema in (("routes", Routes), ("limits", Limits)):
        if name in document:
            problems += _section(document[name], name, schema)
    if not problems:
        gateway = _filled(document, beside, archives)
        problems = [*_contradictions(gateway), *_unpacked(gateway, archives)]
    if problems:
        where = path.name if path else "the gateway"
        raise CannotServe(f"{where}: " + "; ".join(map(str, problems)))
    return gateway


def document_of(path: Path) -> dict[str, Any]:
    """A gateway's file, not judged but for being a mapping. Raises CannotServe."""
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        raise CannotServe(f"{path} cannot be read: {' '.join(str(err).split())}") from err
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise CannotServe(f"{path}: expected a mapping")
    return document


def _section(section: object, name: str, schema: type[Any]) -> list[Problem]:
    if not isinstance(section, dict):
        return [Problem(name, "expected a mapping", repr(section))]
    return check(section, schema, f"{name}.", quote=True)


def _filled(document: Mapping[str, Any], beside: Server | None, archives: Sequence[Served]) -> Gateway:
    """The configuration with what follows from the server beside it."""
    servers = {name: Server(**section) for name, section in (document.get("servers") or {}).items()}
    if beside is not None:
        servers.setdefault(LOCAL, beside)
    known: dict[str, Served] = {}
    for archive in archives:
        known.setdefault(archive.name, archive)  # of several versions the first is the model's
    told = document.get("models") or {}
    models = {}
    for name in (*known, *(name for name in told if name not in known)):
        section = dict(told.get(name) or {})
        if section.get("canary") is not None:
            section["canary"] = Canary(**section["canary"])
        model = Model(**section)
        if name in known:
            queue = known[name].config.get("jobQueueSize", 1000)
            model = replace(
                model,
                version=model.version or known[name].version,
                max_in_flight=model.max_in_flight or queue,
                names=known[name].also_called if model.names is None else model.names,
            )
        models[name] = model
    routes = Routes(**document.get("routes", {}))
    routes = replace(
        routes,
        predict=routes.predict or next(iter(models), None),
        generate=routes.generate or _first(archives, GENERATION),
        embeddings=routes.embeddings or _first(archives, EMBEDDERS),
    )
    rest = {
        name: value for name, value in document.items() if name not in ("servers", "models", "routes", "limits")
    }
    gateway = Gateway(**rest, servers=servers, models=models, routes=routes)
    return replace(gateway, limits=_limits(Limits(**document.get("limits", {})), gateway))


def _limits(told: Limits, gateway: Gateway) -> Limits:
    """The limits, with those for an address where clients have addresses of their own."""
    public = [
        address for name, address in gateway.addresses.items() if name in PUBLIC and not is_loopback(address)
    ]
    if gateway.keys == PLATFORM or not public:
        return told
    return replace(
        told,
        requests_per_address=told.requests_per_address or REQUESTS_PER_ADDRESS,
        connections_per_address=told.connections_per_address or CONNECTIONS_PER_ADDRESS,
    )


def _first(archives: Sequence[Served], tasks: Sequence[str]) -> str | None:
    return next((archive.name for archive in archives if archive.task in tasks), None)


def _contradictions(gateway: Gateway) -> list[Problem]:
    problems = [*_addresses(gateway), *_administration(gateway)]
    if not gateway.servers:
        problems.append(Problem("servers", "expected at least one, for none is started beside the gateway"))
    if not gateway.models:
        problems.append(Problem("models", "expected at least one"))
    problems += _names_of_two(gateway.models)
    for route in fields(Routes):
        wanted = getattr(gateway.routes, route.name)
        if wanted is not None and wanted not in gateway.models:
            problems.append(Problem(f"routes.{route.name}", _unknown(wanted, gateway.models), repr(wanted)))
    for name, model in gateway.models.items():
        for what, called in (("a name", name), ("a version", model.version or "1")):
            if not re.fullmatch(NAME, called):
                reason = f"expected {what} of letters, digits, `.`, `_` and `-`, at most 128"
                problems.append(Problem(f"models.{name}", reason, repr(called)))
        problems += _variant(f"models.{name}", model.servers, gateway)
        if model.version is None:
            problems.append(Problem(f"models.{name}.version", "is missing; no archive here knows it"))
        if model.canary is not None:
            problems += _variant(f"models.{name}.canary", model.canary.servers, gateway)
            if model.canary.version in (None, model.version) and model.canary.servers in (None, model.servers):
                problems.append(Problem(f"models.{name}.canary", "expected another version or other servers"))
    return problems


def _addresses(gateway: Gateway) -> Iterator[Problem]:
    """Those where it cannot listen, or must not."""
    before: dict[str, str] = {}
    for name, address in gateway.addresses.items():
        if not 0 < int(address.rpartition(":")[2]) < 65_536:
            yield Problem(name, "expected a port from 1 to 65535", address)
        if name in PUBLIC and gateway.keys is None and not is_loopback(address):
            reason = "is not a loopback address, so `keys` is needed: a file of keys, or `platform`"
            yield Problem(name, reason, address)
        for other, taken in before.items():
            if overlap(address, taken):
                yield Problem(name, f"expected another port than that of `{other}`", address)
        before[name] = address


def _administration(gateway: Gateway) -> Iterator[Problem]:
    if gateway.administration and len(gateway.servers) > 1:
        yield Problem("administration", "expected false: there is more than one server", "true")
    if gateway.administration and gateway.keys == PLATFORM:
        reason = "expected false: with `keys: platform` whoever gets through it could unload models"
        yield Problem("administration", reason, "true")


def _names_of_two(models: Mapping[str, Model]) -> Iterator[Problem]:
    owners = {name: name for name in models}
    for name, model in models.items():
        for called in model.names or ():
            if (owner := owners.setdefault(called, name)) != name:
                yield Problem(f"models.{name}.names", f"{owner} is called that too", repr(called))


def _unpacked(gateway: Gateway, archives: Sequence[Served]) -> list[Problem]:
    """Versions that the only server does not have: the archives beside it are known."""
    if set(gateway.servers) != {LOCAL} or not archives:
        return []
    problems = []
    for name, model in gateway.models.items():
        there = [archive.version for archive in archives if archive.name == name]
        canary = model.canary.version if isinstance(model.canary, Canary) else None
        for where, version in (
            (f"models.{name}.version", model.version),
            (f"models.{name}.canary.version", canary),
        ):
            if version is not None and version not in there:
                problems.append(Problem(where, f"expected one of {', '.join(there) or 'none'}", repr(version)))
    return problems


def _variant(where: str, servers: Sequence[str] | None, gateway: Gateway) -> list[Problem]:
    return [
        Problem(f"{where}.servers", _unknown(server, gateway.servers), repr(server))
        for server in servers or ()
        if server not in gateway.servers
    ]


def _unknown(name: str, known: Mapping[str, object]) -> str:
    close = nearest(name, known)
    return f"expected one of {', '.join(known) or 'none'}" + (f"; did you mean {close}?" if close else "")


def overlap(one: str, other: str) -> bool:
    """Whether two addresses cannot be listened on at once."""
    (host, _, port), (other_host, _, other_port) = one.rpartition(":"), other.rpartition(":")
    hosts = {LOOPBACK.get(name, name.strip("[]")) for name in (host, other_host)}
    return int(port) == int(other_port) and (len(hosts) == 1 or bool(hosts & set(WILDCARDS)))


def _is_pem(path: str) -> bool:
    """Whether a server could show it; a key with a password could not be asked for it."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path, password="")
    except (OSError, ValueError):  # ssl.SSLError is an OSError
        return False
    return True


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach an address."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
