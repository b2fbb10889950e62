"""Keys: bearer tokens of which only the hash is kept.

A line of the file is `SHA256 NAME SCOPE[,SCOPE]`; empty lines and those that begin with # say nothing. A key is 32
random bytes, which nobody guesses, so a hash without salt and iterations is enough (and HAProxy can make it).
"""

from __future__ import annotations

import hashlib
import re
import secrets
from pathlib import Path

from serving.errors import CannotServe
from serving.gateway.routes import ADMINISTRATION, INFERENCE

SCOPES = (INFERENCE, ADMINISTRATION)
LINE = re.compile(
    rf"([0-9a-f]{{64}})\s+([\w.-]{{1,64}})\s+((?:{'|'.join(SCOPES)})(?:,(?:{'|'.join(SCOPES)}))*)", re.ASCII
)


def new(name: str, scopes: str) -> tuple[str, str]:
    """A new key, and the line that goes into the file."""
    token = secrets.token_urlsafe(32)
    return token, f"{hashlib.sha256(token.encode()).hexdigest()} {name} {scopes}"


def read(path: Path) -> dict[str, str]:
    """Hash -> `NAME:SCOPES`.

    Raises:
        CannotServe: a line is none of the above, or there is no key at all. No line is quoted: it may be a key.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise CannotServe(f"keys: {path} cannot be read: {err}") from err
    keys = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = LINE.fullmatch(line.strip())
        if match is None:
            raise CannotServe(f"keys: line {number} of {path}: expected SHA256 NAME SCOPE[,SCOPE]")
        digest, name, scopes = match.groups()
        keys[digest] = f"{name}:{scopes}"
    if not keys:
        raise CannotServe(f"keys: {path} holds no key; `python -m serving.gateway key` makes one")
    return keys
