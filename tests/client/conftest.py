"""A model store of tiny archives, and a server of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from client import InferenceClient, ManagementClient
from tests.support.torchserve import TorchServe

HANDLERS = Path(__file__).parent / "handlers"
SETTINGS = "minWorkers: 1\nmaxWorkers: 2\nbatchSize: 4\nmaxBatchDelay: 1\nresponseTimeout: 30\n"


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store: echo in two versions and with settings, a model that waits, and one that never loads."""
    made = tmp_path_factory.mktemp("store")
    settings = tmp_path_factory.mktemp("settings") / "model-config.yaml"
    settings.write_text(SETTINGS)
    archive(made / "echo.mar", "echo", "1.0", "echo.py")
    archive(made / "echo2.mar", "echo", "2.0", "echo.py")
    archive(made / "settled.mar", "settled", "1.0", "echo.py", "--config-file", str(settings))
    archive(made / "gated.mar", "gated", "1.0", "gated.py")
    archive(made / "broken.mar", "broken", "1.0", "broken.py")
    return made


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[TorchServe]:
    """A running server of echo 1.0 and 2.0; 1.0 is the default, as it was loaded first."""
    with TorchServe(store, ["echo.mar", "echo2.mar"]) as running:
        yield running


@pytest.fixture
def inference(server: TorchServe) -> Iterator[InferenceClient]:
    """A client of the server's inference port."""
    with InferenceClient(server.inference_url) as client:
        yield client


@pytest.fixture
def management(server: TorchServe) -> Iterator[ManagementClient]:
    """A client of the management port; models that a test leaves behind are unregistered."""
    with ManagementClient(server.management_url) as client:
        yield client
        for name in client.names():
            if name != "echo":
                client.unregister(name)


def archive(target: Path, name: str, version: str, handler: str, *more: str) -> None:
    """Build an archive with TorchServe's archiver, in a directory of its own: it deletes what it finds."""
    work = target.parent.parent / f"build-{target.stem}"
    work.mkdir()
    command = [str(Path(sys.executable).with_name("torch-model-archiver")), "--model-name", name]
    command += ["--version", version, "--handler", str(HANDLERS / handler), "--export-path", str(work), *more]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "TMPDIR": str(work)})
    (work / f"{name}.mar").rename(target)
