"""What lies where in an archive; two files of one name in two directories stay two files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from archiver import manifest
from archiver.errors import Refused
from archiver.recipe import Recipe, extra_paths
from archiver.snapshot import PICKLES, Snapshot, file_name_problem, not_a_file

ROOT = Path(__file__).resolve().parents[1]
HANDLER_ROOM = ROOT / "handler"
GOLDEN = "golden"
PICKLE = "a pickle, which can run code, is never packed"
TAKEN = frozenset({"handler", "model", GOLDEN, "MAR-INF", manifest.HANDLER, manifest.CONFIG})


@dataclass(frozen=True)
class Member:
    """One file of an archive."""

    name: str  # its path there, with slashes
    source: Path | bytes
    size: int

    def content(self) -> bytes:
        """All of it; for small ones."""
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()


def members(
    recipe: Recipe, snapshot: Snapshot, handler_room: Path, when: int, say: Callable[[str], None]
) -> list[Member]:
    """Every file of the archive but SHA256SUMS, sorted by name; `say` is told what is left out.

    Raises:
        Refused: an extra file is not there, or would take the place of another.
    """
    config = yaml.safe_dump(recipe.config.document(), sort_keys=False).encode()
    about = manifest.manifest(recipe.name, recipe.version, recipe.extensions, when)
    found = [_text(manifest.MANIFEST, about), _text(manifest.CONFIG, config), *_handler(handler_room)]
    found += [Member(f"model/{name}", snapshot.sources[name], size) for name, size in snapshot.files.items()]
    found += _extra(recipe.extra_files, say)
    return by_name(found)


def by_name(members: Iterable[Member]) -> list[Member]:
    """In the order that they have in an archive."""
    return sorted(members, key=lambda member: member.name)


def _text(name: str, content: bytes) -> Member:
    return Member(name, content, len(content))


def _handler(room: Path) -> Iterator[Member]:
    """The handler's file at the root, where TorchServe imports it; the rest of its package beside it."""
    entry = room / manifest.HANDLER
    if not entry.is_file():
        raise Refused(f"{entry}: is missing; an archive cannot be served without it")
    yield _text(manifest.HANDLER, entry.read_bytes())
    for path in sorted(room.rglob("*.py")):
        name = path.relative_to(room)
        if path != entry and not {"tests", "__pycache__"} & set(name.parts):
            yield _text(f"handler/{name.as_posix()}", path.read_bytes())


def _extra(arguments: Iterable[str], say: Callable[[str], None]) -> list[Member]:
    """Files at the root under their own names; a directory keeps its tree, under its own name."""
    found: dict[str, Member] = {}
    problems: list[str] = []
    for path in extra_paths(arguments, problems):
        name = path.resolve().name
        if name in TAKEN:
            problems.append(f"--extra-files {path}: {name} has a meaning of its own in an archive")
        elif not path.is_dir() and path.suffix.lower() in PICKLES:
            problems.append(f"--extra-files {path}: {PICKLE}")
        else:
            inside = list(_tree(path, name, problems, say))
            if not inside and not problems:
                problems.append(f"--extra-files {path}: holds no file")
            for member in inside:
                if member.name in found and found[member.name].source != member.source:
                    problems.append(f"--extra-files {path}: there is another {member.name} already")
                found[member.name] = member
    if problems:
        raise Refused(*problems)
    return list(found.values())


def _tree(path: Path, name: str, problems: list[str], say: Callable[[str], None]) -> Iterator[Member]:
    """What is no file that every machine can unpack becomes a problem; a pickle in a directory is left out."""
    within = sorted(path.rglob("*")) if path.is_dir() else [path]
    for inner in within:
        relative = inner.relative_to(path)
        if inner.is_dir() or any(part.startswith(".") or part == "__pycache__" for part in relative.parts):
            continue
        packed = "/".join((name, *relative.parts))
        if inner.suffix.lower() in PICKLES:
            say(f"left out --extra-files {inner}: {PICKLE}")
        elif problem := not_a_file(inner) or file_name_problem(packed):
            problems.append(f"--extra-files {str(inner)!r}: {problem}")
        else:
            yield Member(packed, inner.resolve(), inner.stat().st_size)
