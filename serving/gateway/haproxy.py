"""HAProxy as a child: started, asked, told, and ended without dropping a request."""

from __future__ import annotations

import csv
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from serving.children import own_session
from serving.drain import shut_listener
from serving.errors import CannotServe
from serving.gateway import render
from serving.gateway.config import PLATFORM, Gateway
from serving.gateway.grpc_front import GrpcFront

OLDEST = (2, 6)
SOCKET = "admin.sock"
ALERTS = "stderr"  # a file
SPARE_FILES = 200  # listeners, checks, HAProxy's own
POLL_SECONDS = 1.0  # between two looks at the file of keys
CALL_SECONDS = 0.1  # between two looks whether a call is left; a new connection has begun its first by then


class HAProxy:
    """The gateway's process, and that of its gRPC where it has one.

    Args:
        gateway: what it is told.
        folder: an empty directory of its own, with a path short enough for a socket (107 bytes).

    Raises:
        CannotServe: there is no HAProxy, or it does not take its configuration.
    """

    def __init__(self, gateway: Gateway, folder: Path) -> None:
        self.gateway = gateway
        self.folder = folder
        self._keys_seen = self._keys_state()  # before they are read, so that no change is missed
        configuration = render.write(gateway, folder)
        program = find()
        judged = subprocess.run([program, "-c", "-f", configuration], capture_output=True, text=True, check=False)
        if judged.returncode:
            said = " ".join(line for line in judged.stderr.splitlines() if "ALERT" in line)
            raise CannotServe(f"HAProxy does not take its configuration: {said}")
        self._looked = time.monotonic()
        # What it says here while it runs is in its log on stdout too; why it does not start is here only.
        with (folder / ALERTS).open("wb") as alerts:
            self.process = subprocess.Popen(
                [program, "-db", "-f", configuration],
                stderr=alerts,
                preexec_fn=own_session,  # noqa: PLW1509 - no thread has been started
            )
        self.grpc = GrpcFront(gateway, folder) if gateway.grpc else None

    @property
    def processes(self) -> list[subprocess.Popen[bytes]]:
        """HAProxy's, and that of its gRPC."""
        return [self.process, *([self.grpc.process] if self.grpc else [])]

    def check(self) -> None:
        """Looks after it, many times a second. Raises CannotServe when it has ended."""
        if (status := self.process.poll()) is not None:
            lines = (self.folder / ALERTS).read_text(errors="replace").splitlines()
            said = " ".join(line for line in lines[-3:] if "ALERT" in line) or "its last lines say why"
            raise CannotServe(f"HAProxy ended by itself with status {status}; {said}")
        if self.grpc:
            self.grpc.check()
        if time.monotonic() - self._looked >= POLL_SECONDS:
            self._looked = time.monotonic()
            self._read_keys_again()

    def models_up(self) -> bool:
        """Whether every model has been seen ready on a server, by a check and not by presumption."""
        with suppress(OSError):
            rows = self._statistics()
            wanted = {variant.backend for variant in render.variants(self.gateway) if not variant.canary}
            seen = {
                row["pxname"] for row in rows if row["check_status"] == "L7OK" and row["status"].startswith("UP")
            }
            return wanted <= seen
        return False

    def _statistics(self) -> list[dict[str, str]]:
        return list(csv.DictReader(self.ask("show stat").removeprefix("# ").splitlines()))

    def tell_state(self, state: str) -> bool:
        """`ready`, or `stopping`: what /health says, as far as the models are ready too; whether it has heard."""
        with suppress(OSError):  # it is busy; or has ended, which `check` is about
            self.ask(f"set map {self.folder}/state.map state {state}")
            return True
        return False

    def ask(self, command: str) -> str:
        """One command to its socket, and the answer."""
        return ask(self.folder / SOCKET, command)

    def finish(self, seconds: float) -> float:
        """Says `not ready`, and after the notice takes nobody in any more.

        Then it waits until everybody has been answered, or so many seconds; returns how many are left.
        """
        self.tell_state("stopping")
        time.sleep(self.gateway.notice_seconds)
        end = time.monotonic() + seconds
        with suppress(OSError):  # it has ended already
            for address in filter(None, (self.gateway.listen, self.gateway.grpc)):
                shut_listener(self.process.pid, int(address.rpartition(":")[2]))
            if self.grpc:
                self._finish_calls(end)
        self.process.send_signal(signal.SIGUSR1)  # a soft stop: it ends when the last stream has
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.0, end - time.monotonic()))
        return end - time.monotonic()

    def _finish_calls(self, end: float) -> None:
        """Waits for the last call: each comes back in by a listener that a soft stop closes at once.

        Open connections are told to begin nothing more (GOAWAY) with what is answered next.
        """
        self.ask("shutdown frontend grpc")
        left = True
        while left and time.monotonic() < end:
            time.sleep(CALL_SECONDS)
            [row] = [row for row in self._statistics() if (row["pxname"], row["svname"]) == ("grpc", "BACKEND")]
            left = any(int(row[count]) for count in ("scur", "qcur"))

    def stop(self) -> None:
        """Ends it, whatever it is doing."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()

    def _keys_state(self) -> tuple[int, ...] | None:
        if self.gateway.keys in (None, PLATFORM):
            return None
        try:
            found = Path(self.gateway.keys).stat()
            return found.st_mtime_ns, found.st_ctime_ns, found.st_ino  # the second one knows of permissions too
        except OSError:
            return None

    def _read_keys_again(self) -> None:
        """A changed file of keys counts from now on; a damaged one changes nothing."""
        state = self._keys_state()
        if state is None or state == self._keys_seen:
            return
        try:
            replace_map(self.folder, "keys", render.keys_map(self.gateway))
            print("the keys have been read again", flush=True)
        except OSError as err:
            print(f"the keys stay as they were for a second: {err}", flush=True)
            return  # the file may be right
        except CannotServe as err:
            print(f"the keys stay as they were: {err}", flush=True)
        self._keys_seen = state


def check_descriptors(gateway: Gateway) -> None:
    """Raises CannotServe where HAProxy could not have as many files open as its connections need."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    places = (hard - SPARE_FILES) // 2 - render.inside(gateway)  # a connection has another one to a server
    if hard != resource.RLIM_INFINITY and render.clients(gateway) > places:
        most = max(0, places) * gateway.limits.connections // render.clients(gateway)
        expected = f"expected at most {most}, as {hard} files may be open here (ulimit -Hn)"
        raise CannotServe(f"limits.connections: {gateway.limits.connections}: {expected}")


def find() -> str:
    """The program. Raises CannotServe where it is missing or too old."""
    program = shutil.which("haproxy", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if program is None:
        raise CannotServe("the gateway needs HAProxy 2.6 or later, and there is none: apt-get install haproxy")
    said = subprocess.run([program, "-v"], capture_output=True, text=True, check=False).stdout
    version = said.partition("version ")[2].split(".")[:2]
    if tuple(int("".join(filter(str.isdigit, part)) or 0) for part in version) < OLDEST:
        raise CannotServe(f"the gateway needs HAProxy 2.6 or later; {program} is {'.'.join(version)}")
    return program


def ask(path: Path, command: str) -> str:
    """One command to a running HAProxy's socket, and the answer. Raises OSError where nobody listens."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(str(path))
        connection.sendall(command.encode() + b"\n")
        pieces = iter(lambda: connection.recv(65536), b"")
        return b"".join(pieces).decode().strip()


def replace_map(folder: Path, name: str, lines: Iterable[str]) -> None:
    """All of a map at once, while requests go on: what HAProxy calls a transaction. Raises OSError."""
    path = folder / f"{name}.map"
    told = list(lines)
    answer = ask(folder / SOCKET, f"prepare map {path}")
    version = answer.rpartition(":")[2].strip()
    if not version.isdigit():
        raise OSError(f"HAProxy says {answer}")
    try:
        for line in told:
            _tell(folder, f"add map @{version} {path} {line}")
        _tell(folder, f"commit map @{version} {path}")
    except OSError:
        ask(folder / SOCKET, f"clear map @{version} {path}")
        raise
    render.write_lines(path, told)


def _tell(folder: Path, command: str) -> None:
    """A command that is answered by nothing, or refused (management.txt, 9.3). Raises OSError."""
    if said := ask(folder / SOCKET, command):
        raise OSError(f"HAProxy says {said}")
