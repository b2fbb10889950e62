"""A server of a test's own, which says nothing and ends with its block."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Quiet(BaseHTTPRequestHandler):
    """What answers, without a line for each request."""

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def listening(answers: type[Quiet]) -> Iterator[tuple[str, int]]:
    """Where it listens: a host and a free port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), answers) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield "127.0.0.1", server.server_port
        finally:
            server.shutdown()
            thread.join()
