"""Loads only when the file `gate` lies in the server's temporary directory."""

import tempfile
import time
from pathlib import Path
from typing import Any


def handle(rows: list[dict[str, Any]] | None, context: Any) -> list[bytes] | None:
    """Wait for the gate on the first call, which is the load."""
    while not (Path(tempfile.gettempdir()) / "gate").exists():
        time.sleep(0.02)
    return None if rows is None else [b"{}" for _ in rows]
