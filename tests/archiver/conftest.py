"""A house to build in: a copy of archiver/, a small handler/, and models made by hand."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENTRY = '''
"""A handler that is enough for a worker."""

from ts.torch_handler.base_handler import BaseHandler

from handler.config import read_config


class TransformerHandler(BaseHandler):
    """One class."""

    read = staticmethod(read_config)
'''


def write_safetensors(path, size, seed=1):
    """A whole safetensors file with one tensor of this many bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    block = bytes((i * seed) % 251 for i in range(4096))
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.write((block * (size // len(block) + 1))[:size])


def write_model(folder, size=10_000):
    """A model directory with everything that is packed, and nothing that is not."""
    folder.mkdir(parents=True)
    settings = {"architectures": ["BertForSequenceClassification"], "transformers_version": "5.0.0"}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    write_safetensors(folder / "model.safetensors", size)
    return folder


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model")


@pytest.fixture(scope="session")
def house(tmp_path_factory):
    """A repository in small: archiver/ as it is, handler/ without what needs a model."""
    root = tmp_path_factory.mktemp("house")
    shutil.copytree(ROOT / "archiver", root / "archiver", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "handler" / "tasks").mkdir(parents=True)
    for name in ("__init__.py", "config.py", "rules.py", "errors.py"):
        shutil.copy(ROOT / "handler" / name, root / "handler" / name)
    (root / "handler" / "tasks" / "__init__.py").write_text('"""Tasks."""\n')
    (root / "handler" / "transformer_handler.py").write_text(ENTRY)
    return root


@pytest.fixture
def room(house, tmp_path):
    """A handler room that a test may spoil."""
    return Path(shutil.copytree(house / "handler", tmp_path / "room" / "handler"))


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


@pytest.fixture
def command(house, tmp_path):
    """Runs `python -m archiver` in the house, from tmp_path."""

    def run(*arguments, env=None, cwd=tmp_path, **options):
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "PYTHONPATH": str(house),
            **(env or {}),
        }
        line = [sys.executable, "-P", "-m", "archiver", *map(str, arguments)]
        return subprocess.run(
            line, env=environment, cwd=cwd, capture_output=True, text=True, check=False, **options
        )

    return run
