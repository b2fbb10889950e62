"""Ends a server's work without dropping what it has accepted.

Told to stop, TorchServe closes every connection at once (ServerGroups.java, and Netty's event loops on their
shutdown), so there must be nothing left to do by then:

1. The listening sockets are shut, from outside: new connections are refused, open ones go on, and those that the
   server has not yet taken are waited for.
2. A marker request goes through each model's queue. When it is answered, all that came before it has been taken.
3. The workers are told to refuse (SIGUSR1, handler/draining.py): what still comes on open connections gets 503,
   and TorchServe closes the connection behind it.
4. Once the queues are empty and the workers rest, nothing is lost by stopping.
"""

from __future__ import annotations

import ctypes
import http.client
import os
import signal
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from client import ClientError, ManagementClient
from handler.generation.frontend import is_awake

SYS_PIDFD_GETFD = 438  # the same number on every architecture (asm-generic/unistd.h)
SO_ATTACH_FILTER = 26  # asm-generic/socket.h
BPF_RETURN = 0x06  # BPF_RET | BPF_K, linux/bpf_common.h: drop, where the constant is 0
TCPI_UNACKED = 24  # offset in struct tcp_info; of a listening socket, the connections that wait to be accepted
BACKLOG_SECONDS = 1.0
POLL_SECONDS = 0.25
REST = 0.015  # s of CPU time between two looks that a worker at rest stays below; the kernel counts in 0.01


def drain(inference: str, management: str, server: int, ports: Iterable[int], seconds: float) -> None:
    """Returns once nothing that was accepted is unanswered, or after so many seconds.

    Args:
        inference: address of the inference API, such as http://127.0.0.1:8080.
        management: address of the management API.
        server: process id of TorchServe's JVM, a child of this process.
        ports: where clients come in.
        seconds: the most that it may take.
    """
    end = time.monotonic() + seconds
    try:
        with ManagementClient(management, timeout=seconds) as client:  # one that is slow is not gone
            # Nothing passes a queue that has no worker.
            serving = [model for model in client.models() if model.ready]
            markers = [_accepted_connection(inference, seconds) for _ in serving]
            for port in ports:
                shut_listener(server, port)
            for model, connection in zip(serving, markers, strict=True):
                _pass_queue(connection, f"/predictions/{model.name}/{model.version}", end)
            workers = [worker.pid for model in client.models() for worker in model.workers if worker.pid > 0]
            refuse(workers)
            if serving:
                _wait_for_rest(client, server, workers, end)
    except (OSError, ClientError, http.client.HTTPException):
        return  # it is still starting, or already gone: there is nothing to wait for


def refuse(workers: Iterable[int]) -> None:
    """Tells workers to answer 503. One whose handler is not ours would die of the signal, and is left alone."""
    for pid in workers:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            caught = int(status.partition("SigCgt:")[2].split()[0], 16)
            if caught & (1 << (signal.SIGUSR1 - 1)):
                os.kill(pid, signal.SIGUSR1)
        except (OSError, ValueError, IndexError):
            continue


def shut_listener(server: int, port: int) -> bool:
    """Takes the server's listening socket out of the listening state; returns whether it could be done.

    A descriptor of a child may be had with pidfd_getfd(2), and what is done to it is done to the socket behind it.
    Where that is not allowed (some containers), new connections are accepted until the end, and get 503.
    """
    inodes = _listening_inodes(port)
    for entry in Path(f"/proc/{server}/fd").iterdir():
        with suppress(OSError):
            if os.readlink(entry) in inodes and (listener := _take_descriptor(server, int(entry.name))):
                with listener:
                    _empty_backlog(listener)
                    listener.shutdown(socket.SHUT_RD)
                return True
    return False


def _take_descriptor(process: int, descriptor: int) -> socket.socket | None:
    pidfd = os.pidfd_open(process)
    try:
        taken = ctypes.CDLL(None, use_errno=True).syscall(SYS_PIDFD_GETFD, pidfd, descriptor, 0)
    finally:
        os.close(pidfd)
    return socket.socket(fileno=taken) if taken >= 0 else None


def _empty_backlog(listener: socket.socket) -> None:
    """Lets nobody new in, and waits until the server has taken those who are: shutting the socket resets them.

    A filter that drops every packet is one instruction; clients whose SYN it drops try again a second later, and
    are refused then.
    """
    instruction = ctypes.create_string_buffer(struct.pack("=HBBI", BPF_RETURN, 0, 0, 0))
    program = struct.pack("HP", 1, ctypes.addressof(instruction))
    listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
    end = time.monotonic() + BACKLOG_SECONDS
    while time.monotonic() < end:
        time.sleep(0.02)
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
        if struct.unpack_from("=I", info, TCPI_UNACKED)[0] == 0:
            return


def _listening_inodes(port: int) -> set[str]:
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == port and fields[3] == "0A":  # TCP_LISTEN
                found.add(f"socket:[{fields[9]}]")
    return found


def _accepted_connection(address: str, seconds: float) -> http.client.HTTPConnection:
    """A connection that the server has taken from its backlog: what is still in it is lost with the listener."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=seconds)
    connection.request("GET", "/ping")
    connection.getresponse().read()
    return connection


def _pass_queue(connection: http.client.HTTPConnection, path: str, end: float) -> None:
    """Sends an empty request, which is refused without work, and waits for its turn to come."""
    try:
        if connection.sock is not None:
            connection.sock.settimeout(max(0.1, end - time.monotonic()))
        connection.request("POST", path, b"")
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        pass  # its worker is gone, or the time is up
    finally:
        connection.close()


def _wait_for_rest(client: ManagementClient, server: int, workers: Sequence[int], end: float) -> None:
    spent, woken = activity(workers)
    while time.monotonic() < end:
        time.sleep(POLL_SECONDS)
        spent_before, woken_before = spent, woken
        spent, woken = activity(workers)
        rests = spent - spent_before < REST and woken == woken_before and asleep((server, *workers))
        if rests and not any(model.pending for model in client.models()):
            return


def activity(workers: Iterable[int]) -> tuple[float, int]:
    """What workers have done so far: seconds of CPU time, and how often their main threads have gone to sleep.

    A batch shows in the first. A round of text generation costs next to nothing where the engine has processes of
    its own, but the main thread waits for the frontend after each, many times a second while a stream is open.
    """
    spent, woken = 0.0, 0
    for pid in workers:
        try:
            process = psutil.Process(pid)
            times = process.cpu_times()
            spent += times.user + times.system
            woken += process.num_ctx_switches().voluntary  # /proc/PID/status: the main thread's
        except psutil.Error:
            continue
    return spent, woken


def asleep(processes: Iterable[int]) -> bool:
    """Whether every thread of them does: one that only waits for a core has done as little."""
    return not any(is_awake(stat) for pid in processes for stat in Path(f"/proc/{pid}/task").glob("*/stat"))
