"""The gateway's configuration: what it becomes, and what is said of a wrong one."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
import requests
import tritonclient.grpc as triton
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceServicer
from tritonclient.utils import InferenceServerException

from serving.archives import MANIFEST, Served, describe
from serving.errors import CannotServe
from serving.gateway import grpc_front, keys, render
from serving.gateway.config import LOCAL, Canary, Gateway, Limits, Model, Routes, Server, is_loopback, read
from serving.gateway.haproxy import HAProxy, find
from serving.gateway.routes import CALLS, METHODS, route_map, table
from serving.open_inference import OpenInference
from serving.ports import free_ports

ROOT = Path(__file__).resolve().parent.parent.parent
BESIDE = Server("127.0.0.1:8080", "127.0.0.1:8081")
ARCHIVES = [
    Served("tiny", "1.0", {"handler": {"task": "text-classification"}, "jobQueueSize": 50}),
    Served("tiny", "2.0", {"handler": {"task": "text-classification"}}),
    Served("chat", "1.0", {"handler": {"task": "text-generation", "served_model_names": ["org/chat"]}}),
    Served("embed", "3", {"handler": {"task": "feature-extraction"}}),
]


@pytest.fixture
def told(tmp_path):
    """A configuration as it is read from a file of these lines."""

    def write(text, beside=BESIDE, archives=ARCHIVES):
        path = tmp_path / "gateway.yaml"
        path.write_text(text)
        return read(path, beside, archives)

    return write


def test_without_a_file_it_serves_what_is_beside_it():
    gateway = read(None, BESIDE, ARCHIVES)
    assert (gateway.routes.predict, gateway.routes.generate, gateway.routes.embeddings) == (
        "tiny",
        "chat",
        "embed",
    )
    assert "@models m.chat" in list(render.models_map(gateway))
    assert "@models m.embed" in list(render.models_map(read(None, BESIDE, [ARCHIVES[0], ARCHIVES[-1]])))
    assert gateway.servers == {LOCAL: BESIDE}
    assert gateway.models["tiny"].version == "1.0" and gateway.models["tiny"].max_in_flight == 50
    assert [variant.backend for variant in render.variants(gateway)] == ["m.tiny", "m.chat", "m.embed"]


def test_a_canary_is_a_backend_of_its_own(told):
    gateway = told("models: {tiny: {canary: {version: '2.0', weight: 10}}}")
    assert gateway.models["tiny"].canary == Canary(10, "2.0")
    assert list(render.canary_map(gateway)) == ["m.tiny 10"]
    assert "tiny/2.0 m.tiny.canary" in list(render.models_map(gateway))


def test_a_model_is_known_by_its_names_on_the_hub(told):
    assert list(render.names_map(read(None, BESIDE, ARCHIVES))) == [
        "tiny tiny",
        "chat chat",
        "org/chat chat",
        "embed embed",
    ]
    adapters = {"lora_modules": [{"name": "sql", "path": "a"}, "poet=b", "two words=c"]}
    chat = Served("chat", "1.0", {"handler": {"task": "text-generation", "vllm": adapters}})
    assert list(render.names_map(read(None, BESIDE, [chat]))) == ["chat chat", "sql chat", "poet chat"]
    renamed = told("models: {chat: {names: []}, tiny: {names: [tiny, org/tiny]}}")
    assert list(render.names_map(renamed)) == ["tiny tiny", "org/tiny tiny", "chat chat", "embed embed"]


@pytest.mark.parametrize(
    "wrong",
    [{"served_model_names": 5}, {"served_model_names": [5]}, {"vllm": 5}, {"vllm": {"lora_modules": [{}]}}],
)
def test_names_that_cannot_be_read_are_one_line(wrong):
    archive = Served("chat", "1.0", {"handler": {"task": "text-generation", **wrong}})
    with pytest.raises(CannotServe, match=r"^chat: handler.served_model_names and"):
        read(None, BESIDE, [archive])


def test_a_configuration_that_is_no_mapping_is_one_line(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.mar", "w") as archive:
        model = {"modelName": "a", "modelVersion": "1.0", "configFile": "model-config.yaml"}
        archive.writestr(MANIFEST, json.dumps({"model": model}))
        archive.writestr("model-config.yaml", "- batchSize: 1\n")
    with pytest.raises(CannotServe, match=r"^a.mar cannot be read: model-config.yaml is no mapping"):
        describe(tmp_path, "a.mar")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("models: {tiny: {names: [org/chat]}}", "models.chat.names: 'org/chat': tiny is called that too"),
        ("models: {tiny: {names: [chat]}}", "models.tiny.names: 'chat': chat is called that too"),
        ("models: {tiny: {names: ['a b']}}", "models.tiny.names: ['a b']: expected a list of names such"),
        ("listen: 0.0.0.0:8000", "listen: 0.0.0.0:8000: is not a loopback address, so `keys` is needed"),
        ("listen: '8000'", "listen: '8000': expected HOST:PORT"),
        ("listen: 127.0.0.1:99999", "listen: 127.0.0.1:99999: expected a port"),
        ("grpc: 0.0.0.0:8001", "grpc: 0.0.0.0:8001: is not a loopback address, so `keys` is needed"),
        ("grpc: '8001'", "grpc: '8001': expected HOST:PORT, or null"),
        ("grpc: 127.0.0.1:0", "grpc: 127.0.0.1:0: expected a port"),
        ("grpc: 127.0.0.1:8000", "grpc: 127.0.0.1:8000: expected another port than that of `listen`"),
        ("keys: absent", "keys: 'absent': expected a file of keys"),
        ("tls: absent.pem", "tls: 'absent.pem': expected a PEM file with certificate and key"),
        (f"tls: {__file__}", "expected a PEM file with certificate and key"),
        ("listen: 127.0.0.1:8000\nmetrics: 0.0.0.0:8000", "metrics: 0.0.0.0:8000: expected another port than"),
        ("metrics: 127.0.0.1:8000", "metrics: 127.0.0.1:8000: expected another port than"),
        ("metrics: localhost:8000", "metrics: localhost:8000: expected another port than"),
        ("health: 5", "health: 5: expected a list of paths"),
        ("administration: true\nkeys: platform", "administration: true: expected false: with `keys: platform`"),
        (
            "routes: {predict: tinny}",
            "routes.predict: 'tinny': expected one of tiny, chat, embed; did you mean tiny?",
        ),
        (
            "models: {tiny: {canary: {version: '2.0', weight: 300}}}",
            "models.tiny.canary.weight: 300: expected a whole",
        ),
        (
            "models: {tiny: {canary: {version: '3.0', weight: 1}}}",
            "models.tiny.canary.version: '3.0': expected one of",
        ),
        ("models: {tiny: {canary: {weight: 1}}}", "models.tiny.canary: expected another version or other servers"),
        ("models: {tiny: {servers: [far]}}", "models.tiny.servers: 'far': expected one of local"),
        ("models: {other: {}}", "models.other.version: is missing"),
        ("models: {'a/b': {}}", "models: {'a/b': {}}: expected a mapping of names"),
        ("servers: {far: {inference: a:1}}", "servers.far.management: is missing; expected HOST:PORT"),
        ("limits: {qeue: 1}", "limits.qeue: 1: unknown key; did you mean queue?"),
        ("limits: 5", "limits: 5: expected a mapping"),
        ("health: [health]", "health: ['health']: expected a list of paths"),
        (
            "administration: true\nservers: {far: {inference: 'a:1', management: 'a:2'}}",
            "administration: true: expected false: there is more than one server",
        ),
        ("[1]", "expected a mapping"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_wrong_setting_is_named(told, text, says):
    with pytest.raises(CannotServe) as refused:
        told(text)
    assert says in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "requests", "connections"),
    [
        ("{}", None, None),
        ("listen: 0.0.0.0:8000\nkeys: platform", None, None),
        ("listen: 0.0.0.0:8000\nkeys: KEYS", 10_000, 1_000),
        ("limits: {requests_per_address: 7}", 7, None),
        ("listen: 0.0.0.0:8000\nkeys: platform\nlimits: {connections_per_address: 7}", None, 7),
        ("listen: 0.0.0.0:8000\nkeys: KEYS\nlimits: {connections_per_address: 7}", 10_000, 7),
    ],
)
def test_an_address_is_bound_where_it_is_one_clients(told, tmp_path, text, requests, connections):
    (tmp_path / "keys").write_text(f"{keys.new('ann', 'inference')[1]}\n")
    limits = told(text.replace("KEYS", str(tmp_path / "keys"))).limits
    assert (limits.requests_per_address, limits.connections_per_address) == (requests, connections)


def test_all_wrong_settings_are_named_at_once(told):
    with pytest.raises(CannotServe, match=r"listen: .*; limits\.queue: -1"):
        told("listen: nowhere\nlimits: {queue: -1}")


def test_no_model_and_no_server():
    with pytest.raises(CannotServe, match=r"servers: expected at least one.*models: expected at least one"):
        read(None, None, [])


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("[::]", False),
        ("10.0.0.1", False),
        ("example.org", False),
    ],
)
def test_loopback(address, loopback):
    assert is_loopback(f"{address}:8000") is loopback


CONFIGURATIONS = [
    "{}",
    "administration: true",
    "models: {tiny: {canary: {version: '2.0', weight: 10}}}",
    "listen: 0.0.0.0:8000\nkeys: platform\nhealth: [/a]\npredict: ['/b:predict']",
    "grpc: 127.0.0.1:8001",
    "servers: {far: {inference: '[::1]:1', management: '[::1]:2'}}\nmodels: {tiny: {servers: [far]}}",
]


@pytest.mark.parametrize("text", CONFIGURATIONS)
def test_haproxy_takes_what_is_written(told, tmp_path, text):
    folder = tmp_path / "gateway"
    folder.mkdir()
    judged = subprocess.run(
        [find(), "-c", "-f", str(render.write(told(text), folder))], capture_output=True, text=True, check=False
    )
    assert judged.returncode == 0, judged.stderr
    assert "WARNING" not in judged.stderr


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_server_does_not_start_with_a_wrong_file(tmp_path, wrapped):
    """One line that names the setting, and no Java."""
    with zipfile.ZipFile(tmp_path / "tiny.mar", "w") as archive:
        archive.writestr(MANIFEST, json.dumps({"model": {"modelName": "tiny", "modelVersion": "1.0"}}))
    wrong = {
        "models: {tiny: {canary: {weight: 300}}}": "models.tiny.canary.weight: 300",
        "listen: 0.0.0.0:8000": "listen: 0.0.0.0:8000",
        "routes: {predict: tinny}": "routes.predict: 'tinny'",
        "listen: 127.0.0.1:7070": "listen: 127.0.0.1:7070",
    }
    program = [ROOT / "scripts" / "serve.sh"] if wrapped else [sys.executable, "-m", "serving"]
    started = {}
    for number, text in enumerate(list(wrong)[: 1 if wrapped else None]):
        (tmp_path / f"{number}.yaml").write_text(text)
        command = [*program, "--model-store", tmp_path, "--gateway", tmp_path / f"{number}.yaml"]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started[text] = subprocess.Popen(list(map(str, command)), cwd=ROOT, **streams)
    for text, process in started.items():
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 1 and said.startswith("error: ") and said.count("\n") == 1, said
        assert f".yaml: {wrong[text]}: expected" in said or f"{wrong[text]}: is not a loopback" in said


@pytest.mark.parametrize(
    ("name", "version"), [("my model", "1.0"), ("a", "1.0 beta"), ("a", "%[src]"), ("a", "b'")]
)
def test_an_archives_name_that_haproxy_would_not_take_is_refused(name, version):
    with pytest.raises(CannotServe, match=rf"^the gateway: models.{name}: .*: expected a (name|version) of"):
        read(None, BESIDE, [Served(name, version, {})])


@pytest.mark.parametrize(
    ("line", "instead", "says"),
    [
        ("management_address=http://127.0.0.1:8081", "", "management_address: is missing; expected http://HOST"),
        ("grpc_inference_port=7070", "grpc_inference_port=abc", "grpc_inference_port: abc: expected a port from"),
        (
            "metrics_address=http://127.0.0.1:8082",
            "metrics_address=http://a:b",
            "metrics_address: http://a:b: exp",
        ),
    ],
)
def test_a_wrong_line_of_the_servers_own_file_is_named(tmp_path, line, instead, says):
    with zipfile.ZipFile(tmp_path / "tiny.mar", "w") as archive:
        archive.writestr(MANIFEST, json.dumps({"model": {"modelName": "tiny", "modelVersion": "1.0"}}))
    properties = tmp_path / "own.properties"
    properties.write_text((ROOT / "config.properties").read_text().replace(line, instead))
    command = [sys.executable, "-m", "serving", "--model-store", str(tmp_path), "--ts-config", str(properties)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1
    assert ended.stderr.startswith(f"error: {properties}: {says}")


def test_more_connections_than_files_may_be_open_are_refused_before_java(tmp_path):
    with zipfile.ZipFile(tmp_path / "tiny.mar", "w") as archive:
        archive.writestr(MANIFEST, json.dumps({"model": {"modelName": "tiny", "modelVersion": "1.0"}}))
    command = [sys.executable, "-m", "serving", "--model-store", str(tmp_path), "--gateway"]
    limited = ["prlimit", "--nofile=1024:8000", *command, "--port-base", str(free_ports(7))]
    ended = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: limits.connections: 4000: expected at most 3884, as 8000 files may be")
    assert ended.stderr.count("\n") == 1


def test_why_haproxy_does_not_start_is_said(told):
    port = free_ports(2)
    gateway = told(json.dumps({"listen": f"127.0.0.1:{port}", "metrics": f"127.0.0.1:{port + 1}"}))
    with tempfile.TemporaryDirectory(prefix="gw-") as folder, socket.create_server(("127.0.0.1", port)):
        front = HAProxy(gateway, Path(folder))
        try:
            front.process.wait(20)
            with pytest.raises(CannotServe, match=r"status 1; .*cannot bind socket .*127.0.0.1:\d+"):
                front.check()
        finally:
            front.stop()


# -- keys


def run(*arguments):
    command = [sys.executable, "-m", "serving.gateway", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_key_is_printed_once_and_kept_as_its_hash(tmp_path):
    file = tmp_path / "keys"
    made = [run("key", name, "--file", file).stdout.strip() for name in ("ann", "bob")]
    found = keys.read(file)
    assert sorted(found.values()) == ["ann:inference", "bob:inference"]
    assert len(set(made)) == 2 and not any(token in file.read_text() for token in made)
    assert file.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["a b", "", "a" * 65, "a:b", "ä"])
def test_a_name_that_the_file_could_not_hold(tmp_path, name):
    ended = run("key", name, "--file", tmp_path / "keys")
    assert ended.returncode == 1 and ended.stderr.startswith("error: NAME") and not (tmp_path / "keys").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("secret ann inference", "line 1"),
        (f"# a comment\n{'0' * 64} ann all", "line 2"),
        ("", "holds no key"),
        ("# nothing", "holds no key"),
    ],
)
def test_a_wrong_file_of_keys_is_refused_and_not_quoted(tmp_path, text, says):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(CannotServe, match=says) as refused:
        keys.read(tmp_path / "keys")
    assert "secret" not in str(refused.value)


# -- the guide

GUIDE = (render.TEMPLATE.parent / "README.md").read_text()


def row(field):
    words = {None: "null", False: "false", dataclasses.MISSING: "required", (): "none"}
    default = str(field.default) if type(field.default) in (int, float, str) else words[field.default]
    return f"| `{field.name}` | {field.metadata['rule'].expected} | {default} | {field.metadata['help']} |"


@pytest.mark.parametrize("schema", [Gateway, Server, Model, Canary, Routes, Limits])
def test_the_tables_are_the_code(schema):
    missing = [row(field) for field in dataclasses.fields(schema) if row(field) not in GUIDE]
    assert not missing, "\n".join(missing)


def test_the_guide_names_every_path_and_no_other():
    section = GUIDE.partition("## Paths")[2].partition("Everything else")[0]
    named = [path.partition("?")[0].replace("...", "completions") for path in re.findall(r"`(/[^`]*)`", section)]
    gateway = dataclasses.replace(read(None, BESIDE, ARCHIVES), administration=True)
    patterns = [line.rpartition(" ")[0] for line in route_map(table(gateway))]

    def leads(path, pattern):
        return any(re.search(pattern, f"{method}:{path}") for method in METHODS)

    assert not [path for path in named if not any(leads(path, pattern) for pattern in patterns)]
    assert not [pattern for pattern in patterns if not any(leads(path, pattern) for path in named)]


@pytest.mark.parametrize(
    ("path", "leads"),
    [
        ("/predictions/tiny/1.0/v1/chat/completions", True),
        ("/v1/responses", True),
        ("/v1/responses/resp_1", False),
        ("/v1/responses/resp_1/cancel", False),
        ("/predictions/tiny/1.0/v1/responses", True),
        ("/predictions/tiny/1.0/v2/infer", True),
        ("/predictions/tiny/1.0/v1//models", False),
        ("/predictions/tiny/1.0/v2/////", False),
        ("/predictions/tiny/1.0/v1/models/", False),
        ("/MODEL/VERSION", True),
        ("/tiny/1.0", False),
    ],
)
def test_a_path_is_whole_and_what_is_configured_is_no_pattern(told, path, leads):
    lines = route_map(table(told("predict: [/MODEL/VERSION]")))
    assert any(re.search(line.rpartition(" ")[0], f"POST:{path}") for line in lines) == leads


def test_grpcs_methods_are_those_of_the_front():
    own = {
        name for name in vars(OpenInference) if hasattr(GRPCInferenceServiceServicer, name) and name[0].isupper()
    }
    assert set(CALLS) == own


def test_without_grpcio_there_is_one_line(monkeypatch):
    monkeypatch.setattr(grpc_front, "find_spec", lambda name: None)
    with pytest.raises(
        CannotServe, match=r"^grpc: needs grpc and tritonclient: pip install -r requirements-grpc.txt$"
    ):
        grpc_front.check_requirement()


# -- HAProxy alone


def test_tls_and_readiness_before_any_server_is_there(told, tmp_path):
    """A mounted certificate; nothing is presumed ready, and nothing but a loaded model makes it so."""
    pem, port = tmp_path / "both.pem", free_ports(4)
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    alternative = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", tmp_path / "key", "-out", tmp_path / "crt"]
    subprocess.run([*made, *alternative], check=True, capture_output=True)
    pem.write_text((tmp_path / "crt").read_text() + (tmp_path / "key").read_text())
    beside = Server(f"127.0.0.1:{port + 2}", f"127.0.0.1:{port + 2}")  # where nobody listens
    addresses = {
        "listen": f"127.0.0.1:{port}",
        "metrics": f"127.0.0.1:{port + 1}",
        "grpc": f"127.0.0.1:{port + 3}",
    }
    gateway = told(json.dumps({**addresses, "tls": str(pem)}), beside)
    with tempfile.TemporaryDirectory(prefix="gw-") as folder:  # a socket's path is short
        front = HAProxy(gateway, Path(folder))
        try:
            seen = set()
            while len(seen) < 3:
                for path in ("/health", "/v2/models/tiny/ready", "/livez"):
                    try:
                        answer = requests.get(
                            f"https://127.0.0.1:{port}{path}", verify=str(tmp_path / "crt"), timeout=5
                        )
                    except requests.ConnectionError:
                        continue
                    seen.add(path)
                    assert answer.status_code == (200 if path == "/livez" else 503)
            while not any(row["pxname"] == "alive" and row["status"] == "DOWN" for row in front._statistics()):
                time.sleep(0.05)
            livez = requests.get(f"https://127.0.0.1:{port}/livez", verify=str(tmp_path / "crt"), timeout=5)
            assert livez.status_code == 200, "a start is no death"
            with pytest.raises(requests.ConnectionError):
                requests.get(f"http://127.0.0.1:{port}/health", timeout=5)
            assert not front.models_up()
            root = str(tmp_path / "crt")
            with triton.InferenceServerClient(gateway.grpc, ssl=True, root_certificates=root) as client:
                assert not asked_again(client.is_server_ready) and not client.is_model_ready("tiny")
                assert client.is_server_live()
            with triton.InferenceServerClient(gateway.grpc) as client, pytest.raises(InferenceServerException):
                client.is_server_ready(client_timeout=5)
            front.tell_state("ready")
            livez = requests.get(f"https://127.0.0.1:{port}/livez", verify=str(tmp_path / "crt"), timeout=5)
            assert livez.status_code == 503
        finally:
            front.stop()


def test_grpc_has_limits_and_its_end_is_the_gateways(told):
    port = free_ports(4)
    addresses = {name: f"127.0.0.1:{port + at}" for at, name in enumerate(("listen", "metrics", "grpc"))}
    gateway = told(
        json.dumps({**addresses, "limits": {"requests_per_address": 40}}),
        Server(f"127.0.0.1:{port + 3}", f"127.0.0.1:{port + 3}"),
    )
    with tempfile.TemporaryDirectory(prefix="gw-") as folder:
        front = HAProxy(gateway, Path(folder))
        try:
            with triton.InferenceServerClient(gateway.grpc) as client:
                asked_again(client.is_server_ready)
                with pytest.raises(InferenceServerException, match="status: 429") as refused:
                    while True:
                        client.is_server_ready()
                assert refused.value.status() == "StatusCode.UNAVAILABLE"
            front.check()
            front.grpc.process.kill()
            front.grpc.process.wait()
            with pytest.raises(CannotServe, match="the gateway's gRPC ended by itself with status -9"):
                front.check()
        finally:
            front.stop()


def asked_again(call):
    """What is answered once the front of gRPC is there: HAProxy says UNAVAILABLE before."""
    while True:
        try:
            return call()
        except InferenceServerException as refused:
            assert refused.status() == "StatusCode.UNAVAILABLE"
            time.sleep(0.1)
