"""The process with id 1 of the image: what a platform asks for, told to the server and the gateway.

Every platform mounts the model somewhere and says where to listen; docker/README.md has the table. A mounted model
directory is made an archive of links, in a second and without copying a byte; one that holds archives is a store.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from serving import recognition
from serving.children import own_session
from serving.errors import CannotServe
from serving.gateway.config import PLATFORM, document_of
from serving.ports import is_port
from serving.scratch import scratch_directory
from serving.signals import end_at_signals

ROOT = Path(__file__).resolve().parent.parent
KSERVE = Path("/mnt/models")
SAGEMAKER = Path("/opt/ml/model")
REPOSITORY = Path("/repository")
SCRAPED = "0.0.0.0:8083"  # by KServe's Prometheus, as the runtime's annotation says
INSIDE = 8084  # TorchServe's own port for predictions, behind the gateway
INNER = (7070, 7071, 8081, 8082, 8083, INSIDE)  # config.properties, and the gateway's own for Prometheus


@dataclass(frozen=True)
class Contract:
    """What a platform asks for."""

    models: Path  # a model directory, or one of archives
    port: int = 8080
    health: str | None = None  # paths beside the gateway's own
    predict: str | None = None
    keys: str | None = None  # a file, or `platform`; what the operator says in GATEWAY beats the platform's
    metrics: str | None = None  # where Prometheus is answered; None leaves it on loopback
    archives: tuple[str, ...] = ()  # NAME=FILE of the store; all where there is none
    grpc: int | None = None  # another port, for gRPC
    gateway: Mapping[str, Any] = field(default_factory=dict)  # the operator's own gateway.yaml


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> int:
    """Serves until SIGTERM; 0 after an orderly stop, else 1."""
    if list(arguments) in (["-h"], ["--help"]):
        print(
            "usage: python -m serving.container [serve]    what it serves is in the environment: docker/README.md"
        )
        return 0
    if list(arguments) not in ([], ["serve"]):
        print(f"error: {' '.join(arguments)}: expected nothing, or serve", file=sys.stderr)
        return 1
    stopping = end_at_signals()
    # Only now: it takes half a second, and a stop may come meanwhile.
    from serving import __main__ as server  # noqa: PLC0415

    if stopping:
        return 0
    try:
        with scratch_directory() as place:
            return server.main(command_line(os.environ, "serve" in arguments, place), stopping)
    except CannotServe as err:
        print(f"error: {err}", file=sys.stderr, flush=True)
        return 1


def command_line(environment: Mapping[str, str], sagemaker: bool, place: Path) -> list[str]:
    """The server's command line, for the platform that this is.

    Raises:
        CannotServe: it says what cannot be served, or a mount may not be read.
    """
    try:
        return prepare(read_contract(environment, sagemaker), environment, place)
    except PermissionError as err:
        raise CannotServe(f"{err.filename}: user {os.geteuid()} may not read it; mount it readable") from err


def read_contract(environment: Mapping[str, str], sagemaker: bool) -> Contract:
    """Recognises the platform, and takes what it says.

    Raises:
        CannotServe: with every variable that is wrong.
    """
    base = _platform(environment, sagemaker)
    problems = []
    says = next(filter(environment.get, ("PORT", "AIP_HTTP_PORT")), "PORT")
    port = environment.get(says) or str(base.port)
    grpc = environment.get("GRPC_PORT")
    for name, given in ((says, port), ("GRPC_PORT", grpc)):
        if given and not is_port(given):
            problems.append(f"{name}: {given}: expected a port from 1 to 65535")
        elif given and int(given) in _inner_ports(environment):
            problems.append(f"{name}: {given}: expected another one, this is used inside")
    told, wrong = _gateway(environment)
    problems += wrong
    keys = environment.get("KEYS") or told.get("keys") or base.keys
    if keys is None and not wrong:
        problems.append("KEYS: is missing; expected a file of keys, or `platform` where a platform asks for them")
    models = Path(environment.get("MODEL_DIR") or base.models)
    if not models.is_dir():
        problems.append(_unmounted(models, environment))
    seconds = environment.get("DRAIN_SECONDS", "0")
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]+)?", seconds):
        problems.append(f"DRAIN_SECONDS: {seconds}: expected a number of seconds")
    moved = environment.get("PORT_BASE") or "9000"
    if not re.fullmatch(r"[0-9]{4,5}", moved) or not 1024 <= int(moved) <= 65_529:
        problems.append(f"PORT_BASE: {moved}: expected a number from 1024 to 65529")
    if problems:
        raise CannotServe("; ".join(problems))
    return Contract(
        models,
        int(port),
        environment.get("HEALTH_ROUTE") or base.health,
        environment.get("PREDICT_ROUTE") or base.predict,
        keys,
        environment.get("METRICS") or told.get("metrics") or base.metrics,
        base.archives,
        int(grpc) if grpc else None,
        told,
    )


def _unmounted(models: Path, environment: Mapping[str, str]) -> str:
    where = environment.get("AIP_STORAGE_URI", "")
    if where.startswith("gs://") and not environment.get("MODEL_DIR"):
        return (
            f"AIP_STORAGE_URI: {where}: nothing is downloaded here, and {models} is no directory; mount the "
            "bucket there, or build the model into the image and set MODEL_DIR"
        )
    return f"MODEL_DIR: {models}: there is no such directory; mount the model, or the archives, there"


def _inner_ports(environment: Mapping[str, str]) -> Collection[int]:
    """Those of TorchServe and of the gateway's exporter."""
    base = environment.get("PORT_BASE") or ""
    return (*range(int(base), int(base) + 5), int(base) + 6) if base.isdecimal() else INNER


def _platform(told: Mapping[str, str], sagemaker: bool) -> Contract:
    if "AIP_HTTP_PORT" in told:  # Vertex AI
        where = told.get("AIP_STORAGE_URI", "")
        mounted = Path(where.replace("gs://", "/gcs/", 1)) if where else REPOSITORY
        return Contract(mounted, 8080, told.get("AIP_HEALTH_ROUTE"), told.get("AIP_PREDICT_ROUTE"), PLATFORM)
    if sagemaker:
        return Contract(SAGEMAKER, 8080, keys=PLATFORM)
    if (KSERVE / "model-store").is_dir():
        return Contract(
            KSERVE / "model-store", keys=PLATFORM, metrics=SCRAPED, archives=_snapshot(KSERVE / "config")
        )
    if recognition.is_model(KSERVE):
        return Contract(KSERVE, keys=PLATFORM, metrics=SCRAPED)
    return Contract(REPOSITORY)


def _snapshot(folder: Path) -> tuple[str, ...]:
    """The models that KServe's config.properties lists, as NAME=FILE; their workers are what the archives say."""
    path = folder / "config.properties"
    if not path.is_file():
        return ()
    found = re.search(r"^model_snapshot=(.*)$", path.read_text(), re.MULTILINE)
    if found is None:
        return ()
    try:
        models = json.loads(found[1])["models"]
        return tuple(
            f"{name}={version['marName']}" for name, versions in models.items() for version in versions.values()
        )
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise CannotServe(f"model_snapshot of {path} cannot be read: {err}") from err


def prepare(contract: Contract, environment: Mapping[str, str], place: Path) -> list[str]:
    """Writes what the server needs, and returns its command line.

    Args:
        contract: what the platform asks for.
        environment: the rest of what the operator says.
        place: an empty directory.
    """
    store = contract.models
    models = list(contract.archives)
    if recognition.is_model(store):
        models = [make_archive(store, environment, place)]
        store = place
    told = {**contract.gateway, "listen": f"0.0.0.0:{contract.port}", "keys": contract.keys}
    if contract.metrics:
        told["metrics"] = contract.metrics
    if contract.grpc:
        told["grpc"] = f"0.0.0.0:{contract.grpc}"
    for name in ("health", "predict"):
        beside = told.get(name) or []
        if (path := getattr(contract, name)) and isinstance(beside, list):  # else it is refused as it stands
            told[name] = [*beside, path]
    (place / "gateway.yaml").write_text(yaml.safe_dump(told))
    command = ["--model-store", str(store), "--gateway", str(place / "gateway.yaml")]
    if base := environment.get("PORT_BASE"):
        command += ["--port-base", base]
    else:
        command += ["--ts-config", str(_beside(place))]
    command += ["--drain-seconds", environment.get("DRAIN_SECONDS", "25")]
    return [*command, "--models", *models] if models else command


def _beside(place: Path) -> Path:
    """The server's configuration as shipped, but with 8080 left to the gateway."""
    text = (ROOT / "config.properties").read_text()
    text = text.replace("inference_address=http://127.0.0.1:8080", f"inference_address=http://127.0.0.1:{INSIDE}")
    path = place / "config.properties"
    path.write_text(text.replace("metrics_config=", f"metrics_config={ROOT}/"))
    return path


def _gateway(environment: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The operator's own configuration of the gateway, which is judged when it is started; and what is wrong."""
    if not (path := environment.get("GATEWAY")):
        return {}, []
    try:
        return document_of(Path(path)), []
    except CannotServe as err:
        return {}, [f"GATEWAY: {err}"]


def make_archive(model: Path, environment: Mapping[str, str], store: Path) -> str:
    """An archive of links around a model directory; returns its name.

    Raises:
        CannotServe: the archiver's own reason.
    """
    name = environment.get("MODEL_NAME", "model")
    command = [sys.executable, "-m", "archiver", "build", *_recipe(environment), "--model", str(model)]
    if not environment.get("RECIPE"):
        command += ["--task", environment.get("TASK") or recognition.task_of(model)]
    command += ["--model-name", name, "--version", environment.get("MODEL_VERSION", "1.0")]
    command += ["--archive-format", "no-archive", "--export-path", str(store)]
    command += [f"--set={line}" for line in environment.get("SET", "").split()]
    built = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=own_session,
    )
    if built.returncode:
        said = [line.removeprefix("error: ") for line in built.stderr.splitlines() if line.strip()]
        raise CannotServe(f"{model}: " + "; ".join(said[-3:] or ["no archive could be made"]))
    return name


def _recipe(environment: Mapping[str, str]) -> list[str]:
    """The recipe's directory: one of ours by its name, or any by its path."""
    if not (recipe := environment.get("RECIPE")):
        return []
    path = ROOT / "recipes" / recipe if "/" not in recipe else Path(recipe)
    if not path.is_dir():
        ours = ", ".join(sorted(folder.name for folder in (ROOT / "recipes").iterdir()))
        raise CannotServe(f"RECIPE: {recipe}: expected a directory, or one of {ours}")
    return [str(path)]


if __name__ == "__main__":
    sys.exit(main())
