"""One request, the status that it gets, and what its answer holds; the same files drive `ts.service` and HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.support import answers, frames

DIRECTORY = Path(__file__).parent.parent / "scenarios"

# The limits that the scenarios are written for; the tiny models read 64 tokens.
LIMITS = {"max_items": 32, "max_text_bytes": 20_000, "max_body_bytes": 100_000}

# Task -> its scenario files.
FILES = {
    "text-classification": ("text-classification", "bad-input"),
    "feature-extraction": ("feature-extraction", "bad-input"),
    "text-ranking": ("text-ranking",),
    "zero-shot-classification": ("zero-shot-classification",),
    "token-classification": ("token-classification", "bad-input"),
    "question-answering": ("question-answering",),  # bad-input is about {"text": …}
    "fill-mask": ("fill-mask", "bad-input"),
}
TASKS = tuple(FILES)


@dataclass(frozen=True)
class Scenario:
    name: str
    status: int
    body: bytes
    content_type: str
    headers: Mapping[str, str]
    form: Mapping[str, str] | None
    texts: tuple[str, ...]  # whose reference answers the body holds
    parameters: Mapping[str, Any] = field(compare=False, hash=False)  # of the reference
    keys: tuple[str, ...]
    says: tuple[str, ...]
    raw: Mapping[str, Any] = field(compare=False, hash=False, repr=False)  # what else its task's check reads

    def __str__(self) -> str:
        return self.name.replace(" ", "-")

    def fields(self) -> Mapping[str, Any]:
        """What is asked, for references that need more than texts."""
        return json.loads(self.body) if self.form is None else self.form

    def frame(self) -> frames.Request:
        """As TorchServe's frontend would hand it to a worker."""
        if self.form is not None:
            return frames.form({name: value.encode() for name, value in self.form.items()})
        return frames.post(self.body, self.content_type, **self.headers)

    def http(self) -> tuple[bytes, dict[str, str]]:
        """Body and headers."""
        if self.form is not None:
            return urlencode(self.form).encode(), {"content-type": "application/x-www-form-urlencoded"}
        typed = {"content-type": self.content_type} if self.content_type else {}
        return self.body, {**typed, **self.headers}


@cache
def load(*names: str) -> tuple[Scenario, ...]:
    return tuple(_scenario(raw) for name in names for raw in json.loads((DIRECTORY / f"{name}.json").read_text()))


def of(task: str) -> tuple[Scenario, ...]:
    """All of a task's scenarios."""
    return load(*FILES[task])


def check_answer(
    task: str, scenario: Scenario, status: int, content_type: str, body: bytes, *, reference: Any
) -> None:
    """Holds an answer against the scenario, and what it holds against the task's reference."""
    assert status == scenario.status, body[:300]
    assert content_type == "application/json"
    document = json.loads(body, parse_constant=_no_constant)
    if status >= 400:
        _check_error(scenario, status, document, body)
        return
    if scenario.keys:
        assert set(document) == set(scenario.keys)
    answers.CHECKS[task](scenario, document, reference)


def _check_error(scenario: Scenario, status: int, document: Mapping[str, Any], body: bytes) -> None:
    assert set(document) == {"error"} and set(document["error"]) == {"code", "type", "message"}
    assert document["error"]["code"] == status
    assert len(body) < 1000
    assert "secret" not in body.decode()
    for words in scenario.says:
        assert words in document["error"]["message"]


def _scenario(raw: dict[str, Any]) -> Scenario:
    if "hex" in raw:
        body = bytes.fromhex(raw["hex"])
    elif "json" in raw:
        body = json.dumps(_expand(raw["json"])).encode()
    else:
        body = _expand(raw.get("body", raw.get("form_body", ""))).encode()
    # A form without fields arrives without parameters, as curl -d '{"text": …}' does.
    form = {raw["form_body"].partition("=")[0]: "b"} if "form_body" in raw else raw.get("form")
    return Scenario(
        name=raw["name"],
        status=raw["status"],
        body=body,
        content_type=raw.get("content_type", "application/json"),
        headers=raw.get("headers", {}),
        form=form,
        texts=tuple(_expand(raw.get("texts", []))),
        parameters=raw.get("parameters", {}),
        keys=tuple(raw.get("keys", ())),
        says=tuple(raw.get("says", ())),
        raw=raw,
    )


def _expand(value: Any) -> Any:
    """What the files abbreviate.

    `{"$repeat": ["a ", 3]}` is "a a a ", with `"then": "b"` beside it "a a a b"; `{"$times": ["a", 3]}` is a list,
    and `"$many": 3` three more keys.
    """
    if isinstance(value, list):
        return [_expand(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$repeat" in value:
        return value["$repeat"][0] * value["$repeat"][1] + value.get("then", "")
    if "$times" in value:
        return [value["$times"][0]] * value["$times"][1]
    return dict(_entries(value))


def _entries(value: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if name == "$many":
            yield from ((f"unknown_{index}", index) for index in range(item))
        else:
            yield name, _expand(item)


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")
