"""Ports: what is one, and free ones for a server that says itself where it listens."""

from __future__ import annotations

import random
import re
import socket

BELOW = 32_000  # the kernel hands out those above (net.ipv4.ip_local_port_range)


def free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody listens on. Raises OSError."""
    for _ in range(200):
        base = random.randrange(15_000, BELOW)
        if all(_is_free(port) for port in range(base, base + count)):
            return base
    raise OSError(f"no {count} free ports in a row")


def is_port(told: str) -> bool:
    """Whether it is a number from 1 to 65535."""
    return re.fullmatch("[0-9]{1,5}", told) is not None and 0 < int(told) < 65_536


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
