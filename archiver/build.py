"""From a recipe to an archive in its place, or to nothing at all.

Written beside the target under a hidden name, opened by a worker, and renamed: whoever looks sees the old
archive or the new one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from archiver import fitting, golden, layout, pack, snapshot
from archiver.errors import Refused
from archiver.layout import HANDLER_ROOM, Member
from archiver.manifest import MANIFEST, clock
from archiver.opening import opening
from archiver.recipe import Recipe
from archiver.snapshot import Snapshot

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """Everything that decides an archive's bytes."""

    name: str
    archive_format: str
    snapshot: Snapshot
    members: Sequence[Member]
    when: int


def build(
    recipe: Recipe,
    export_path: Path,
    archive_format: str,
    *,
    force: bool,
    say: Say,
    progress: Callable[[int, int], None] = lambda done, total: None,
    handler_room: Path = HANDLER_ROOM,
    opened: bool = True,
) -> Path:
    """Builds one archive.

    Args:
        recipe: what to build.
        export_path: the directory that it goes to.
        archive_format: a key of pack.SUFFIXES.
        force: whether an archive that is there already is replaced.
        say: told about everything that the user should know, a line at a time.
        progress: told how many bytes of how many are read.
        handler_room: where the handler is.
        opened: whether a worker opens it before it is put in place; only tests of the packing go without.

    Raises:
        Refused: it cannot be built; what was there before is still there.
    """
    if not export_path.is_dir():
        raise Refused(f"--export-path {export_path}: there is no such directory")
    target = export_path.resolve() / (recipe.name + pack.SUFFIXES[archive_format])
    if target.is_dir() and not (archive_format == "no-archive" and (target / MANIFEST).is_file()):
        raise Refused(f"{target}: is a directory, and no archive; nothing replaces it")
    if os.path.lexists(target) and not force:
        raise Refused(f"{target}: exists already; --force replaces it")
    when = clock()
    chosen = snapshot.choose(recipe.model, recipe.tokenizer)
    if unfit := fitting.problems(recipe.config.handler, chosen):
        raise Refused(*unfit)
    members = layout.members(recipe, chosen, handler_room, when, say)
    if any(isinstance(one.source, Path) and one.source.is_relative_to(target) for one in members):
        raise Refused(f"{target}: holds files that are to be packed; it cannot be replaced by them")
    if recipe.golden:
        members = layout.by_name([*members, *golden.record(recipe, chosen, say)])
    for warning in recipe.warnings:
        say(f"warning: {warning}")
    for name, reason in chosen.left_out.items():
        say(f"left out {name}: {reason}")
    _check_room(target.parent, members, archive_format)
    plan = Plan(recipe.name, archive_format, chosen, members, when)
    with ExitStack() as stack:
        worker = stack.enter_context(opening(members)) if opened else None
        place = stack.enter_context(_beside(target, archive_format))
        _write(place, plan, progress)
        for note in worker.check(place) if worker else ():
            say(f"note: {note}")
        _put_in_place(place, target)
    return target


def _check_room(folder: Path, members: Sequence[Member], archive_format: str) -> None:
    """Says that the disk is too small before it is full; how far a file deflates nobody knows beforehand."""
    needed = sum(member.size for member in members)
    free = shutil.disk_usage(folder).free
    if archive_format == "zip-store" and free < needed:
        raise Refused(f"{folder}: has {free:,} bytes free, the archive needs {needed:,}")


@contextmanager
def _beside(target: Path, archive_format: str) -> Iterator[Path]:
    """A hidden place on the target's file system, gone afterwards unless it was renamed."""
    prefix, suffix, folder = f".{target.name}.", ".tmp", str(target.parent)
    if archive_format == "no-archive":
        place = Path(tempfile.mkdtemp(suffix, prefix, folder))
    else:
        handle, path = tempfile.mkstemp(suffix, prefix, folder)
        os.close(handle)
        place = Path(path)
    try:
        yield place
    finally:
        _remove(place)
        _remove(place.with_suffix(".old"))


def _write(place: Path, plan: Plan, progress: Callable[[int, int], None]) -> None:
    total = sum(member.size for member in plan.members)
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        progress(done, total)

    if plan.archive_format == "no-archive":
        pack.write_directory(place, plan.snapshot, plan.members, plan.when, count)
        return
    with place.open("wb") as file:
        if plan.archive_format == "tgz":
            pack.write_tar(file, plan.name, plan.members, plan.when, count)
        else:
            pack.write_zip(file, plan.members, plan.when, count, deflate=plan.archive_format == "default")
        file.flush()
        os.fsync(file.fileno())
    place.chmod(0o644)  # mkstemp's is for its owner only, and the server may be another user


def _put_in_place(place: Path, target: Path) -> None:
    """Renames; a directory cannot take another's place in one step, so the old one is moved aside first."""
    if not place.is_dir() or not os.path.lexists(target):
        os.replace(place, target)
    else:
        old = place.with_suffix(".old")
        try:
            os.rename(target, old)
            os.rename(place, target)
        except BaseException:
            if not os.path.lexists(target):
                os.rename(old, target)
            raise
    handle = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(handle)  # the rename itself is to survive a power cut
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
