"""Answers for equal texts remembered across batches: the least recently used are forgotten beyond so many bytes.

What is remembered are a task's outputs, from before any request's own parameters. An entry is found by a digest of
model and item, so that no text is kept for it. For a worker's main thread only: nothing here is locked.
"""

from __future__ import annotations

import marshal
import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Encoding

from handler.batch import Slot
from handler.config import HandlerConfig
from handler.errors import HandlerError
from handler.measures import Measures
from handler.request import TextItem

Outputs: TypeAlias = tuple[Any, ...]  # of one item: one for each of its rows

# What does not tell its own size, rounded up from what was measured: an entry's key, pair and links took 190 to
# 315 bytes; a tokenizers.Encoding 84 a token, and with 12 tokens 1900.
ENTRY_BYTES = 320
ENCODING_BYTES = 1024
TOKEN_BYTES = 128


class Unfit(Exception):
    """An output that is not remembered: it is not finite, or nobody knows how large it is."""


class Memory:
    """The outputs of the items that were asked for last.

    Args:
        budget: the most bytes that all entries may take together; with 0 nothing is remembered.
        model: the digest of what computes the outputs, at most 64 bytes.
    """

    def __init__(self, budget: int, model: bytes) -> None:
        self.budget = budget
        self.size = 0  # bytes
        self._model = model
        self._entries: OrderedDict[bytes, tuple[Outputs, int]] = OrderedDict()

    def complete(
        self,
        items: Sequence[TextItem],
        compute: Callable[[Sequence[TextItem]], Sequence[Slot[Outputs]]],
        measures: Measures,
    ) -> Sequence[Slot[Outputs]]:
        """The outputs of different items: those that are remembered, and the rest, computed in one call."""
        if not self.budget:
            return compute(items)
        known: dict[TextItem, Slot[Outputs]] = {
            item: outputs for item in items if (outputs := self.get(item)) is not None
        }
        measures.hits = len(known)
        missing = [item for item in items if item not in known]
        for item, slot in zip(missing, compute(missing) if missing else (), strict=True):
            known[item] = slot
            if not isinstance(slot, HandlerError):
                self.put(item, slot)
        measures.misses, measures.cache_bytes = len(missing), self.size
        return [known[item] for item in items]

    def get(self, item: TextItem) -> Outputs | None:
        """The item's outputs, if they are remembered. They are shared, and their arrays read-only."""
        key = self._key(item)
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, item: TextItem, outputs: Outputs) -> None:
        """Remembers a copy of an item's outputs, unless they are unfit or too large."""
        try:
            copy, size = _kept(outputs)
        except Unfit:
            return
        size += ENTRY_BYTES
        if size > self.budget:
            return
        key = self._key(item)
        self._forget(self._entries.pop(key, None))
        while self.size + size > self.budget:
            self._forget(self._entries.popitem(last=False)[1])
        self._entries[key] = copy, size
        self.size += size

    def _forget(self, entry: tuple[Outputs, int] | None) -> None:
        self.size -= entry[1] if entry else 0

    def _key(self, item: TextItem) -> bytes:
        # marshal writes each value with its type and its length; it refuses what is no plain value.
        values = (getattr(item, field.name) for field in fields(item))
        content = marshal.dumps((type(item).__qualname__, *values), 0)
        return blake2b(content, digest_size=16, key=self._model).digest()


def fingerprint(directory: Path, config: HandlerConfig) -> bytes:
    """A digest of what decides a model's answers: the archive's files and the `handler:` section.

    The archiver wrote the files' digests down; where it did not, their names, sizes and times stand for them.

    Args:
        directory: the archive's `model/`.
        config: the section.
    """
    sums = directory.parent / "MAR-INF" / "SHA256SUMS"
    files: object
    if sums.is_file():
        files = sums.read_bytes()
    else:
        found = [(path, path.stat()) for path in sorted(directory.rglob("*")) if path.is_file()]
        files = [(str(path.relative_to(directory)), stat.st_size, stat.st_mtime_ns) for path, stat in found]
    return blake2b(repr((files, config)).encode("utf-8", "surrogateescape"), digest_size=32).digest()


def _kept(value: Any) -> tuple[Any, int]:
    """A copy of an output, or of a part of one, and its bytes. Raises Unfit."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return _kept_array(value)
    if type(value) in (tuple, list):
        parts = [_kept(part) for part in value]
        copy = type(value)(part for part, _ in parts)
        return copy, sys.getsizeof(copy) + sum(size for _, size in parts)
    if type(value) is dict:
        return _kept_mapping(value)
    if is_dataclass(value) and not isinstance(value, type):
        named = {field.name: _kept(getattr(value, field.name)) for field in fields(value)}
        changed = replace(value, **{name: part for name, (part, _) in named.items()})
        own = sys.getsizeof(changed) + sys.getsizeof(vars(changed))
        return changed, own + sum(size for _, size in named.values())
    if isinstance(value, Encoding):
        return value, _encoding_bytes(value)
    plain = value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))
    if plain or (isinstance(value, (np.number, np.bool_)) and np.isfinite(value)):
        return value, sys.getsizeof(value)
    raise Unfit(type(value).__name__)


def _kept_mapping(mapping: dict[Any, Any]) -> tuple[dict[Any, Any], int]:
    pairs = [(_kept(name), _kept(part)) for name, part in mapping.items()]
    copy = {name: part for (name, _), (part, _) in pairs}
    return copy, sys.getsizeof(copy) + sum(size for pair in pairs for _, size in pair)


def _kept_array(array: npt.NDArray[Any] | torch.Tensor) -> tuple[npt.NDArray[Any] | torch.Tensor, int]:
    """A copy, because a row keeps its whole micro-batch's array alive; nobody may write to it."""
    if isinstance(array, torch.Tensor):
        if not torch.isfinite(array).all():
            raise Unfit(str(array.dtype))
        return array.clone(), array.nbytes + ENTRY_BYTES
    if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise Unfit(str(array.dtype))
    copy = np.array(array)
    copy.flags.writeable = False
    return copy, sys.getsizeof(copy)


def _encoding_bytes(encoding: Encoding) -> int:
    """With the parts that were cut off, which it holds as well."""
    return ENCODING_BYTES + TOKEN_BYTES * len(encoding) + sum(map(_encoding_bytes, encoding.overflowing))
