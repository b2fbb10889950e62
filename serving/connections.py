"""HTTP to a gateway, by its URL or by a Unix socket that only we can open; a request may be given up meanwhile."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from threading import Lock
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.response import HTTPResponse

from client.transport import CONNECT_TIMEOUT

UNIX = "unix:"


class Exchange:
    """A request and its answer, which another thread may break off."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._connection: HTTPConnection | None = None
        self._given_up = False

    @contextmanager
    def over(self, connection: HTTPConnection) -> Iterator[None]:
        """While it has the connection. Raises OSError where it has been given up."""
        with self._lock:
            if self._given_up:
                raise ConnectionAbortedError("the request was given up")
            self._connection = connection
        try:
            yield
        finally:
            with self._lock:
                self._connection = None  # the next request over it is another's

    def give_up(self) -> None:
        """Ends the connection, if it has one, and so the wait of the thread that uses it."""
        with self._lock:
            self._given_up = True
            opened = self._connection and self._connection.sock
            if opened:
                with suppress(OSError):  # the other side was first
                    opened.shutdown(socket.SHUT_RDWR)


exchange: ContextVar[Exchange] = ContextVar("exchange")  # the one of this thread


class Connection(HTTPConnection):
    """Tells its exchange."""

    def request(self, *arguments: Any, **options: Any) -> None:
        """The parent's."""
        with exchange.get(Exchange()).over(self):
            super().request(*arguments, **options)

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]  # as urllib3 has it
        """The parent's, which reads the answer whole."""
        with exchange.get(Exchange()).over(self):
            return super().getresponse()


class TLSConnection(Connection, HTTPSConnection):
    """The same, with TLS."""


class UnixConnection(Connection):
    """A connection to a Unix socket, whatever the host is called."""

    def __init__(self, *arguments: Any, path: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.path = path

    def _new_conn(self) -> socket.socket:
        opened = socket.socket(socket.AF_UNIX)
        opened.settimeout(CONNECT_TIMEOUT)
        opened.connect(self.path)
        return opened


class UnixPool(urllib3.HTTPConnectionPool):
    """Connections to one."""

    ConnectionCls = UnixConnection


def connections(gateway: str, most: int) -> urllib3.HTTPConnectionPool:
    """To a gateway by its URL or its Unix socket, so many at once. Raises ValueError for any other address."""
    if gateway.startswith(UNIX):
        return UnixPool("gateway", maxsize=most, path=gateway.removeprefix(UNIX))
    if not gateway.startswith(("http://", "https://")):
        raise ValueError(f"{gateway}: expected http://HOST:PORT or https://HOST:PORT")
    pool = urllib3.connection_from_url(gateway, maxsize=most)
    pool.ConnectionCls = TLSConnection if pool.scheme == "https" else Connection
    return pool
