"""One server with one archive, and one run of the load against it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client import ClientError, ManagementClient, NotReachable, NotReady
from serving.ports import free_ports
from tuning.choosing import Seen
from tuning.processes import module, tail
from tuning.wanted import Wanted

WARM_SECONDS = 1.0
LONGER = 6.0  # times the seconds of a measurement that it, or its warm-up, may take where answers are slow
LOAD_SECONDS = 200.0  # beside what was asked for, after which a load process is given up


class Void(Exception):
    """There is no figure; the message says why."""


@contextmanager
def server(wanted: Wanted, workers: int, store: Path) -> Iterator[int]:
    """`python -m serving` with the store's archive, warmed up, and the port to predict on.

    Raises:
        Void: it does not become ready, or answers errors.
    """
    port, log = free_ports(5), store.with_suffix(".log")
    arguments = ["--port-base", str(port), "--drain-seconds", "2"]
    arguments += ["--model-store", str(store), "--models", wanted.recipe.name]
    with module("serving", arguments, wanted.temp, log, read=False) as process:
        _wait(wanted, process, port, workers, log)
        load(wanted, port, wanted.connections, WARM_SECONDS)
        yield port


def _wait(wanted: Wanted, process: subprocess.Popen[str], port: int, workers: int, log: Path) -> None:
    deadline = time.monotonic() + wanted.config.server.startupTimeout
    with ManagementClient(f"http://127.0.0.1:{port + 1}", timeout=10) as client:
        while process.poll() is None:
            try:
                client.ready(wanted.recipe.name, workers=workers, timeout=1)
                return
            except (NotReachable, NotReady) as err:
                if time.monotonic() > deadline:
                    raise Void(f"not ready in time: {err}\n{tail(log)}") from err
            except ClientError as err:
                raise Void(f"{err}\n{tail(log)}") from err
    raise Void(f"the server ended:\n{tail(log)}")


def load(wanted: Wanted, port: int, connections: int, seconds: float) -> Seen:
    """One run of the load, in a process of its own.

    Raises:
        Void: an answer was no 200, or did not come.
    """
    most = LONGER * wanted.seconds
    job = {
        "port": port,
        "model": wanted.recipe.name,
        "bodies": list(wanted.bodies),
        "connections": connections,
        "seconds": seconds,
        "most": most,
    }
    path, log = wanted.temp / "load.json", wanted.temp / "load.log"
    path.write_text(json.dumps(job))
    with module("tuning.load", [str(path)], wanted.temp, log) as process:
        try:
            said = json.loads(process.communicate(timeout=most + LOAD_SECONDS)[0] or "{}")
        except subprocess.TimeoutExpired:
            raise Void("answers did not come in time") from None
    if "rate" not in said:
        raise Void(said.get("void") or f"the load ended too early:\n{tail(log)}")
    return Seen(**said)
