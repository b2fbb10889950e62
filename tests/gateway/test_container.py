"""What a platform asks for, as the process with id 1 understands it; tests/server/test_container.py runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from serving import container, recognition
from serving.archives import Served
from serving.container import Contract, prepare, read_contract
from serving.errors import CannotServe
from serving.gateway.config import Server, read


@pytest.fixture
def mounted(tmp_path, monkeypatch):
    """A place where each platform mounts, on this machine."""
    for name in ("KSERVE", "SAGEMAKER", "REPOSITORY"):
        monkeypatch.setattr(container, name, tmp_path / name.lower())
    return tmp_path


def test_hugging_face(mounted):
    (mounted / "repository").mkdir()
    told = {"KEYS": "platform", "PORT": "80", "HEALTH_ROUTE": "/well"}
    assert read_contract(told, False) == Contract(mounted / "repository", 80, "/well", None, "platform")


def test_grpc_has_a_port_where_one_is_named(mounted):
    (mounted / "repository").mkdir()
    assert read_contract({"KEYS": "platform", "GRPC_PORT": "8001"}, False).grpc == 8001
    assert read_contract({"KEYS": "platform"}, False).grpc is None
    with pytest.raises(CannotServe, match=r"^GRPC_PORT: x: expected a port from 1 to 65535$"):
        read_contract({"KEYS": "platform", "GRPC_PORT": "x"}, False)


def test_sagemaker(mounted):
    (mounted / "sagemaker").mkdir()
    assert read_contract({}, True) == Contract(mounted / "sagemaker", 8080, keys="platform")


def test_vertex(mounted):
    told = {"AIP_HTTP_PORT": "8085", "AIP_HEALTH_ROUTE": "/h", "AIP_PREDICT_ROUTE": "/p:predict"}
    wanted = Contract(mounted, 8085, "/h", "/p:predict", "platform")
    assert read_contract({**told, "AIP_STORAGE_URI": str(mounted)}, False) == wanted
    with pytest.raises(CannotServe, match=r"^AIP_STORAGE_URI: gs://bucket/model: nothing is .* set MODEL_DIR$"):
        read_contract({**told, "AIP_STORAGE_URI": "gs://bucket/model"}, False)
    built_in = {**told, "AIP_STORAGE_URI": "gs://bucket/model", "MODEL_DIR": str(mounted)}
    assert read_contract(built_in, False).models == mounted
    assert read_contract({**built_in, "PORT": "8090"}, False).port == 8090
    with pytest.raises(CannotServe, match=r"^AIP_HTTP_PORT: x: expected a port"):
        read_contract({**built_in, "AIP_HTTP_PORT": "x"}, False)


def test_kserve(mounted):
    store, config = mounted / "kserve" / "model-store", mounted / "kserve" / "config"
    store.mkdir(parents=True)
    config.mkdir()
    assert read_contract({}, False) == Contract(store, keys="platform", metrics="0.0.0.0:8083")
    models = {"a": {"1.0": {"marName": "a.mar", "minWorkers": 1}}, "b": {"2": {"marName": "x.mar"}}}
    lines = ["inference_address=http://0.0.0.0:8085", f"model_snapshot={json.dumps({'models': models})}"]
    (config / "config.properties").write_text("\n".join(lines))
    assert read_contract({}, False).archives == ("a=a.mar", "b=x.mar")
    (config / "config.properties").write_text("model_snapshot={}")
    with pytest.raises(CannotServe, match="model_snapshot"):
        read_contract({}, False)


def test_everything_that_is_wrong_is_said_at_once(mounted):
    with pytest.raises(CannotServe) as refused:
        read_contract({"PORT": "99999", "MODEL_DIR": "/nowhere"}, False)
    said = str(refused.value)
    assert "PORT: 99999" in said and "KEYS: is missing" in said and "MODEL_DIR: /nowhere" in said


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"DRAIN_SECONDS": "abc"}, "DRAIN_SECONDS: abc: expected a number of seconds"),
        ({"DRAIN_SECONDS": "-1"}, "DRAIN_SECONDS: -1: expected"),
        ({"PORT_BASE": "abc"}, "PORT_BASE: abc: expected a number from 1024 to 65529"),
        ({"PORT_BASE": "80"}, "PORT_BASE: 80: expected"),
        ({"PORT": "8081"}, "PORT: 8081: expected another one"),
        ({"PORT": "7070"}, "PORT: 7070: expected another one"),
        ({"PORT": "9003", "PORT_BASE": "9000"}, "PORT: 9003: expected another one"),
        ({"GATEWAY": "/nowhere.yaml"}, "GATEWAY: /nowhere.yaml cannot be read"),
    ],
)
def test_a_wrong_variable_is_named(mounted, told, says):
    with pytest.raises(CannotServe) as refused:
        read_contract({"MODEL_DIR": str(mounted), **told}, True)
    assert str(refused.value).startswith(says) and ";" not in str(refused.value)


@pytest.mark.skipif(os.getuid() != 0, reason="only root becomes another user")
def test_a_mount_that_may_not_be_entered_is_one_line(monkeypatch):
    with tempfile.TemporaryDirectory() as folder:  # only root may enter it
        monkeypatch.setattr(container, "KSERVE", Path(folder))
        os.seteuid(1000)
        try:
            with pytest.raises(CannotServe, match=rf"^{folder}/\S+: user 1000 may not read it"):
                container.command_line({}, False, Path("/nowhere"))
        finally:
            os.seteuid(0)


def test_a_mounted_model_is_served_without_copying_a_byte(tiny, tmp_path):
    contract = Contract(tiny["text-classification"] / "model", 8081, "/h", None, "platform")
    command = prepare(contract, {"MODEL_NAME": "film", "SET": "batchSize=8 handler.max_tokens=16"}, tmp_path)
    assert command[command.index("--models") + 1] == "film"
    weights = tmp_path / "film" / "model" / "model.safetensors"
    assert os.path.samefile(weights, contract.models / "model.safetensors")
    told = yaml.safe_load((tmp_path / "film" / "model-config.yaml").read_text())
    assert told["batchSize"] == 8 and told["handler"]["max_tokens"] == 16
    gateway = yaml.safe_load((tmp_path / "gateway.yaml").read_text())
    assert gateway == {"listen": "0.0.0.0:8081", "keys": "platform", "health": ["/h"]}


def test_the_operators_own_gateway_goes_on_counting(tmp_path):
    (tmp_path / "own.yaml").write_text("limits: {queue: 7}\nhealth: [/a]\nlisten: 127.0.0.1:1")
    (tmp_path / "place").mkdir()
    asked = {"HEALTH_ROUTE": "/h", "PREDICT_ROUTE": "/p", "KEYS": "platform", "PORT": "8088"}
    asked |= {"MODEL_DIR": str(tmp_path), "GATEWAY": str(tmp_path / "own.yaml")}
    prepare(read_contract(asked, False), asked, tmp_path / "place")
    told = yaml.safe_load((tmp_path / "place" / "gateway.yaml").read_text())
    assert told["limits"] == {"queue": 7} and told["health"] == ["/a", "/h"] and told["predict"] == ["/p"]
    assert told["listen"] == "0.0.0.0:8088" and "grpc" not in told
    asked["GRPC_PORT"] = "8001"
    prepare(read_contract(asked, False), asked, tmp_path / "place")
    assert yaml.safe_load((tmp_path / "place" / "gateway.yaml").read_text())["grpc"] == "0.0.0.0:8001"


@pytest.mark.parametrize(
    ("variable", "file", "sagemaker", "counts"),
    [
        (None, "mine", True, "mine"),
        (None, "mine", False, "mine"),
        ("platform", "mine", True, "platform"),
        (None, None, True, "platform"),
    ],
)
def test_keys_are_the_operators_then_the_files_then_the_platforms(mounted, variable, file, sagemaker, counts):
    (mounted / "own.yaml").write_text(json.dumps({"keys": file} if file else {}))
    asked = {"MODEL_DIR": str(mounted), "GATEWAY": str(mounted / "own.yaml"), "KEYS": variable or ""}
    contract = read_contract(asked, sagemaker)
    (mounted / "place").mkdir()
    prepare(contract, asked, mounted / "place")
    assert yaml.safe_load((mounted / "place" / "gateway.yaml").read_text())["keys"] == counts


def test_paths_that_are_no_list_are_told_of_by_name(mounted):
    (mounted / "own.yaml").write_text("health: 5")
    asked = {"MODEL_DIR": str(mounted), "GATEWAY": str(mounted / "own.yaml"), "HEALTH_ROUTE": "/h"}
    prepare(read_contract(asked, True), asked, mounted)
    with pytest.raises(CannotServe, match="health: 5: expected a list of paths"):
        read(mounted / "gateway.yaml", Server("127.0.0.1:8084", "127.0.0.1:8081"), [Served("a", "1", {})])


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"RECIPE": "nothing"}, "RECIPE: nothing: expected a directory, or one of .*sentiment"),
        ({"TASK": "nothing"}, "task"),
        ({"SET": "handler.max_tokenz=3"}, "max_tokenz.*did you mean"),
    ],
)
def test_what_cannot_be_prepared_is_one_line(tiny, tmp_path, environment, says):
    contract = Contract(tiny["text-classification"] / "model", keys="platform")
    with pytest.raises(CannotServe, match=says) as refused:
        prepare(contract, environment, tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "task",
    [
        "text-classification",
        "token-classification",
        "question-answering",
        "fill-mask",
        "text-ranking",
        "feature-extraction",
    ],
)
def test_a_task_is_recognised_by_the_models_config(tiny, task):
    assert recognition.task_of(tiny[task] / "model") == task


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"architectures": ["ViTForImageClassification"]}'])
def test_what_is_not_recognised_asks_for_the_task(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CannotServe, match=r"cannot be read|does not tell the task"):
        recognition.task_of(tmp_path)


def test_orphans_are_buried_and_our_own_children_are_not():
    """A process that inherits orphans, as that with id 1 does: prctl(2), PR_SET_CHILD_SUBREAPER."""
    code = (
        "import ctypes, os, subprocess, sys, time\n"
        "from serving.children import reap\n"
        "ctypes.CDLL(None).prctl(36, 1)\n"
        "own = subprocess.Popen(['sleep', '0.2'])\n"
        "subprocess.run(['sh', '-c', 'sleep 0.1 & exit 0'])\n"
        "time.sleep(0.15); reap({own.pid}); time.sleep(0.2); reap({own.pid})\n"
        "left = open(f'/proc/self/task/{os.getpid()}/children').read().split()\n"
        "assert left == [str(own.pid)], left\n"
        "assert own.wait() == 0\n"
    )
    root = str(Path(__file__).parent.parent.parent)
    ended = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_a_stop_that_a_library_swallows_is_noted():
    """An import in a bare `except` is enough for it; process 1 would then be deaf."""
    code = (
        "import os, signal\n"
        "from serving.signals import end_at_signals\n"
        "stopping = end_at_signals()\n"
        "try:\n    os.kill(os.getpid(), signal.SIGTERM)\nexcept BaseException as err:\n    assert err.code == 0\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"  # one more stops no cleaning up
        "assert stopping == [signal.SIGTERM]\n"
    )
    root = str(Path(__file__).parent.parent.parent)
    ended = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_arguments(capsys):
    assert container.main(["nonsense"]) == 1 and "expected nothing, or serve" in capsys.readouterr().err
    assert container.main(["--help"]) == 0 and "usage" in capsys.readouterr().out
