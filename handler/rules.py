"""What a value must be, said once: for the keys of a configuration and for the fields of a request.

A frozen dataclass is the schema. Each of its fields is made by `key`, which binds the rule, the default and a
sentence of help; `check` holds a document against it and reports everything that is wrong at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

REQUIRED = dataclasses.MISSING


@dataclass(frozen=True)
class Rule:
    """A kind of value: how it is called, and whether a value is one."""

    expected: str
    accepts: Callable[[Any], bool]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a document."""

    key: str
    reason: str  # never quotes a value: it is also shown to clients
    value: str | None = None  # the value as it was written, for configurations only

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}" if self.value is None else f"{self.key}: {self.value}: {self.reason}"


def key(rule: Rule, help: str, default: Any = REQUIRED, tasks: Iterable[str] = ()) -> Any:
    """A dataclass field with its rule; `tasks` names those it is for, where it is not for all."""
    return dataclasses.field(default=default, metadata={"rule": rule, "help": help, "tasks": frozenset(tasks)})


def integer(low: int, high: int | None = None) -> Rule:
    """A whole number in [low, high]. True is not one."""
    expected = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
    return Rule(expected, lambda v: type(v) is int and v >= low and (high is None or v <= high))


def number(low: float, high: float) -> Rule:
    """A finite number in [low, high]."""
    return Rule(
        f"a number from {low:g} to {high:g}",
        lambda v: type(v) in (int, float) and math.isfinite(v) and low <= v <= high,
    )


def one_of(*names: str) -> Rule:
    """One of these words."""
    return Rule("one of " + ", ".join(names), lambda v: isinstance(v, str) and v in names)


def strings(low: int, high: int = 1000) -> Rule:
    """A list of so many strings of valid Unicode."""
    expected = f"a list of {low} to {high} strings"
    return Rule(expected, lambda v: isinstance(v, list) and low <= len(v) <= high and all(map(_is_text, v)))


def optional(rule: Rule) -> Rule:
    """The rule, or null."""
    return Rule(f"{rule.expected}, or null", lambda v: v is None or rule.accepts(v))


BOOLEAN = Rule("true or false", lambda v: isinstance(v, bool))
TEXT = Rule("a string", lambda v: isinstance(v, str))


def check(
    document: Mapping[Any, Any],
    schema: type[Any],
    prefix: str = "",
    *,
    quote: bool,
    task: str | None = None,
    most: int | None = None,
) -> list[Problem]:
    """Everything that is wrong with a document.

    Args:
        document: the keys as they were read.
        schema: a dataclass whose fields were made by `key`.
        prefix: what stands before each key in a message, such as "handler.".
        quote: whether messages may show values (a configuration's, never a client's).
        task: where given, keys that are for other tasks only are refused.
        most: where given, so many problems are enough: a body of 1 MB has room for 100,000 wrong keys.
    """
    fields = {field.name: field for field in dataclasses.fields(schema)}
    problems = []
    for name, value in document.items():
        field = fields.get(name) if isinstance(name, str) else None
        shown = _quote(value) if quote else None
        if field is None:
            problems.append(Problem(prefix + label(name), _unknown(name, fields), shown))
        elif task is not None and field.metadata["tasks"] and task not in field.metadata["tasks"]:
            only = ", ".join(sorted(field.metadata["tasks"]))
            problems.append(Problem(prefix + name, f"is for {only} only, not for {task}", shown))
        elif not field.metadata["rule"].accepts(value):
            problems.append(Problem(prefix + name, f"expected {field.metadata['rule'].expected}", shown))
        if len(problems) == most:
            return problems
    for name, field in fields.items():
        if field.default is REQUIRED and name not in document:
            problems.append(Problem(prefix + name, f"is missing; expected {field.metadata['rule'].expected}"))
    return problems


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like this one, if any is."""
    lowered = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    return lowered[close[0]] if close else None


def label(name: object) -> str:
    """A key as a message may show it: short, printable, on one line."""
    text = name if isinstance(name, str) else repr(name)
    text = "".join(char if char.isprintable() and char.isascii() else "?" for char in text[:41])
    return text if len(text) <= 40 else text[:40] + "..."


def _is_text(value: object) -> bool:
    """A string that is valid Unicode: no tokenizer takes a lone surrogate."""
    return isinstance(value, str) and value == value.encode(errors="ignore").decode()


def _unknown(name: object, known: Iterable[str]) -> str:
    close = nearest(name, known) if isinstance(name, str) and len(name) <= 80 else None
    return "unknown key" + (f"; did you mean {close}?" if close else "")


def _quote(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
