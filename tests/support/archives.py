"""Archives built by the project's own command."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

# Debian 12's Python, 3.11.2, has no filters yet.
SAFELY: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}

ROOT = Path(__file__).resolve().parent.parent.parent


def build(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m archiver build`; the caller judges how it went."""
    return subprocess.run(
        [sys.executable, "-m", "archiver", "build", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def build_model(store: Path, name: str, model: Path, task: str, *arguments: str) -> Path:
    """An archive of a model directory in a model store."""
    command = ["--model", str(model), "--task", task, "--model-name", name, "--version", "1.0"]
    built = build(*command, "--export-path", str(store), *arguments)
    assert built.returncode == 0, built.stderr
    return Path(built.stdout.strip())
