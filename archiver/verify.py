"""Whether an archive is whole: every file that its SHA256SUMS names, unchanged, and nothing else."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import yaml

from archiver.errors import Refused
from archiver.manifest import CONFIG, HANDLER, MANIFEST, SUMS, read_sums
from archiver.reading import DAMAGE, read
from handler.config import ConfigError, read_config

BLOCK = 4 << 20  # bytes
KEPT = frozenset({MANIFEST, SUMS, CONFIG, "model/config.json"})  # small, and worth reading
LARGEST_KEPT = 4 << 20  # bytes


@dataclass
class Contents:
    """What was found in an archive."""

    archive_format: str
    sizes: dict[str, int] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)  # as computed from what is there
    kept: dict[str, bytes] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)


def contents(path: Path) -> Contents:
    """Reads an archive to its end.

    Raises:
        Refused: it is not an archive, or is damaged so that it cannot be read.
    """
    try:
        with read(path) as (archive_format, files):
            found = Contents(archive_format)
            for name, size, content in files:
                if name in found.sizes:
                    found.twice.append(name)
                found.sizes[name] = size
                found.digests[name] = _digest(content, name, size, found.kept)
    except DAMAGE as error:
        raise Refused(f"{path}: is damaged: {error or type(error).__name__}") from error
    return found


def problems(path: Path) -> list[str]:
    """Everything that keeps an archive from being whole; nothing if it is.

    Raises:
        Refused: it cannot be read at all.
    """
    return judged(contents(path))


def judged(found: Contents) -> list[str]:
    """The same of what was read."""
    if SUMS not in found.kept:
        return [f"{SUMS}: is missing, so nothing says what belongs here; was it built by another archiver?"]
    try:
        wanted = read_sums(found.kept[SUMS])
    except ValueError as error:
        return [f"{SUMS}: {error}"]
    there = found.digests.keys() - {SUMS}
    lines = [f"{name}: is there twice" for name in found.twice]
    lines += [f"{name}: is no path inside an archive" for name in sorted(found.sizes) if not is_inside(name)]
    lines += [f"{name}: is missing" for name in sorted(wanted.keys() - there)]
    lines += [f"{name}: does not belong here" for name in sorted(there - wanted.keys())]
    lines += [
        f"{name}: has changed: its SHA-256 is {found.digests[name]}, not {wanted[name]}"
        for name in sorted(wanted.keys() & there)
        if found.digests[name] != wanted[name]
    ]
    return lines + _unservable(found)


def is_inside(name: str) -> bool:
    """Whether a file of this name lands below where an archive is unpacked."""
    return "\\" not in name and all(part not in ("", ".", "..") for part in name.split("/"))


def _digest(content: IO[bytes], name: str, size: int, kept: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    keep = name in KEPT and size <= LARGEST_KEPT
    if keep:
        kept[name] = b""
    while block := content.read(BLOCK):
        digest.update(block)
        if keep:
            kept[name] += block
    return digest.hexdigest()


def _unservable(found: Contents) -> list[str]:
    """Why TorchServe or the handler would refuse it although it is whole."""
    lines = []
    try:
        model = json.loads(found.kept.get(MANIFEST, b""))["model"]
        if not isinstance(model["modelName"], str):
            lines.append(f"{MANIFEST}: has no modelName")
        if model["handler"] != HANDLER or model["configFile"] != CONFIG:
            lines.append(f"{MANIFEST}: names another handler or configuration")
    except (ValueError, KeyError, TypeError):
        lines.append(f"{MANIFEST}: is not a manifest")
    try:
        read_config(yaml.safe_load(found.kept.get(CONFIG, b"")))
    except ConfigError as error:
        lines += [f"{CONFIG}: {problem}" for problem in error.problems]
    except (yaml.YAMLError, ValueError):
        lines.append(f"{CONFIG}: is not YAML")
    return lines
