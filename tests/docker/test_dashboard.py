"""Prometheus scrapes the real TorchServe and HAProxy, and every query of the dashboard finds something.

pytest -m monitoring tests/docker       with Debian's prometheus and haproxy
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import requests

from serving.ports import free_ports
from tests.support import archives
from tests.support.serving import Serving

pytestmark = [pytest.mark.monitoring, pytest.mark.server]

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG = ROOT / "docker" / "prometheus" / "prometheus.yml"
DASHBOARD = json.loads((ROOT / "docker" / "grafana" / "dashboards" / "transformers.json").read_text())
QUERIES = {
    f"{panel['title']}: {target['legendFormat']}": target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
}
HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend public
  bind 127.0.0.1:{gateway}
  default_backend torchserve
frontend metrics
  bind 127.0.0.1:{exporter}
  http-request use-service prometheus-exporter if {{ path /metrics }}
backend torchserve
  server one 127.0.0.1:{inference}
"""


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory):
    """Its address; beside it TorchServe with a remembering encoder and a generator, HAProxy, and a client."""
    assert shutil.which("prometheus") and shutil.which("haproxy"), "apt-get install prometheus haproxy"
    home, store = tmp_path_factory.mktemp("prometheus"), tmp_path_factory.mktemp("store")
    for recipe, setting in (
        ("sentiment", "handler.cache_bytes=1000000"),
        ("tiny-chat", "handler.max_new_tokens=64"),
    ):
        built = archives.build(str(ROOT / "recipes" / recipe), "--export-path", str(store), f"--set={setting}")
        assert built.returncode == 0, built.stderr
    with ExitStack() as stack:
        server = stack.enter_context(Serving(store, ["sentiment.mar", "tiny-chat.mar"]))
        gateway = free_ports(3)
        haproxy = HAPROXY.format(gateway=gateway, exporter=gateway + 1, inference=server.port_base)
        (home / "haproxy.cfg").write_text(haproxy)
        stack.enter_context(started(["haproxy", "-db", "-f", str(home / "haproxy.cfg")], home / "haproxy.log"))
        shipped = CONFIG.read_text()
        assert "127.0.0.1:8082" in shipped and "127.0.0.1:8083" in shipped
        config = shipped.replace("127.0.0.1:8082", f"127.0.0.1:{server.port_base + 2}")
        config = config.replace("127.0.0.1:8083", f"127.0.0.1:{gateway + 1}").replace("5s", "1s")
        (home / "prometheus.yml").write_text(config)
        line = ["prometheus", f"--config.file={home}/prometheus.yml", f"--storage.tsdb.path={home}/data"]
        line += [f"--web.listen-address=127.0.0.1:{gateway + 2}"]
        stack.enter_context(started(line, home / "prometheus.log"))
        stack.enter_context(asking(f"http://127.0.0.1:{gateway}/predictions"))
        yield f"http://127.0.0.1:{gateway + 2}"


@contextmanager
def started(command, log):
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
        try:
            yield process
            assert process.poll() is None, log.read_text()
        finally:
            process.terminate()
            process.wait()


@contextmanager
def asking(url):
    """Good and bad requests, new and remembered texts, whole answers and streams, until the end."""
    over = threading.Event()

    def ask():
        count = 0
        while not over.wait(0.1):
            count += 1
            texts = {
                "texts": ["a wonderful story", f"story {count}", f"the battery died after {count} weeks " * 3]
            }
            prompt = {"prompt": "Tell me a story", "max_new_tokens": 8, "stream": count % 2 == 0}
            for path, body in (("sentiment", texts), ("sentiment", {"text": 7}), ("tiny-chat", prompt)):
                with suppress(requests.ConnectionError):  # HAProxy is still starting
                    requests.post(f"{url}/{path}", json=body, timeout=60)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def values(prometheus, query):
    """What a query finds now: its numbers, NaN left out."""
    expression = query.replace("$model", ".*").replace("$__rate_interval", "15s")
    reply = requests.get(f"{prometheus}/api/v1/query", params={"query": expression}, timeout=10).json()
    assert reply["status"] == "success", reply
    return [number for each in reply["data"]["result"] if not math.isnan(number := float(each["value"][1]))]


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_finds_something(prometheus, name):
    for _ in range(600):  # a minute: rates need two scrapes
        try:
            if found := values(prometheus, QUERIES[name]):
                break
        except requests.RequestException:
            pass  # it is still starting: nobody listens, or its 503 is no JSON
        time.sleep(0.1)
    else:
        pytest.fail(f"nothing for {QUERIES[name]}")
    assert all(number >= 0 for number in found)


@pytest.mark.parametrize("title", ["Throughput", "Tokens/s", "Batch fill", "Padding", "Latency, means"])
def test_a_panel_moves_with_the_load(prometheus, title):
    [query, *_] = [query for name, query in QUERIES.items() if name.startswith(f"{title}:")]
    assert max(values(prometheus, query)) > 0


def test_the_configuration_is_valid():
    done = subprocess.run(
        ["promtool", "check", "config", str(CONFIG)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
