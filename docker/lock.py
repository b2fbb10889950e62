"""Writes the image's locks: every package, its version and the SHA-256 of the one wheel for the image's platform.

    python docker/lock.py            all of docker/locks, with the pip of this Python, 23.1 or newer
    python docker/lock.py cpu        one of them

pip resolves and says what it would install; nothing is installed. Where packages come from is pip's own business
(PIP_INDEX_URL, pip.conf). The CPU build of torch is not on PyPI: `cpu` needs PyTorch's own index or a directory
that holds the wheel (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "docker" / "locks"
# Debian 12's interpreter and C library (2.36); every tag up to it counts.
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(36, 4, -1)] + [
    "manylinux2014_x86_64",
    "linux_x86_64",
]
TARGET = ["--only-binary=:all:", "--implementation=cp", "--python-version=3.11"]
REQUIRED = ["--requirement=requirements.txt", "--requirement=requirements-grpc.txt"]
ALL = [*REQUIRED, "--constraint=constraints.txt"]
# vLLM's CUDA wheel asks for a numpy that constraints.txt does not have, so it is resolved without them.
ASKED = {
    "cpu": [*ALL, "torch===2.13.0+cpu"],
    "cpu-vllm": ["--no-deps", "--requirement=requirements-vllm.txt"],
    "cuda": [*ALL, "torch===2.13.0"],
    "cuda-vllm": [*REQUIRED, "torch===2.13.0", "vllm===0.32.0"],
}


def main() -> int:
    """0 once all that was asked for is written, else 1."""
    parser = argparse.ArgumentParser(description="Writes docker/locks/NAME.txt.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(ASKED)} (default: all)")
    names = parser.parse_args().names or list(ASKED)
    if unknown := set(names) - set(ASKED):
        parser.error(f"{', '.join(sorted(unknown))}: expected {', '.join(ASKED)}")
    for name in names:
        lines = lock(ASKED[name])
        if lines is None:
            print(f"error: pip could not resolve {name}; its lines above say why", file=sys.stderr)
            return 1
        about = f"# {name}: {len(lines)} wheels for CPython 3.11 on Linux, x86-64. docker/lock.py writes this.\n"
        (LOCKS / f"{name}.txt").write_text(about + "".join(f"{line}\n" for line in lines))
        print(f"docker/locks/{name}.txt: {len(lines)} packages", file=sys.stderr)
    return 0


def lock(asked: list[str]) -> list[str] | None:
    """The sorted lines of a lock, or None where pip fails."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        line = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        line += [f"--report={report}", f"--target={scratch}/none", *TARGET]
        line += [f"--platform={platform}" for platform in PLATFORMS]
        if subprocess.run([*line, *asked], cwd=ROOT, check=False).returncode:
            return None
        return sorted(as_line(item) for item in json.loads(report.read_text())["install"])


def as_line(item: dict[str, Any]) -> str:
    """`name==version --hash=sha256:…` of one entry of pip's report (its format 1)."""
    name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
    digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
    return f"{name}=={item['metadata']['version']} --hash=sha256:{digest}"


if __name__ == "__main__":
    sys.exit(main())
