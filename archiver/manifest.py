"""MAR-INF/: the manifest, written by upstream's own classes, and the digest of every file."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from model_archiver.manifest_components.manifest import Manifest, RuntimeType
from model_archiver.manifest_components.model import Model

from archiver.errors import Refused

MANIFEST = "MAR-INF/MANIFEST.json"
SUMS = "MAR-INF/SHA256SUMS"
HANDLER = "transformer_handler.py"
CONFIG = "model-config.yaml"

EARLIEST = 315_532_800  # 1980-01-01, before which ZIP has no dates
LATEST = 4_354_819_198  # 2107-12-31 23:59:58, after which it has none


def clock() -> int:
    """The one time that an archive knows: SOURCE_DATE_EPOCH, or else a constant.

    Raises:
        Refused: SOURCE_DATE_EPOCH is not a whole number of seconds.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not text:
        return EARLIEST
    if not (text.isascii() and text.isdigit()):
        raise Refused(f"SOURCE_DATE_EPOCH: {text!r}: expected a whole number of seconds since 1970")
    return min(max(int(text), EARLIEST), LATEST)


def manifest(name: str, version: str, extensions: Mapping[str, Any], when: int) -> bytes:
    """MANIFEST.json as upstream writes it, with its clock replaced by ours."""
    model = Model(
        model_name=name,
        serialized_file=None,
        handler=HANDLER,
        model_version=version,
        extensions=dict(extensions) or None,
        config_file=CONFIG,
    )
    document = Manifest(runtime=RuntimeType.PYTHON.value, model=model)
    document.manifest_dict["createdOn"] = time.strftime("%d/%m/%Y %H:%M:%S", time.gmtime(when))
    return str(document).encode()


def write_sums(digests: Mapping[str, str]) -> bytes:
    """SHA256SUMS, in the form that `sha256sum --check` reads in the unpacked archive."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode()


def read_sums(content: bytes) -> dict[str, str]:
    """The digest of each file.

    Raises:
        ValueError: a line is not a digest and a name.
    """
    digests = {}
    for line in content.decode("utf-8").splitlines():
        digest, gap, name = line[:64], line[64:66], line[66:]
        if gap != "  " or not name or len(bytes.fromhex(digest)) != 32 or name in digests:
            raise ValueError(f"not a digest and a name: {line[:100]!r}")
        digests[name] = digest
    return digests
