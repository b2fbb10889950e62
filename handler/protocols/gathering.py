"""Inputs that are objects: `[{"question": …, "context": …}, …]`, as Hugging Face and KServe have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from handler.errors import InvalidRequest, TooLarge
from handler.protocols.protocol import Model
from handler.request import MOST_PROBLEMS, Call
from handler.rules import Problem, label


def gather(name: str, values: object, parameters: object, model: Model) -> Call:
    """A list of texts, or of objects with a text and what belongs to it, as one call.

    What an input may have of its own (`model.beside`) is collected; anything else that objects hold is a parameter
    of the whole request, and has to be the same in all of them.

    Raises:
        InvalidRequest: they are no list, or an object lacks its text, or two differ in a parameter, or one is also
            among `parameters`.
        TooLarge: more objects than a request may hold.
    """
    if not isinstance(values, list):
        raise InvalidRequest(f"{name}: expected a list")
    found = dict(read_mapping("parameters", parameters))
    objects = [value for value in values if isinstance(value, dict)]
    if not objects:
        return Call(name, values, False, found)
    if len(values) > model.max_items:  # before their keys are looked at, of which a body may hold very many
        raise TooLarge(f"{name}: {len(values)} items; the limit is {model.max_items}")
    if len(objects) < len(values):
        raise InvalidRequest(f"{name}: expected either objects or strings, not both")
    if lacking := [i for i, value in enumerate(objects) if model.field not in value]:
        raise InvalidRequest(f"{name}[{lacking[0]}]: expected an object with {model.field}")
    beside = model.beside if len(objects) > 1 else ""
    own = {model.field, beside or model.field}
    said = dict(_shared(name, [{key: one[key] for key in one if key not in own} for one in objects]))
    if beside and any(beside in one for one in objects):
        said[beside + "s"] = [one.get(beside) for one in objects]
    if both := said.keys() & found.keys():
        raise InvalidRequest(f"parameters: {label(min(both))} is also in {name}")
    return Call(name, [value[model.field] for value in objects], False, {**found, **said})


def read_mapping(name: str, value: object) -> Mapping[str, Any]:
    """An object, or nothing. Raises InvalidRequest."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"{name}: expected an object")
    return value


def check_keys(document: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raises InvalidRequest, which names the first few keys that the protocol does not have."""
    wrong = [str(Problem(label(key), "unknown key")) for key in document if key not in known]
    if wrong:
        raise InvalidRequest(f"{'; '.join(wrong[:MOST_PROBLEMS])}; expected {', '.join(known)}")


def _shared(name: str, each: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """What all of them hold. Each is held against the first, which takes no longer than reading them did."""
    first = each[0]
    for other in each[1:]:
        if _differ(first, other):
            keys = (key for key in {**first, **other} if key not in first or key not in other)
            unlike = (key for key in first.keys() & other.keys() if _differ(first[key], other[key]))
            key = next(chain(keys, unlike), "parameters")
            raise InvalidRequest(f"{name}: expected the same {label(key)} in all of them")
    return first


def _differ(one: object, other: object) -> bool:
    try:
        return one != other
    except RecursionError:  # JSON may be nested more deeply than Python compares
        return True
