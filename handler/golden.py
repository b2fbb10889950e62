"""Golden answers: what the reference answered when the archive was built, held against this worker's.

`golden/` of an archive holds the requests and the answers, tensors beside them in safetensors. A worker that
answers something else has other weights, another tokenizer, or kernels that compute wrong: it is not to serve.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import orjson
import torch
from safetensors import safe_open

from handler.batch import Slot
from handler.config import HandlerConfig
from handler.errors import HandlerError, LoadError
from handler.tensors import SAFETENSORS, Tensors
from handler.wire import JSON, Message

CASES, TENSORS = "cases.json", "tensors.safetensors"
# How far a number may be off, and a vector in parts of its length.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
NEXT_TO_NOTHING = 1e-6  # a vector's length, below which parts of it mean nothing

Document: TypeAlias = Mapping[str, Any] | Tensors


def check(
    directory: Path, config: HandlerConfig, answer: Callable[[Sequence[Message]], Sequence[Slot[Document]]]
) -> int:
    """Holds every golden answer of an archive against the worker's own.

    Args:
        directory: the archive's `golden/`.
        config: the `handler:` section.
        answer: answers requests as the worker will, all in one batch.

    Returns:
        how many there are.

    Raises:
        LoadError: an answer is another; it names the first place where.
    """
    if not (directory / CASES).is_file():
        return 0
    cases = json.loads((directory / CASES).read_text())["cases"]
    tensors = _tensors(directory / TENSORS)
    tolerance = config.golden_tolerance or TOLERANCE[config.dtype]
    # Tensors are held against tensors: as JSON they might be refused for their size.
    answers = answer([Message(orjson.dumps(case["request"]), JSON, accept=SAFETENSORS) for case in cases])
    wrong = []
    for index, (case, found) in enumerate(zip(cases, answers, strict=True)):
        if isinstance(found, HandlerError):
            wrong.append(f"golden answer {index + 1}: {found.status}: {found}")
            continue
        wanted = {name: parts for (number, name), parts in tensors.items() if number == index}
        problem = next(_differences(case["answer"], wanted, found, tolerance), None)
        wrong += [f"golden answer {index + 1}: {problem}"] if problem else []
    if wrong:
        raise LoadError(f"{len(wrong)} of {len(cases)} golden answers do not hold: {wrong[0]}")
    return len(cases)


def _tensors(path: Path) -> dict[tuple[int, str], list[torch.Tensor]]:
    """(request, name) -> a tensor for each of its inputs."""
    found: dict[tuple[int, str], list[torch.Tensor]] = {}
    if path.is_file():
        with safe_open(path, "pt") as opened:
            for key in sorted(opened.keys(), key=lambda key: int(key.rpartition("/")[2])):
                index, name, _ = key.split("/")
                found.setdefault((int(index), name), []).append(opened.get_tensor(key))
    return found


def _differences(
    wanted: Any, tensors: Mapping[str, Sequence[torch.Tensor]], found: Document, tolerance: float
) -> Iterator[str]:
    """Where an answer is another; what it holds beyond the golden one, such as times, is not looked at."""
    if isinstance(found, Tensors):
        for name, parts in tensors.items():
            yield from _tensor_differences(name, parts, found.tensors.get(name, ()), tolerance)
        found = found.document
    elif tensors:
        yield f"{', '.join(tensors)}: expected tensors"
    plain = orjson.loads(orjson.dumps(found, option=orjson.OPT_SERIALIZE_NUMPY))
    yield from _plain_differences("", wanted, plain, tolerance)


def _tensor_differences(
    name: str, wanted: Sequence[torch.Tensor], found: Sequence[torch.Tensor], tolerance: float
) -> Iterator[str]:
    if [part.shape for part in wanted] != [part.shape for part in found]:
        yield f"{name}: other shapes"
        return
    for part, (one, other) in enumerate(zip(wanted, found, strict=True)):
        if not one.is_floating_point():
            if not torch.equal(one, other):
                yield f"{name}[{part}]: other numbers"
            continue
        yield from _vector_differences(f"{name}[{part}]", one.float(), other.float(), tolerance)


def _vector_differences(place: str, wanted: torch.Tensor, found: torch.Tensor, tolerance: float) -> Iterator[str]:
    """Vectors of the last dimension, by the largest distance between two in parts of the wanted one's length."""
    lengths = wanted.norm(dim=-1).clamp_min(NEXT_TO_NOTHING)
    off = float(((found - wanted).norm(dim=-1) / lengths).max())
    if not off <= tolerance:
        yield f"{place}: off by {off:.1e} of its length, at most {tolerance:g} is allowed"


def _plain_differences(place: str, wanted: Any, found: Any, tolerance: float) -> Iterator[str]:
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        for name, value in wanted.items():
            where = f"{place}.{name}" if place else name
            if name in found:
                yield from _plain_differences(where, value, found[name], tolerance)
            else:
                yield f"{where}: is missing"
    elif isinstance(wanted, list) and isinstance(found, list):
        yield from _list_differences(place, wanted, found, tolerance)
    elif isinstance(wanted, float) and isinstance(found, (int, float)):
        if not math.isclose(wanted, found, rel_tol=tolerance, abs_tol=tolerance):
            yield f"{place}: {found:g}, {wanted:g} is golden"
    elif wanted != found:
        yield f"{place}: is another"


def _list_differences(place: str, wanted: list[Any], found: list[Any], tolerance: float) -> Iterator[str]:
    if len(wanted) != len(found):
        yield f"{place}: {len(found)} entries, {len(wanted)} are golden"
    elif _is_vector(wanted) and _is_vector(found):
        one, other = (torch.tensor(values, dtype=torch.float64) for values in (wanted, found))
        yield from _vector_differences(place, one, other, tolerance)
    else:
        for index, pair in enumerate(zip(wanted, found, strict=True)):
            yield from _plain_differences(f"{place}[{index}]", *pair, tolerance)


def _is_vector(values: Sequence[Any]) -> bool:
    return any(isinstance(value, float) for value in values) and all(
        isinstance(value, (int, float)) for value in values
    )
