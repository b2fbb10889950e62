"""Calls of tools that a client wants (`tool_choice`): an answer that is kept to JSON, and read as calls.

Its form is vLLM's: the arguments of a function that is named; where any are required, a list with a name and
parameters each. So a model needs no form of its own for calls, only a template that shows it the tools.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from handler.generation.tool_calls import text_of

NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
MOST_FUNCTIONS = 128  # OpenAI's limit of tools; to follow a choice of a thousand takes half a second to begin with
SEPARATOR = ", "
READ = json.JSONDecoder().raw_decode


@dataclass(frozen=True)
class Choice:
    """What an answer has to call."""

    functions: Mapping[str, Any]  # the schemas of their parameters, by name
    named: bool  # so that there is one function, called once
    alone: bool  # whether it is to be one call

    def grammar(self, arguments: Mapping[str, str]) -> str:
        """In llguidance's notation.

        Args:
            arguments: each function's, in the same.
        """
        if self.named:
            [one] = arguments.values()
            return f"start: {one}"
        calls = [
            f'{json.dumps(_opening(name), ensure_ascii=False)} {parameters} "}}"'
            for name, parameters in arguments.items()
        ]
        more = "" if self.alone else f' ("{SEPARATOR}" call)*'
        return f'start: "[" call{more} "]"\ncall: {" | ".join(calls)}'

    def calls(self, said: str) -> tuple[list[dict[str, Any]], str]:
        """What an answer calls, as the application wants it; and what is no whole call, where it was cut off."""
        if self.named:
            found, rest = _values(said)
            return [{"name": name, "arguments": written} for name in self.functions for _, written in found], rest
        found, rest = _values(said.removeprefix("["))
        return [{"name": call["name"], "arguments": call["parameters"]} for call, _ in found], rest


def _opening(name: str) -> str:
    return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "parameters": '


def _values(text: str) -> tuple[list[tuple[Any, str]], str]:
    """Values of JSON with commas between them, as read and as written; and what is no whole one."""
    found: list[tuple[Any, str]] = []
    at = 0
    while at < len(text):
        try:
            value, end = READ(text, at)
        except (ValueError, RecursionError):
            return found, text[at:]
        found.append((value, text[at:end]))
        if not text.startswith(SEPARATOR, end):  # its end, and the end's token behind it, as text
            break
        at = end + len(SEPARATOR)
    return found, ""


def read(body: Mapping[str, Any]) -> Choice | None:
    """What a request, which has been judged, wants to be called; None: as the model likes. Raises ValueError."""
    wanted = body.get("tool_choice")
    if wanted in (None, "auto", "none"):
        return None
    tools = [tool["function"] for tool in body.get("tools") or ()]
    functions = {tool["name"]: tool.get("parameters") or NO_PARAMETERS for tool in tools}
    if wanted == "required":
        if len(functions) > MOST_FUNCTIONS:
            raise ValueError(f"tools: {len(functions)} of which one is required; the limit is {MOST_FUNCTIONS}")
        return Choice(functions, named=False, alone=body.get("parallel_tool_calls") is False)
    name = wanted["function"]["name"]
    if name not in functions:
        raise ValueError("tool_choice: no tool has this name")
    return Choice({name: functions[name]}, named=True, alone=True)


class Called:
    """A stream's parser, in place of transformers' own: calls come at its end, a part of one as text."""

    def __init__(self, choice: Choice) -> None:
        self.initial_events: list[dict[str, Any]] = []
        self._choice = choice
        self._said = ""

    def feed(self, text: str) -> list[dict[str, Any]]:
        """The events of some more text: none."""
        self._said += text
        return []

    def finalize(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The message, which nobody reads, and the events."""
        calls, rest = self._choice.calls(self._said)
        events = [{"type": "region_close", "field": "tool_calls", "value": {"function": call}} for call in calls]
        return {}, events + text_of(rest)
