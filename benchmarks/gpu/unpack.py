"""Unpacks a kit into a place that Python and TorchServe take for an ordinary installation; plain Python only.

    python3 -m benchmarks.gpu.unpack KIT PLACE

Makes PLACE/java, PLACE/tokenizer, and a virtual environment PLACE/env that holds the kit's packages and sees those
of the Python that runs this. PYTHONPATH would not do: the archiver opens archives with `python -I`.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
import tarfile
import venv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.gpu.settings import KIT_PARTS

# The kit is our own; Debian 12's Python, 3.11.2, has no filters yet.
SAFELY: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


def main() -> int:
    """Unpacks; 1 where there is no kit or the Python does not fit."""
    kit, place = map(Path, sys.argv[1:])
    room = f"cp{sys.version_info.major}{sys.version_info.minor}"
    if room not in ("cp311", "cp312"):
        return fail(f"the kit is for Python 3.11 and 3.12, not {sys.version.split()[0]}; set PYTHON")
    if missing := [part for part in KIT_PARTS if not (kit / f"{part}.tar.xz").is_file()]:
        return fail(f"{kit} lacks {', '.join(missing)}; benchmarks.gpu.pack makes it")
    for part in KIT_PARTS:
        with tarfile.open(kit / f"{part}.tar.xz") as archive:
            archive.extractall(place, **SAFELY)
    venv.create(place / "env", symlinks=True, with_pip=False)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(place / "env")}))
    for folder in ("common", room):
        shutil.copytree(place / folder, site, dirs_exist_ok=True)
    (site / "outer.pth").write_text(outer(sys.path))
    return 0


def outer(paths: Iterable[str]) -> str:
    """A .pth file that adds these directories of packages, and what their own .pth files add."""
    folders = [path for path in paths if path.endswith(("site-packages", "dist-packages"))]
    return "".join(f"import site; site.addsitedir({folder!r})\n" for folder in folders)


def fail(reason: str) -> int:
    """Says why; the status."""
    print(f"error: {reason}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
