"""A model of the Hugging Face hub, as a directory of this machine. Only here may a build use the network."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from archiver.errors import Refused
from archiver.snapshot import KEPT, LEFT_DIRECTORIES, TEKKEN, TOKENIZER_FILES

HUB_ID = re.compile(r"(?P<id>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
CONNECT_TIMEOUT = 5  # s
WANTED = [f"*{suffix}" for suffix in KEPT] + ["LICENSE*", "NOTICE*", "*vocab*", "*merges*"]
# Pickles, code, and the same weights again, as Mistral's own library reads them.
PICKLES = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl"]
UNWANTED = [f"{name}/*" for name in LEFT_DIRECTORIES] + [*PICKLES, "*.py", "consolidated*.safetensors"]


def fetch(text: str, *, tokenizer_only: bool = False) -> tuple[Path, str, list[str]]:
    """Finds HUB_ID[@REVISION] in the hub's local cache, or downloads it; never pickles, never code.

    With `tokenizer_only`, none of its weights.

    Returns:
        the directory, ID@COMMIT, and warnings.

    Raises:
        Refused: there is neither such a directory nor such a model within reach.
    """
    match = HUB_ID.fullmatch(text)
    if match is None:
        raise Refused(f"{text}: there is no such directory, and it is not HUB_ID[@REVISION]")
    name, revision = match["id"], match["revision"] or "main"
    import httpx2  # noqa: PLC0415  with the hub's client 0.2 s, and most builds need no hub
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415

    unreachable = _unreachable()
    try:
        wanted = sorted(TOKENIZER_FILES - {TEKKEN}) if tokenizer_only else WANTED
        folder = _download(name, revision, wanted, cached_only=unreachable is not None)
    except (OSError, HFValidationError, httpx2.HTTPError) as error:  # what the hub's client lets through
        reason = unreachable or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise Refused(
            f"{name}@{revision}: is neither a directory nor in the hub's cache, "
            f"and the hub did not give it: {reason}"
        ) from error
    warnings = []
    if unreachable:
        count = sum(path.is_file() for path in folder.rglob("*"))
        warnings.append(
            f"{name}@{revision}: its {count} files are what the cache has of it, because {unreachable}; "
            "what nobody has fetched is missing"
        )
    if not COMMIT.fullmatch(revision):
        warnings.append(f"{name}@{revision}: may be another model tomorrow; what it is now is @{folder.name}")
    return folder, f"{name}@{folder.name}", warnings


def _unreachable() -> str | None:
    """Why the hub cannot be reached, or None. Its client would find out by half a minute of retries."""
    from huggingface_hub import constants  # noqa: PLC0415

    address = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if getproxies():
        return None  # the proxy knows
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), CONNECT_TIMEOUT).close()
    except OSError as error:
        return f"{address.hostname} cannot be reached: {error.strerror or error}"
    return None


def _download(name: str, revision: str, wanted: list[str], *, cached_only: bool) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.utils import logging  # noqa: PLC0415

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # its retries are not news
    return Path(
        snapshot_download(
            name,
            revision=revision,
            allow_patterns=wanted,
            ignore_patterns=UNWANTED,
            local_files_only=cached_only,
        )
    )
