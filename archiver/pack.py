"""Writes members into a zip, a tar or a directory: the same members give the same bytes.

Every byte is read once. Nothing of the machine gets in: no clock, no owner, no mode, no order of a directory.
Compression is the one exception: `default` and `tgz` are the same wherever zlib is the same.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, BinaryIO

from archiver.errors import Refused
from archiver.layout import Member
from archiver.manifest import SUMS, write_sums
from archiver.snapshot import Snapshot

BLOCK = 4 << 20  # bytes
LEVEL = 6  # of a tgz's deflate; zipfile's own default too
SUFFIXES = {"zip-store": ".mar", "default": ".mar", "tgz": ".tar.gz", "no-archive": ""}  # upstream's

Progress = Callable[[int], None]  # is told how many bytes were read


class Content:
    """A member's bytes, hashed and counted on their way."""

    def __init__(self, member: Member, file: IO[bytes], progress: Progress) -> None:
        self._member = member
        self._file = file
        self._progress = progress
        self._digest = hashlib.sha256()
        self._count = 0

    def read(self, size: int = -1) -> bytes:
        """The next bytes; none at the planned end, even if the file goes on growing."""
        left = self._member.size - self._count
        block = self._file.read(left if size < 0 else min(size, left))
        self._digest.update(block)
        self._count += len(block)
        self._progress(len(block))
        return block

    def finish(self) -> str:
        """The digest.

        Raises:
            Refused: the file is not as long as it was when the archive was planned.
        """
        if self._count != self._member.size or self._file.read(1):
            raise Refused(f"{self._member.source!s}: changed while it was read")
        return self._digest.hexdigest()


Put = Callable[[Member, Content], None]  # writes one member, and reads its content to the end


def write_zip(file: BinaryIO, members: Iterable[Member], when: int, progress: Progress, *, deflate: bool) -> None:
    """A .mar. The file must be seekable: Java refuses a stored entry whose sizes come after it."""
    kind = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", kind) as archive:

        def put(member: Member, content: Content) -> None:
            info = zipfile.ZipInfo(member.name, time.gmtime(when)[:6])
            info.compress_type = kind
            info.create_system = 3  # Unix, whatever this machine is
            info.external_attr = 0o100644 << 16
            info.file_size = member.size  # decides on ZIP64, which the local header must then say
            with archive.open(info, "w") as entry:
                shutil.copyfileobj(content, entry, BLOCK)

        _write(members, put, progress)


def write_tar(file: BinaryIO, name: str, members: Iterable[Member], when: int, progress: Progress) -> None:
    """A .tar.gz, all under `name`, because TorchServe cuts paths at the first slash (ZipUtils.java:124)."""
    with (
        gzip.GzipFile("", "wb", LEVEL, file, mtime=when) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):

        def put(member: Member, content: Content) -> None:
            info = tarfile.TarInfo(f"{name}/{member.name}")
            info.size = member.size
            info.mtime = when
            info.mode = 0o644
            try:
                archive.addfile(info, content)
            except OSError as error:
                if error.errno is None:  # tarfile's own: the content ended early
                    raise Refused(f"{member.source!s}: changed while it was read") from error
                raise

        _write(members, put, progress)


def write_directory(
    folder: Path, snapshot: Snapshot, members: Iterable[Member], when: int, progress: Progress
) -> None:
    """A directory whose model/ links to the weights; they are read, for their digests, and not copied."""
    whole = snapshot.is_root  # or a link to the directory itself would bring in what was left out
    if whole:
        os.symlink(snapshot.root, folder / "model")

    def put(member: Member, content: Content) -> None:
        path = folder / member.name
        if member.name.startswith("model/"):
            while content.read(BLOCK):
                pass
            if not whole:
                path.parent.mkdir(parents=True, exist_ok=True)
                os.symlink(str(member.source), path)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            shutil.copyfileobj(content, file, BLOCK)
        path.chmod(0o644)
        os.utime(path, (when, when))

    _write(members, put, progress)
    for place, _, _ in os.walk(folder):
        os.chmod(place, 0o755)


def _write(members: Iterable[Member], put: Put, progress: Progress) -> None:
    digests = {}
    for member in members:
        digests[member.name] = _put(member, put, progress)
    sums = write_sums(digests)
    _put(Member(SUMS, sums, len(sums)), put, progress)


def _put(member: Member, put: Put, progress: Progress) -> str:
    source = member.source
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        content = Content(member, file, progress)
        put(member, content)
        return content.finish()
