"""A model of the Hugging Face hub, as a directory of this machine. Only here may a build use the network."""

from __future__ import annotations

import re
from pathlib import Path

from archiver.errors import Refused
from archiver.snapshot import KEPT, LEFT_DIRECTORIES

HUB_ID = re.compile(r"(?P<id>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
WANTED = [f"*{suffix}" for suffix in KEPT] + ["LICENSE*", "NOTICE*", "*vocab*", "*merges*"]
UNWANTED = [f"{name}/*" for name in LEFT_DIRECTORIES] + ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.py"]


def fetch(text: str) -> tuple[Path, str, list[str]]:
    """Finds HUB_ID[@REVISION] in the hub's local cache, or downloads it; never pickles, never code.

    Returns:
        the directory, ID@COMMIT, and warnings.

    Raises:
        Refused: there is neither such a directory nor such a model within reach.
    """
    match = HUB_ID.fullmatch(text)
    if match is None:
        raise Refused(f"{text}: there is no such directory, and it is not HUB_ID[@REVISION]")
    name, revision = match["id"], match["revision"] or "main"
    try:
        folder = _download(name, revision)
    except Exception as error:  # the hub's client and its HTTP library raise their own trees
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Refused(
            f"{name}@{revision}: there is no such directory, and the hub did not give it: "
            f"{type(error).__name__}: {reason[:300]}"
        ) from error
    warnings = []
    if not COMMIT.fullmatch(revision):
        warnings.append(f"{name}@{revision}: may be another model tomorrow; what it is now is @{folder.name}")
    return folder, f"{name}@{folder.name}", warnings


def _download(name: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415  0.2 s, and most builds need no hub

    # Where the network fails, the client falls back to its cache.
    return Path(snapshot_download(name, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED))
