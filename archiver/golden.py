"""Golden answers for an archive: recorded from the reference implementation, in a process of its own.

The reference needs torch and takes the whole model into memory, neither of which an archiver does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from archiver.errors import Refused
from archiver.layout import GOLDEN, ROOT, Member
from archiver.recipe import Recipe, extra_paths
from archiver.snapshot import Snapshot
from handler.config import is_own


def record(recipe: Recipe, snapshot: Snapshot, say: Callable[[str], None]) -> list[Member]:
    """Runs the reference; the archive's members that hold its answers.

    Raises:
        Refused: there is no reference, or it cannot answer a request.
    """
    handler = recipe.config.document()["handler"]
    if handler.get("quantize") and not handler.get("golden_tolerance"):
        raise Refused(
            "--golden: with handler.quantize, handler.golden_tolerance has to say how far answers may be off"
        )
    task = handler["task"]
    requests = _read(recipe.golden_requests) if recipe.golden_requests else None
    module = f"{task.partition(':')[0]}.py" if is_own(task) else None
    with tempfile.TemporaryDirectory(prefix="golden-") as private:
        recorded = Path(private, GOLDEN)
        recorded.mkdir()
        job = {
            "model": str(_model(snapshot, Path(private, "model"))),
            "handler": handler,
            "requests": requests,
            "module": next((str(file) for file in extra_paths(recipe.extra_files) if file.name == module), None),
            "to": str(recorded),
        }
        _run(job, Path(private, "job.json"), say)
        return [
            Member(f"{GOLDEN}/{path.name}", path.read_bytes(), path.stat().st_size) for path in recorded.iterdir()
        ]


def _model(snapshot: Snapshot, place: Path) -> Path:
    """A directory that holds what the archive's model/ will, by links."""
    for name, source in snapshot.sources.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).symlink_to(source)
    return place


def _run(job: dict[str, Any], path: Path, say: Callable[[str], None]) -> None:
    path.write_text(json.dumps(job))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-m", "reference.record", str(path)]
    lines: list[str] = []
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        try:
            for line in process.stderr or ():
                lines.append(line.rstrip())
                if line.startswith("golden answers: "):
                    say(lines[-1])
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        said = [line for line in lines if line][-1:] or [f"the reference ended with status {process.returncode}"]
        raise Refused(f"--golden: {said[0].removeprefix('error: ')}")


def _read(path: Path) -> list[dict[str, Any]]:
    """The requests of a file. Raises Refused for every line that is none."""
    requests, problems = [], []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise Refused(f"{path}: is not UTF-8") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            request = json.loads(line)
        except ValueError:
            request = None
        if isinstance(request, dict):
            requests.append(request)
        else:
            problems.append(f"{path}:{number}: expected a JSON object, a request")
    if problems or not requests:
        raise Refused(*(problems or [f"{path}: holds no request"]))
    return requests
