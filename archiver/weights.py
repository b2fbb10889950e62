"""Whether a safetensors file is what its header says, and whether an index has all its shards."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
MAX_HEADER = 100_000_000  # bytes; the format's own limit
INDEX_SUFFIX = ".safetensors.index.json"


def pointer_problem(path: Path, size: int) -> str | None:
    """Whether Git LFS has left its pointer in place of the file."""
    if size > 1024:
        return None
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            return "is a Git LFS pointer, not the file itself; run git lfs pull"
    return None


def safetensors_problem(path: Path, size: int) -> str | None:
    """Why this is not a whole safetensors file, or None. Reads the header only."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 0 < length <= min(MAX_HEADER, size - 8):
            return f"is not a whole safetensors file: {size} bytes, and its header would take {length}"
        try:
            header = json.loads(file.read(length))
            ends = [_end(name, entry) for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return "is not a safetensors file: its header cannot be read"
    promised = 8 + length + max(ends, default=0)
    if promised != size:
        state = "truncated" if promised > size else "longer than its header says"
        return f"is {state}: the header promises {promised} bytes, the file has {size}"
    return None


def _end(name: str, entry: dict[str, Any]) -> int:
    begin, end = entry["data_offsets"]
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
        raise ValueError(name)
    return end


def shard_problems(name: str, path: Path, present: Collection[str]) -> list[str]:
    """Every shard that an index names and the snapshot lacks."""
    try:
        shards = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
        wanted = [(PurePosixPath(name).parent / shard).as_posix() for shard in shards]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return [f"{name}: is not an index: expected a weight_map of tensor names to files"]
    return [f"{name}: names {shard}, which is not there" for shard in wanted if shard not in present]
