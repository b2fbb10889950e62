"""Answers with what it was sent, or does what it was told to do instead."""

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any


def handle(rows: list[dict[str, Any]] | None, context: Any) -> list[bytes] | None:
    """One answer a row; the first call, without rows, is the load."""
    if rows is None:
        return None
    return [answer(index, json.loads(as_bytes(row["body"])), context) for index, row in enumerate(rows)]


def answer(index: int, body: Any, context: Any) -> bytes:
    """The answer to one request."""
    if "wait" in body:
        (Path(tempfile.gettempdir()) / "waiting").touch()
        while not (Path(tempfile.gettempdir()) / body["wait"]).exists():
            time.sleep(0.02)
    if "die" in body:
        os._exit(1)
    if "plain" in body:
        return str(body["plain"]).encode()
    if "refuse" in body:
        context.set_response_status(body["refuse"], "No", index)
        error = {"code": body["refuse"], "type": "InvalidRequest", "message": "'text' is too long: 600 > 512"}
        return json.dumps({"error": error}).encode()
    version = context.manifest["model"]["modelVersion"]
    return json.dumps({"version": version, "body": body}).encode()


def as_bytes(body: Any) -> bytes:
    """The body as it was sent, whatever the server made of it."""
    return bytes(body) if isinstance(body, bytes | bytearray) else json.dumps(body).encode()
