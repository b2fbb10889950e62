import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.archiver.conftest import ROOT, write_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ANY = ("--task", "text-classification", "--model-name", "m", "--version", "1")


def test_build_inspect_verify(command, model, store):
    done = command("build", "--model", "model", *ANY, "--export-path", "store", "--set", "handler.max_tokens=256")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{store / 'm.mar'}\n", "")
    done = command("verify", store / "m.mar")
    assert (done.returncode, done.stdout) == (0, f"{store / 'm.mar'}: whole\n")
    done = command("inspect", "--json", store / "m.mar")
    assert json.loads(done.stdout)["config"]["handler"]["max_tokens"] == 256
    data = bytearray((store / "m.mar").read_bytes())
    weights = (model / "model.safetensors").read_bytes()
    data[data.index(weights) + len(weights) // 2] ^= 1
    (store / "m.mar").write_bytes(data)
    done = command("verify", store / "m.mar")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")


def test_a_users_mistake_is_lines_and_never_a_traceback(command, model, store):
    (model / "pytorch_model.bin").write_bytes(b"")
    (model / "model.safetensors").unlink()
    for arguments in [
        ("build", "--model", "model", *ANY, "--export-path", "store"),
        ("build", "--model", "gone", *ANY, "--export-path", "store"),
        ("build", "--model", "model", *ANY, "--export-path", "gone"),
        ("build", "gone"),
        ("build",),
        ("verify", "gone"),
        ("inspect", "gone"),
    ]:
        done = command(*arguments, env={"HF_HUB_OFFLINE": "1"})
        assert done.returncode == 1, arguments
        assert done.stdout == ""
        assert all(line.startswith("error: ") for line in done.stderr.splitlines()), done.stderr
    assert list(store.iterdir()) == []


def test_wrong_usage(command):
    assert command("build", "--archive-format", "rar").returncode == 2
    for name, *needed in (("build",), ("inspect", "file"), ("run", "file", "--input=a", "--output=b")):
        done = command(name, *needed, "--forc")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"usage: archiver {name} ")
        assert done.stderr.endswith(f"archiver {name}: error: unrecognized arguments: --forc\n")
    assert command().returncode == 2
    for name in ("build", "inspect", "verify"):
        done = command(name, "--help")
        assert (done.returncode, done.stderr) == (0, "")


def test_the_directory_that_a_command_runs_in_is_not_imported_from(command, model, store, tmp_path):
    for name in ("handler", "archiver"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("1 / 0\n")
    (tmp_path / "yaml.py").write_text("1 / 0\n")
    done = command("build", "--model", "model", *ANY, "--export-path", "store")
    assert done.returncode == 0, done.stderr


def test_a_build_needs_neither_torch_nor_transformers(house):
    line = "import archiver.build, archiver.listing, archiver.recipe, sys; "
    line += "print(sorted({'torch', 'transformers', 'ts', 'huggingface_hub', 'numpy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", line],
        env={"PYTHONPATH": str(house)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n", done.stderr


def hub_cache(home, name="org/mood", commit=COMMIT):
    """As huggingface_hub lays it out: snapshots of links to blobs."""
    folder = home / "hub" / ("models--" + name.replace("/", "--"))
    plain = write_model(home / "plain")
    for number, path in enumerate(sorted(plain.rglob("*"))):
        if path.is_file():
            blob = folder / "blobs" / f"{number:040}"
            blob.parent.mkdir(parents=True, exist_ok=True)
            link = folder / "snapshots" / commit / path.relative_to(plain)
            link.parent.mkdir(parents=True, exist_ok=True)
            path.rename(blob)
            link.symlink_to(os.path.relpath(blob, link.parent))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    shutil.rmtree(plain)


# Nothing listens there: the network is missing, whatever the machine has.
NO_NETWORK = {"HF_ENDPOINT": "http://127.0.0.1:9"}


@pytest.mark.parametrize("env", [NO_NETWORK, {"HF_HUB_OFFLINE": "1"}])
def test_a_model_in_the_hubs_cache_needs_no_network(command, store, tmp_path, env):
    home = tmp_path / "hf"
    hub_cache(home)
    env = {**env, "HF_HOME": str(home)}
    done = command("build", "--model", f"org/mood@{COMMIT}", *ANY, "--export-path", "store", env=env)
    [warning] = done.stderr.splitlines()
    assert done.returncode == 0 and "files are what the cache has of it" in warning
    found = json.loads(command("inspect", "--json", store / "m.mar").stdout)
    assert found["source"] == f"org/mood@{COMMIT}"
    assert found["files"]["model/1_Pooling/config.json"]["bytes"] > 0


def test_a_revision_that_can_move_gets_a_warning(command, store, tmp_path):
    home = tmp_path / "hf"
    hub_cache(home)
    env = {**NO_NETWORK, "HF_HOME": str(home)}
    done = command("build", "--model", "org/mood", *ANY, "--export-path", "store", env=env)
    assert done.returncode == 0
    assert "warning: org/mood@main: may be another model tomorrow" in done.stderr
    assert COMMIT in done.stderr


@pytest.mark.parametrize("env", [NO_NETWORK, {"HF_HUB_OFFLINE": "1"}])
def test_without_a_network_there_is_one_line(command, store, tmp_path, env):
    env = {**env, "HF_HOME": str(tmp_path / "hf")}
    done = command("build", "--model", f"org/mood@{COMMIT}", *ANY, "--export-path", "store", env=env, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: org/mood@{COMMIT}: is neither a directory nor in the hub")


def test_the_script_takes_paths_from_where_the_user_is(house, model, store, tmp_path):
    """archive.sh in a repository whose virtual environment is there already."""
    shutil.copytree(ROOT / "scripts", house / "scripts", dirs_exist_ok=True)
    for name in ("requirements.txt", "constraints.txt"):
        shutil.copy(ROOT / name, house / name)
    binaries = house / ".venv" / "bin"
    binaries.mkdir(parents=True, exist_ok=True)
    if not (binaries / "python").exists():
        (binaries / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (binaries / "python").chmod(0o755)
    stamp = 'cat "$1/requirements.txt" "$1/constraints.txt" | sha256sum'
    wanted = subprocess.run(["sh", "-c", stamp, "sh", house], capture_output=True, text=True, check=True).stdout
    (house / ".venv" / ".installed-requirements.txt").write_text(wanted.rstrip("\n"))
    packages = house / ".venv" / "lib" / "python3.11" / "site-packages"
    for pin in re.findall(r"^([\w.-]+)==([^\s]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE):
        (packages / f"{pin[0].replace('-', '_')}-{pin[1]}.dist-info").mkdir(parents=True, exist_ok=True)
    recipe = tmp_path / "recipes" / "mood"
    recipe.mkdir(parents=True)
    model.rename(recipe / "model")
    (recipe / "model-config.yaml").write_text("handler:\n  task: text-classification\n")
    script = house / "scripts" / "archive.sh"
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}

    def run(*arguments):
        return subprocess.run(
            [script, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )

    done = run("recipes/mood", "--export-path", "store")
    assert (done.returncode, done.stdout) == (0, f"{store / 'mood.mar'}\n"), done.stderr
    done = run("recipes/mood")
    assert (done.returncode, done.stdout) == (0, f"{house / 'model_store' / 'mood.mar'}\n"), done.stderr
    assert run("--help").returncode == 0


def test_the_tokenizer_of_another_directory(command, model, store, tmp_path):
    shutil.copytree(model, tmp_path / "other")
    (tmp_path / "other" / "tokenizer.json").write_text('{"other": 1}')
    flags = ("--tokenizer", "other", "--export-path", "store", "--archive-format", "no-archive")
    done = command("build", "--model", "model", *ANY, *flags)
    assert done.returncode == 0 and "left out tokenizer.json: another tokenizer is asked for" in done.stderr
    assert (store / "m" / "model" / "tokenizer.json").read_text() == '{"other": 1}'
    assert command("verify", store / "m").returncode == 0
    done = command("build", "--model", "model", *ANY, "--tokenizer", "./nowhere", "--export-path", "store", "-f")
    assert done.returncode == 1 and "there is no such model directory" in done.stderr
