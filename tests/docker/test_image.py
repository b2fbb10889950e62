"""The Dockerfile, carried out without an engine, and what comes of it started as an engine would start it.

    pytest -m image tests/docker        as root, with debootstrap and a mirror of Debian; a few minutes and 5 GB

Where pip needs settings of its own, IMAGE_REHEARSAL has them: arguments of `python -m tests.support.rehearsal`,
as in "--env PIP_FIND_LINKS --bind /srv/wheels". IMAGE_DIRECTORY keeps the stages, which spares debootstrap.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import archives, rehearsal

pytestmark = pytest.mark.image

ROOT = Path(__file__).resolve().parent.parent.parent
PYTHON = "/opt/venv/bin/python"
STORE = "/mnt/models/model-store"
SERVER = [PYTHON, "-m", "serving", "--model-store", STORE]
QUESTION = ["--header", "content-type: application/json", "--data", '{"text": "A warm, funny film."}']


@pytest.fixture(scope="session")
def image():
    assert os.geteuid() == 0 and shutil.which("debootstrap"), "it needs root and debootstrap"
    kept = os.environ.get("IMAGE_DIRECTORY")
    to = Path(kept or tempfile.mkdtemp(prefix="image-", dir="/var/tmp"))  # /tmp may be memory
    options = rehearsal.arguments([str(to), *shlex.split(os.environ.get("IMAGE_REHEARSAL", ""))])
    try:
        yield rehearsal.built(options)
    finally:
        if not kept:
            shutil.rmtree(to)


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """Readable by user 1000, as a mounted model store has to be."""
    store = Path(tempfile.mkdtemp(prefix="store-", dir="/var/tmp"))
    built = archives.build(str(ROOT / "recipes" / "sentiment"), "--export-path", str(store))
    assert built.returncode == 0, built.stderr
    store.chmod(0o755)
    yield store
    shutil.rmtree(store)


@contextmanager
def running(image, store, log, **options):
    """A container that is told to stop at the end, and ends with 0."""
    with log.open("wb") as out:
        container = rehearsal.start(image, volumes={store: STORE}, stdout=out, stderr=out, **options)
        try:
            yield container
            os.kill(rehearsal.first_process(container), signal.SIGTERM)
            assert container.wait(90) == 0, log.read_text()
        finally:
            container.kill()
            container.wait()


def wait_for(container, command, log):
    """Until the command succeeds; the end of the container is the only failure."""
    while (done := rehearsal.beside(container, command)).returncode:
        assert container.poll() is None, log.read_text()
        time.sleep(0.5)
    return done.stdout


def ask(container, url, *arguments):
    command = ["curl", "--silent", "--show-error", "--fail", "--max-time", "60", url, *arguments]
    done = rehearsal.beside(container, command)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ready(port):
    """Waits for the worker, by TorchServe's management address."""
    url = f"http://127.0.0.1:{port}"
    return [sys.executable, "-m", "client", "ready", "sentiment", "--management-url", url]


@pytest.mark.parametrize("tmp", ["mode=1777,exec", "mode=1777,noexec"])
def test_it_serves_read_only_without_shell_network_or_rights(image, store, tmp_path, tmp):
    """rehearsal.start says what is taken away. Where /tmp forbids programs, workers are reached over TCP."""
    log = tmp_path / "log"
    with running(image, store, log, entrypoint=SERVER, tmp_options=tmp) as container:
        wait_for(container, ready(8081), log)
        first = rehearsal.first_process(container)
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{first}/status").read_text().splitlines())
        assert status["Uid"].split() == ["1000"] * 4
        assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == 0 and status["NoNewPrivs"] == "1"
        answer = ask(container, "http://127.0.0.1:8080/predictions/sentiment", *QUESTION)
        assert answer["label"] == "POSITIVE"
        sockets = Path(f"/proc/{first}/net/unix").read_text()
        assert ("/.ts.sock." in sockets) == ("noexec" not in tmp)
    assert not re.search(r"\bERROR\b|Traceback", log.read_text())


def test_nothing_can_be_written_but_below_tmp(image, store, tmp_path):
    code = """
import pathlib, sys
for place in ("/", "/opt/app", "/opt/venv", "/var/tmp", "/mnt/models/model-store", "/dev", "/run"):
    try:
        (pathlib.Path(place) / "x").write_text("x")
        sys.exit(f"{place} can be written")
    except OSError:
        pass
pathlib.Path("/tmp/x").write_text("x")
for shell in ("/bin/sh", "/bin/bash"):
    try:
        __import__("subprocess").run([shell, "-c", "true"])
        sys.exit(f"{shell} is there")
    except OSError:
        pass
"""
    container = rehearsal.start(
        image, volumes={store: STORE}, entrypoint=[PYTHON, "-c", code], stderr=subprocess.PIPE
    )
    assert container.communicate()[1] == b"" and container.returncode == 0


def test_what_is_in_it(image):
    files = [path for path in image.files.rglob("*") if path.is_file() and not path.is_symlink()]
    names = {path.name for path in files}
    assert not {"javac", "jlink", "gcc", "pip"} & names, "a compiler or an installer"
    assert "java" in names
    weights = (".safetensors", ".mar", ".bin", ".pt", ".pth", ".gguf")
    allowed = "/opt/venv/lib/"  # packages bring small files of their own with such names
    found = [str(path) for path in files if path.suffix in weights and path.stat().st_size > 100_000]
    assert not [path for path in found if allowed not in path or path.endswith((".safetensors", ".mar"))]
    assert not [path for path in files if path.stat().st_mode & 0o6000], "a program that becomes another user"
    assert {path.name for path in (image.files / "opt/app").iterdir()} == {
        "archiver", "client", "handler", "serving", "docker", "recipes",
        "config.properties", "log4j2.xml", "metrics.yaml",
    }  # fmt: skip


def test_the_gateway_is_in_it(image, store):
    container = rehearsal.start(image, entrypoint=["/usr/sbin/haproxy", "-v"], stdout=subprocess.PIPE)
    assert b"HAProxy version" in container.communicate()[0] and container.returncode == 0


def test_the_entrypoint_answers_its_health_check(image, store, tmp_path):
    log = tmp_path / "log"
    with running(image, store, log) as container:
        wait_for(container, [sys.executable, str(ROOT / "docker" / "health.py")], log)
        answer = ask(container, "http://127.0.0.1:8080/predictions/sentiment", *QUESTION)
        assert answer["label"] == "POSITIVE"


def test_docker_compose_takes_the_file():
    """COMPOSE is the command where it is not `docker compose`."""
    compose = shlex.split(os.environ.get("COMPOSE", "docker compose"))
    files = ["compose.yaml", "compose.dashboard.yaml", "compose.cuda.yaml"]
    for count in range(1, len(files) + 1):
        line = [*compose, *(f"--file={ROOT / 'docker' / name}" for name in files[:count]), "config", "--quiet"]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and not done.stderr, done.stderr
