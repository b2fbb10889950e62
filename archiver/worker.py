"""Opens an archive the way a TorchServe worker does, in a clean process.

A script for `python -I`, which imports nothing of the repository: else its `handler/` would stand in for the
archive's. It runs in two steps, so that importing (seconds of torch) goes on while the weights are written:

1. The first argument is a directory with the archive's files but model/. The handler is loaded from there by
   TorchServe's own loader. Where the archive has golden answers, model/ is there too, and has to give them.
2. A line on stdin says where the finished archive is. What it holds must be what was loaded, byte for byte.

One line of JSON on stdout says what is wrong and what is worth knowing.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import sys
import tarfile
import traceback
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUMS = "MAR-INF/SHA256SUMS"
GOLDEN = "golden"


def load(root: Path) -> tuple[list[str], list[str]]:
    """Problems and notes of loading the handler under root, as ts/model_loader.py:97 does."""
    import ts  # noqa: PLC0415  not needed by step 2, and not before the path is a worker's

    # A worker's PYTHONPATH is the archive. TorchServe's own directory comes first, as it does where
    # site-packages are behind a link (model_service_worker.py:273 removes the real path only).
    sys.path[:0] = [os.path.dirname(ts.__file__), str(root)]
    from ts.model_loader import TsModelLoader  # noqa: PLC0415
    from ts.utils.util import list_classes_from_module  # noqa: PLC0415

    manifest = json.loads((root / "MAR-INF/MANIFEST.json").read_bytes())["model"]
    loader = TsModelLoader()
    module, _ = loader._load_handler_file(manifest["handler"])
    problems = []
    if hasattr(module, "handle"):
        problems.append(
            f"{manifest['handler']}: has a module-level handle, which TorchServe would call in its place"
        )
    if len(classes := list_classes_from_module(module)) != 1:
        found = ", ".join(kind.__name__ for kind in classes) or "none"
        problems.append(f"{manifest['handler']}: expected one class, found {found}")
    else:
        loader._get_class_entry_point(module)
    own, unused = _check_config(root / manifest["configFile"], problems)
    notes = _import_all(unused, problems)
    _check_places(root, own, problems)
    if not problems and (root / GOLDEN).is_dir():
        _prove(root / manifest["configFile"], problems)
    return problems, notes


def _import_all(unused: tuple[str, ...], problems: list[str]) -> list[str]:
    """Every module that it may need; one that only lacks another's package is an option of the machine's."""
    import handler  # noqa: PLC0415

    notes = []
    for found in pkgutil.walk_packages(handler.__path__, "handler.", onerror=lambda _: None):
        if found.name.startswith(unused):
            continue
        try:
            importlib.import_module(found.name)
        except ModuleNotFoundError as error:
            if str(error.name).split(".")[0] == "handler":
                problems.append(f"{found.name}: {error}")
            else:
                notes.append(f"{found.name} was not imported here: {error}")
        except Exception as error:
            problems.append(f"{found.name}: {type(error).__name__}: {error}")
    return notes


def _check_config(path: Path, problems: list[str]) -> tuple[str | None, tuple[str, ...]]:
    """Judges the configuration.

    Returns:
        the module of the recipe's own task, if it names one; and what the names of modules that it has no use
        for begin with: to import both engines for a classifier would take longer than all else.
    """
    import yaml  # noqa: PLC0415

    from handler import config  # noqa: PLC0415

    try:
        chosen = config.read_config(yaml.safe_load(path.read_bytes())).handler
    except ValueError as error:
        problems.append(f"{path.name}: {error}")
        return None, ()
    task, unused = chosen.task, config.unused(chosen)
    if not config.is_own(task):
        return None, unused
    module, _, name = task.partition(":")
    try:
        kind = getattr(importlib.import_module(module), name)
        if not callable(getattr(kind, "run", None)):
            problems.append(f"{task}: has no method run(texts)")
    except Exception as error:
        problems.append(f"{task}: {type(error).__name__}: {error}")
    return module, unused


def _prove(path: Path, problems: list[str]) -> None:
    """Loads the model as a worker does, which holds its answers against the golden ones; on the CPU."""
    import yaml  # noqa: PLC0415

    from handler import errors, wings  # noqa: PLC0415

    document = {**yaml.safe_load(path.read_bytes()), "deviceType": "cpu"}
    try:
        wings.load(path.parent, document, "golden")
    except errors.LoadError as error:
        problems.append(str(error))


def _check_places(root: Path, own: str | None, problems: list[str]) -> None:
    """The handler came from the archive, and nothing else did: its path precedes every library's."""
    ours = {"handler", "transformer_handler", own}
    for name, module in sorted(sys.modules.items()):
        place = getattr(module, "__file__", None)
        inside = place is not None and Path(place).is_relative_to(root)
        top = name.split(".")[0]
        if top in ours and place is not None and not inside:
            problems.append(f"{name}: was imported from {place}, not from the archive")
        elif inside and name == top and top not in ours:
            problems.append(f"{Path(str(place)).relative_to(root)}: hides the module {name} that a worker needs")
    for entry in sorted(root.iterdir()):
        module_like = entry.suffix == ".py" or (entry / "__init__.py").exists()
        if module_like and entry.stem in sys.stdlib_module_names:
            problems.append(f"{entry.name}: hides Python's own module {entry.stem}")


def compare(root: Path, order: dict[str, Any]) -> list[str]:
    """Whether the finished archive holds what was loaded, and the rest of what was ordered."""
    sizes: dict[str, int] = order["sizes"]  # of every member but SHA256SUMS
    problems = []
    seen = set()
    for name, size, content in members(Path(order["archive"])):
        seen.add(name)
        loaded = root / name
        if name != SUMS and size != sizes.get(name):
            problems.append(f"{name}: has {size} bytes in the archive, {sizes.get(name)} were packed")
        elif content is not None and loaded.is_file() and content != loaded.read_bytes():
            problems.append(f"{name}: is not in the archive as it was packed")
    return problems + [f"{name}: is not in the archive" for name in sorted({*sizes, SUMS} - seen)]


def members(archive: Path) -> Iterator[tuple[str, int, bytes | None]]:
    """Name, size and, outside of model/, content of every file, as TorchServe would unpack it."""
    if archive.is_dir():
        for place, _, files in os.walk(archive, followlinks=True):
            for path in (Path(place, file) for file in files):
                name = path.relative_to(archive).as_posix()
                yield name, path.stat().st_size, None if name.startswith("model/") else path.read_bytes()
    elif zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                name = info.filename
                yield name, info.file_size, None if name.startswith("model/") else zipped.read(info)
    else:
        with tarfile.open(archive, "r|gz") as tar:
            for entry in tar:
                name = entry.name.split("/", 1)[1]  # ZipUtils.java:124
                content = None if name.startswith("model/") else tar.extractfile(entry)
                yield name, entry.size, content.read() if content else None


def main() -> None:
    """Step 1, then step 2."""
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the handler's imports print is not the report
    sys.dont_write_bytecode = True
    root = Path(sys.argv[1]).resolve()
    os.chdir(root)  # a worker's own
    notes: list[str] = []
    try:
        problems, notes = load(root)
    except BaseException as error:
        traceback.print_exc()
        problems = [f"{type(error).__name__}: {error}"]
    line = sys.stdin.readline()
    if line and not problems:
        problems = compare(root, json.loads(line))
    json.dump({"problems": problems, "notes": notes}, report)
    report.flush()
    os._exit(0)  # half a second of torch taking itself apart would be of no use


if __name__ == "__main__":
    main()
