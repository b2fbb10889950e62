"""What an archive says of itself: the version of its model, and the digest of each of the model's files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from handler.loading import read_json

ANY_VERSION = "1.0"  # TorchServe's own, where a manifest has none


@dataclass(frozen=True)
class Provenance:
    """Both; an archive that another archiver has built has no digests."""

    version: str = ANY_VERSION
    digests: dict[str, str] = field(default_factory=dict)  # file below model/ -> its SHA-256, as it was packed


def read(archive: Path) -> Provenance:
    """The provenance of an unpacked archive. The digests are the archiver's; nothing is computed."""
    manifest = read_json(archive / "MAR-INF" / "MANIFEST.json")
    sums = archive / "MAR-INF" / "SHA256SUMS"
    lines = sums.read_text("utf-8").splitlines() if sums.is_file() else []
    listed = (line.split("  ", 1) for line in lines)
    digests = {name.removeprefix("model/"): digest for digest, name in listed if name.startswith("model/")}
    return Provenance(str(manifest.get("model", {}).get("modelVersion") or ANY_VERSION), digests)
