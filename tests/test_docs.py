"""What the README says is so."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from handler.config import GENERATION, TASKS, HandlerConfig, ServerConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SCRIPTS = sorted(path for path in (ROOT / "scripts").glob("*.sh") if path.name != "lib.sh")


def row(field: dataclasses.Field) -> str:
    words = {None: "null", True: "true", False: "false", dataclasses.MISSING: "required"}
    unworded = type(field.default) in (int, float, str)
    default = str(field.default) if unworded else words[field.default]
    meta = field.metadata
    only = f" ({', '.join(sorted(meta['tasks']))})" if meta["tasks"] else ""
    return f"| `{field.name}` | {meta['rule'].expected} | {default} | {meta['help']}{only} |"


@pytest.mark.parametrize("schema", [ServerConfig, HandlerConfig])
def test_the_config_table_is_the_code(schema):
    missing = [row(field) for field in dataclasses.fields(schema) if row(field) not in README]
    assert not missing, "\n".join(missing)


def test_the_config_table_has_nothing_else():
    known = {field.name for schema in (ServerConfig, HandlerConfig) for field in dataclasses.fields(schema)}
    section = README.partition("## Configuration")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == known


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_has_help_and_is_in_the_readme(script, tmp_path):
    """By a link to it, among modules that are not ours, and where cd has places of its own to go to."""
    assert f"scripts/{script.name}" in README
    link = tmp_path / "a b" / script.name
    link.parent.mkdir()
    for name in ("serving", "yaml", "requests"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not ours')")
    link.symlink_to(os.path.relpath(script, link.parent))
    shown = subprocess.run(
        ["bash", f"a b/{script.name}", "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "CDPATH": "."},
    )
    assert shown.returncode == 0 and "usage" in shown.stdout.lower(), shown.stderr


def test_the_python_that_is_named_is_taken(tmp_path):
    python, seen = tmp_path / "a b" / "python", tmp_path / "seen"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\ntouch {seen}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python)}
    subprocess.run([ROOT / "scripts" / "archive.sh", "--help"], capture_output=True, check=True, env=environment)
    assert seen.exists()


def test_the_readme_names_files_that_are_there():
    for name in re.findall(
        r"`((?:handler|archiver|client|serving|scripts|recipes|tests|benchmarks)/[\w./-]*)`", README
    ):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("task", [*TASKS, *GENERATION])
def test_every_task_is_documented(task):
    assert f"### {task}" in README


@pytest.mark.parametrize(
    "command",
    ["predict", "ready", "models", "scale", "register", "unregister", "set-default", "metrics", "verify"],
)
def test_every_client_command_has_help(command):
    line = [sys.executable, "-m", "client", command, "--help"]
    shown = subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT)
    assert shown.returncode == 0 and f"client {command}" in README
