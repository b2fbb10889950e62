"""HAProxy in front of what answers like TorchServe and does what a test wants: a gateway in no time."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import requests

from serving.archives import Served
from serving.gateway.config import Server, read
from serving.gateway.haproxy import HAProxy
from serving.ports import free_ports

ARCHIVES = [Served("tiny", version, {"handler": {"task": "text-classification"}}) for version in ("1.0", "2.0")]


class Behind(ThreadingHTTPServer):
    """Management and inference on one port: what it was asked for, and whether it calls its models READY."""

    daemon_threads = True

    def __init__(self, port: int, name: str) -> None:
        super().__init__(("127.0.0.1", port), Answers)
        self.name = name
        self.ready = True
        self.wait = 0.0  # seconds, before any prediction
        self.seen: list[Answers] = []

    def handle_error(self, *of: object) -> None:
        """A client that goes away is no news."""


class Answers(BaseHTTPRequestHandler):
    """A prediction waits as its body says, and comes in `pieces` of a `size` with a `pause` before each."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two pieces
    server: Behind
    body: bytes = b""

    def do_GET(self) -> None:
        self._answer(b'[{"status": "READY"}]' if self.server.ready else b'[{"status": "UNLOADING"}]')

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append(self)
        asked = json.loads(self.body) if self.body.startswith(b"{") and self.body.endswith(b"}") else {}
        time.sleep(asked.get("wait", self.server.wait))
        if "pieces" not in asked:
            return self._answer(json.dumps({"server": self.server.name, "path": self.path}).encode())
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        size = asked.get("size", 1)
        for _ in range(asked["pieces"]):
            time.sleep(asked.get("pause", 0))
            self.wfile.write(b"%x\r\n%b\r\n" % (size, b"a" * size))
        self.wfile.write(b"0\r\n\r\n")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *of: object) -> None:
        pass


class Front:
    """A gateway, ready."""

    def __init__(self, port: int, behind: Mapping[str, Behind], haproxy: HAProxy, log: Path, scheme: str) -> None:
        self.port = port
        self.behind = behind
        self.haproxy = haproxy
        self.url = f"{scheme}://127.0.0.1:{port}"
        self._log = log

    def output(self) -> str:
        """What HAProxy has logged."""
        return self._log.read_text()

    def post(self, path: str = "/predict", document: object = None, **how: Any) -> requests.Response:
        """A request over a connection of its own."""
        return requests.post(self.url + path, json={} if document is None else document, timeout=30, **how)

    def get(self, path: str, **how: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=30, **how)


@contextmanager
def front(told: Mapping[str, Any], others: Sequence[str] = ()) -> Iterator[Front]:
    """A gateway with that configuration, in front of `local` and of other servers by name."""
    port = free_ports(3 + len(others))
    with ExitStack() as ends:
        behind = {}
        for offset, name in enumerate(("local", *others), start=2):
            behind[name] = server = ends.enter_context(Behind(port + offset, name))
            Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            ends.callback(server.shutdown)
        places = {name: f"127.0.0.1:{server.server_port}" for name, server in behind.items()}
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="gw-")))  # a socket's path is short
        (folder / "told.yaml").write_text(
            json.dumps(
                {
                    "listen": f"127.0.0.1:{port}",
                    "metrics": f"127.0.0.1:{port + 1}",
                    "servers": {name: {"inference": at, "management": at} for name, at in places.items()},
                    **told,
                }
            )
        )
        gateway = read(folder / "told.yaml", Server(places["local"], places["local"]), ARCHIVES)
        with logging_to(folder / "log"):
            haproxy = HAProxy(gateway, folder)
        ends.callback(haproxy.stop)
        end = time.monotonic() + 10
        while not haproxy.models_up():
            assert time.monotonic() < end
            time.sleep(0.02)
        haproxy.tell_state("ready")
        yield Front(port, behind, haproxy, folder / "log", "https" if gateway.tls else "http")


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """What is started meanwhile has a file for its stdout."""
    kept = os.dup(1)
    with path.open("wb") as file:
        os.dup2(file.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
