"""The load: connections that each send a request, read the answer, and send the next; plain Python only.

    python -m benchmarks.gpu.load JOB.json

One such process drives some of the connections, a thread each; `run` starts several and adds up what they saw.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
START = 2.0  # s until all processes are up and begin together
TIMEOUT = 120.0  # s for one answer


@dataclass(frozen=True)
class Load:
    """What to send, and how long.

    Attributes:
        requests: for each connection what it sends in turn, each a list of texts; one text is sent as such.
        tokens: real tokens of each of these requests.
    """

    host_port: tuple[str, int]
    model: str
    requests: Sequence[Sequence[Sequence[str]]]
    tokens: Sequence[Sequence[int]]
    seconds: float
    warm_up: float


@dataclass(frozen=True)
class Seen:
    """What came back within the measured time."""

    seconds: float
    requests: int
    texts: int
    tokens: int
    errors: int  # of the whole time, warm-up included
    error: str  # the first one's words
    latencies: tuple[float, ...]  # s, sorted

    @property
    def tokens_per_second(self) -> float:
        """Real tokens, without padding."""
        return self.tokens / self.seconds

    def percentile(self, share: float) -> float:
        """Seconds under which this share of the requests stayed; NaN where there was none."""
        if not self.latencies:
            return float("nan")
        return self.latencies[min(len(self.latencies) - 1, int(share * len(self.latencies)))]


def run(load: Load, processes: int, place: Path) -> Seen:
    """Drives the load from several processes at once."""
    place.mkdir(exist_ok=True)
    processes = max(1, min(processes, len(load.requests)))
    start_at = time.time() + START
    children = []
    try:
        for number in range(processes):
            job = place / f"load-{number}.json"
            job.write_text(json.dumps(_share(load, number, processes, start_at)))
            line = [sys.executable, "-P", "-m", "benchmarks.gpu.load", str(job)]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            children.append(subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environment))
        limit = START + load.warm_up + load.seconds + TIMEOUT + 30
        return add_up([json.loads(child.communicate(timeout=limit)[0]) for child in children], load.seconds)
    finally:
        for child in children:
            child.kill()
            child.wait()


def _share(load: Load, number: int, processes: int, start_at: float) -> dict[str, Any]:
    """One process's connections."""
    mine = range(number, len(load.requests), processes)
    return {
        "host": load.host_port[0],
        "port": load.host_port[1],
        "path": f"/predictions/{load.model}",
        "requests": [load.requests[index] for index in mine],
        "tokens": [load.tokens[index] for index in mine],
        "start_at": start_at,
        "warm_up": load.warm_up,
        "seconds": load.seconds,
    }


def add_up(parts: Sequence[dict[str, Any]], seconds: float) -> Seen:
    """What all processes saw together."""
    latencies = sorted(latency for part in parts for latency in part["latencies"])
    texts, tokens, errors = (sum(part[name] for part in parts) for name in ("texts", "tokens", "errors"))
    error = next((part["error"] for part in parts if part["error"]), "")
    return Seen(seconds, len(latencies), texts, tokens, errors, error, tuple(latencies))


# -- in the child


class Connection(threading.Thread):
    """One connection's thread."""

    def __init__(self, job: dict[str, Any], index: int) -> None:
        super().__init__(daemon=True)
        self.job = job
        self.requests: list[list[str]] = job["requests"][index]
        self.tokens: list[int] = job["tokens"][index]
        self.texts_done, self.tokens_done, self.errors, self.error = 0, 0, 0, ""
        self.latencies: list[float] = []

    def run(self) -> None:
        """Sends until the time is over; what is under way then is still read, and not counted."""
        bodies = [json.dumps({"texts": r} if len(r) > 1 else {"text": r[0]}).encode() for r in self.requests]
        until_start = self.job["start_at"] - time.time()
        begin = time.perf_counter() + until_start + self.job["warm_up"]  # the same moment in every process
        time.sleep(max(0.0, until_start))
        end = begin + self.job["seconds"]
        connection, turn = self._connect(), 0
        while (started := time.perf_counter()) < end:
            index = turn % len(bodies)
            if not self._send(connection, bodies[index], len(self.requests[index]), check=turn < len(bodies)):
                connection.close()
                connection = self._connect()
                time.sleep(0.01)  # an error must not become a storm of them
            elif begin <= (now := time.perf_counter()) < end:
                self.latencies.append(now - started)
                self.texts_done += len(self.requests[index])
                self.tokens_done += self.tokens[index]
            turn += 1
        connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.job["host"], self.job["port"], timeout=TIMEOUT)

    def _send(self, connection: http.client.HTTPConnection, body: bytes, texts: int, check: bool) -> bool:
        """Whether the answer was right: its status, and once for each request the number of vectors in it."""
        try:
            connection.request("POST", self.job["path"], body, {"content-type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
            if response.status != 200:
                return self._note(f"status {response.status}: {answer[:200].decode(errors='replace')}")
            if check and len(json.loads(answer)["embeddings"]) != texts:
                return self._note("an answer with another number of vectors than texts")
        except (OSError, http.client.HTTPException, ValueError, KeyError) as err:
            return self._note(f"{type(err).__name__}: {err}")
        return True

    def _note(self, error: str) -> bool:
        self.errors += 1
        self.error = self.error or error
        return False


def main() -> int:
    """One process of the load; its sums on stdout."""
    job = json.loads(Path(sys.argv[1]).read_text())
    threads = [Connection(job, index) for index in range(len(job["requests"]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report = {
        "latencies": [latency for thread in threads for latency in thread.latencies],
        "texts": sum(thread.texts_done for thread in threads),
        "tokens": sum(thread.tokens_done for thread in threads),
        "errors": sum(thread.errors for thread in threads),
        "error": next((thread.error for thread in threads if thread.error), ""),
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
