"""Inputs that are objects: `[{"question": …, "context": …}, …]`, as Hugging Face and KServe have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from handler.errors import InvalidRequest
from handler.protocols.protocol import Model
from handler.request import MOST_PROBLEMS, Call
from handler.rules import Problem, label


def gather(name: str, values: object, parameters: object, model: Model) -> Call:
    """A list of texts, or of objects with a text and what belongs to it, as one call.

    What an input may have of its own (`model.beside`) is collected; anything else that objects hold is a parameter
    of the whole request, and has to be the same in all of them.

    Raises:
        InvalidRequest: they are no list, or an object lacks its text, or two differ in a parameter.
    """
    if not isinstance(values, list):
        raise InvalidRequest(f"{name}: expected a list")
    found = dict(read_mapping("parameters", parameters))
    objects = [value for value in values if isinstance(value, dict)]
    if not objects:
        return Call(name, values, False, found)
    if len(objects) < len(values):
        raise InvalidRequest(f"{name}: expected either objects or strings, not both")
    if lacking := [i for i, value in enumerate(objects) if model.field not in value]:
        raise InvalidRequest(f"{name}[{lacking[0]}]: expected an object with {model.field}")
    names = {key: None for value in objects for key in value if key != model.field}
    for key in names:
        said = [value.get(key) for value in objects]
        if key == model.beside and len(said) > 1:
            found[key + "s"] = said
        elif _differ(said):
            raise InvalidRequest(f"{name}: expected the same {label(key)} in all of them")
        else:
            found[key] = said[0]
    return Call(name, [value[model.field] for value in objects], False, found)


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


def _differ(values: Sequence[object]) -> bool:
    try:
        return any(value != values[0] for value in values)
    except RecursionError:  # JSON may be nested more deeply than Python compares
        return True
