"""What an archive in the store says of itself."""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from handler.config import SERVED_NAME
from serving.errors import CannotServe

MANIFEST = "MAR-INF/MANIFEST.json"


@dataclass(frozen=True)
class Served:
    """A model as it is to be served."""

    name: str
    version: str
    config: dict[str, Any]  # model-config.yaml

    @property
    def task(self) -> str:
        """What the recipe says that it does; "" for an archive of another kind."""
        handler = self.config.get("handler")
        return str(handler.get("task", "")) if isinstance(handler, dict) else ""

    @property
    def also_called(self) -> list[str]:
        """What else a request's `model` may say: names on the hub, and of adapters. Raises CannotServe."""
        handler = self.config.get("handler")
        if not isinstance(handler, dict):
            return []
        try:
            adapters = (handler.get("vllm") or {}).get("lora_modules") or ()
            named = [one["name"] if isinstance(one, dict) else one.partition("=")[0] for one in adapters]
            return list(filter(SERVED_NAME.fullmatch, [*(handler.get("served_model_names") or ()), *named]))
        except (AttributeError, KeyError, TypeError) as err:
            wrong = "handler.served_model_names and handler.vllm.lora_modules: expected lists"
            raise CannotServe(f"{self.name}: {wrong}; python -m archiver verify says more") from err


def describe(store: Path, model: str) -> Served:
    """Reads an archive.

    Args:
        store: the directory of the archives.
        model: as `--models` has it: a file's name, or NAME=FILE.

    Raises:
        CannotServe: it cannot be read.
    """
    name, _, file = model.rpartition("=")
    read = _reader(store / file)
    try:
        manifest = json.loads(read(MANIFEST))["model"]
        config = yaml.safe_load(read(manifest["configFile"])) if manifest.get("configFile") else {}
        if not isinstance(config, dict | None):
            raise TypeError(f"{manifest['configFile']} is no mapping")
        return Served(name or manifest["modelName"], str(manifest["modelVersion"]), config or {})
    except (KeyError, ValueError, TypeError, yaml.YAMLError, zipfile.BadZipFile, tarfile.TarError) as err:
        raise CannotServe(f"{file} cannot be read: {err}; python -m archiver verify says more") from err


def check(store: Path, file: str) -> None:
    """TorchServe takes any file or directory for a model, and then starts workers for ever that cannot load it."""
    path = store / file
    if not path.exists():
        raise CannotServe(f"there is no {file} in {store}; scripts/archive.sh builds archives")
    if path.is_dir():
        whole = (path / MANIFEST).is_file()
    elif file.endswith(".tar.gz"):
        whole = tarfile.is_tarfile(path)
    elif whole := zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            whole = MANIFEST in archive.namelist()
    if not whole:
        raise CannotServe(f"{file} is not an archive; python -m archiver verify says more")


def _reader(path: Path) -> Callable[[str], bytes]:
    """A function that gives the bytes of a file inside; KeyError where there is none."""
    if path.is_dir():
        return lambda member: _from_directory(path, member)
    if path.name.endswith(".tar.gz"):
        return lambda member: _from_tar(path, member)
    return lambda member: _from_zip(path, member)


def _from_directory(path: Path, member: str) -> bytes:
    try:
        return (path / member).read_bytes()
    except FileNotFoundError as err:
        raise KeyError(member) from err


def _from_tar(path: Path, member: str) -> bytes:
    with tarfile.open(path) as archive:
        for found in archive:  # upstream's archiver puts a directory in front
            if member in (found.name, found.name.partition("/")[2]):
                content = archive.extractfile(found)
                return content.read() if content else b""
    raise KeyError(member)


def _from_zip(path: Path, member: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(member)
