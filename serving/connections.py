"""HTTP to a gateway, by its URL or by a Unix socket that only we can open."""

from __future__ import annotations

import socket
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection

from client.transport import CONNECT_TIMEOUT

UNIX = "unix:"


class UnixConnection(HTTPConnection):
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
    return urllib3.connection_from_url(gateway, maxsize=most)
