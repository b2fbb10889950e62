"""What is in an archive, for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from archiver.manifest import CONFIG, MANIFEST
from archiver.verify import Contents, contents


def describe(path: Path) -> dict[str, Any]:
    """Model, task, versions, sizes, digests and configuration; None where an archive does not say.

    Every digest is computed from the bytes that are there. An archive of another archiver is described too.

    Raises:
        Refused: it cannot be read.
    """
    found = contents(path)
    manifest = _mapping(_json(found, MANIFEST))
    model = _mapping(manifest.get("model"))
    extensions = _mapping(model.get("extensions"))
    settings = _mapping(_json(found, "model/config.json"))
    config = _config(found)
    return {
        "file": str(path),
        "format": found.archive_format,
        "model": model.get("modelName"),
        "version": model.get("modelVersion"),
        "description": extensions.get("description"),
        "source": extensions.get("source"),
        "architectures": settings.get("architectures"),
        "task": _mapping(config.get("handler")).get("task"),
        "handler": model.get("handler"),
        "archiver_version": manifest.get("archiverVersion"),
        "transformers_version": settings.get("transformers_version"),
        "created_on": manifest.get("createdOn"),
        "bytes": sum(found.sizes.values()),
        "archive_bytes": path.stat().st_size if path.is_file() else None,
        "config": config,
        "files": {
            name: {"bytes": found.sizes[name], "sha256": found.digests[name]} for name in sorted(found.sizes)
        },
    }


def text(described: dict[str, Any]) -> str:
    """The same for people."""
    lines = []
    for name, value in described.items():
        if name in ("config", "files") or value is None:
            continue
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        lines.append(
            f"{name.replace('_', ' ') + ':':22}{shown:,}"
            if isinstance(shown, int)
            else f"{name.replace('_', ' ') + ':':22}{shown}"
        )
    lines += ["", "config:"]
    lines += [f"  {line}" for line in yaml.safe_dump(described["config"], sort_keys=False).splitlines()]
    lines += ["", f"files: {len(described['files'])}"]
    width = max((len(f"{file['bytes']:,}") for file in described["files"].values()), default=0)
    lines += [
        f"  {file['sha256']}  {file['bytes']:>{width},}  {name}" for name, file in described["files"].items()
    ]
    return "\n".join(lines)


def _json(found: Contents, name: str) -> Any:
    try:
        return json.loads(found.kept.get(name, b"{}"))
    except (ValueError, RecursionError):
        return {}


def _config(found: Contents) -> dict[str, Any]:
    try:
        return _mapping(yaml.safe_load(found.kept.get(CONFIG, b"{}")))
    except (yaml.YAMLError, ValueError):
        return {}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
