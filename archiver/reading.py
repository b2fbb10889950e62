"""What is in an archive, in whichever of its forms; read as TorchServe reads it."""

from __future__ import annotations

import gzip
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from archiver.errors import Refused

DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    struct.error,
    RuntimeError,
)
LOCAL_HEADER = struct.Struct("<4s5H3L2H")
STREAMED = 0x08  # the flag for sizes that come after the content
ESCAPED = 0xFFFFFFFF  # a size that the ZIP64 field holds


@contextmanager
def read(path: Path) -> Iterator[tuple[str, Iterator[tuple[str, int, IO[bytes]]]]]:
    """The archive's format, and its files one after another: name, bytes, content.

    A content is to be read before the next file is asked for.

    Raises:
        Refused: it is not an archive.
        zipfile.BadZipFile and the rest of DAMAGE: it is one, damaged.
    """
    if path.is_dir():
        yield "no-archive", _directory(path)
    elif not path.is_file():
        raise Refused(f"{path}: there is no such file")
    elif _starts(path, b"PK"):
        with zipfile.ZipFile(path) as archive:
            stored = all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
            yield "zip-store" if stored else "default", _zip(archive, path)
    elif _starts(path, b"\x1f\x8b"):
        # Not "r|gz", which never looks at gzip's checksum.
        with gzip.open(path) as unzipped, tarfile.open(fileobj=unzipped, mode="r|") as tar:
            yield "tgz", _tar(tar, unzipped)
    else:
        raise Refused(f"{path}: is neither a .mar, a .tar.gz nor a directory")


def _starts(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _directory(root: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    for place, folders, files in os.walk(root, followlinks=True):
        folders.sort()
        for path in (Path(place, file) for file in sorted(files)):
            with path.open("rb") as file:
                yield path.relative_to(root).as_posix(), path.stat().st_size, file


def _zip(archive: zipfile.ZipFile, path: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Java reads a zip from its front and never sees the directory at its end, so both must tell the same."""
    position = 0
    with path.open("rb") as raw:
        for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
            if info.header_offset != position:
                raise zipfile.BadZipFile(f"{info.filename}: lies at {info.header_offset}, expected {position}")
            position = _content_offset(raw, info) + info.compress_size
            if not info.is_dir():
                with archive.open(info) as content:
                    yield info.filename, info.file_size, content
    if position != archive.start_dir:
        raise zipfile.BadZipFile("there are bytes between the last file and the directory")


def _content_offset(raw: IO[bytes], info: zipfile.ZipInfo) -> int:
    raw.seek(info.header_offset)
    fields = LOCAL_HEADER.unpack(raw.read(LOCAL_HEADER.size))
    _, _, flags, method, _, _, crc, packed, size, name_length, extra_length = fields
    name = raw.read(name_length).decode("utf-8", "replace")
    extra = raw.read(extra_length)
    if flags & STREAMED:
        if method == zipfile.ZIP_STORED:
            raise zipfile.BadZipFile(f"{info.filename}: is stored with its size after it, which Java refuses")
        raise Refused("its files were written to a stream; only archives with sizes up front are verified")
    if packed == ESCAPED and size == ESCAPED and extra[:4] == b"\x01\x00\x10\x00":
        size, packed = struct.unpack("<2Q", extra[4:20])
    told = (name, flags, method, crc, packed, size)
    if told != (
        info.filename,
        info.flag_bits,
        info.compress_type,
        info.CRC,
        info.compress_size,
        info.file_size,
    ):
        raise zipfile.BadZipFile(f"{info.filename}: its two headers differ")
    return raw.tell()


def _tar(archive: tarfile.TarFile, unzipped: gzip.GzipFile) -> Iterator[tuple[str, int, IO[bytes]]]:
    for entry in archive:
        content = archive.extractfile(entry)
        if content is not None:
            yield entry.name.partition("/")[2], entry.size, content  # cut as ZipUtils.java:124 cuts it
    while unzipped.read(1 << 20):  # to the very end, where the checksum is
        pass
