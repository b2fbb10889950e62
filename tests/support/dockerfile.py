"""Reads a Dockerfile and a .dockerignore: as much of the language as ours uses, and an error for the rest.

https://docs.docker.com/reference/dockerfile/
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

KNOWN = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT"}
VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass(frozen=True)
class Instruction:
    """One instruction: `COPY --from=build /a /b` is COPY, {"from": "build"}, "/a /b"."""

    name: str
    flags: Mapping[str, str]
    value: str

    def exec_form(self) -> list[str]:
        """The words of `["a", "b"]`. Raises ValueError for the shell form, which needs a shell."""
        return list(json.loads(self.value))

    def pairs(self) -> dict[str, str | None]:
        """`A=1 B` of ARG and ENV."""
        words = (word.partition("=") for word in shlex.split(self.value))
        return {name: value if equals else None for name, equals, value in words}


@dataclass
class Stage:
    """From one FROM to the next."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)


@dataclass(frozen=True)
class Dockerfile:
    """The arguments before the first FROM, and the stages."""

    arguments: Mapping[str, str]
    stages: Sequence[Stage]

    def stage(self, name: str) -> Stage | None:
        """The stage of that name; None where it is an image."""
        return next((stage for stage in self.stages if stage.name == name), None)


def read(path: Path, given: Mapping[str, str] | None = None) -> Dockerfile:
    """Parses a Dockerfile; `given` are --build-arg's, over the defaults of the arguments before the first FROM."""
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for instruction in instructions(path.read_text()):
        if instruction.name == "FROM":
            base, _, name = instruction.value.partition(" AS ")
            stages.append(Stage(expand(name, arguments), expand(base, arguments)))
        elif stages:
            stages[-1].instructions.append(instruction)
        else:
            arguments.update({name: value or "" for name, value in instruction.pairs().items()})
            arguments.update({name: value for name, value in (given or {}).items() if name in arguments})
    return Dockerfile(arguments, stages)


def instructions(text: str) -> Iterator[Instruction]:
    """Logical lines, without comments. Raises ValueError for what is not known here."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\s*\n", " ", "\n".join(lines)).splitlines():
        name, _, rest = line.strip().partition(" ")
        if name not in KNOWN:
            raise ValueError(f"{name} is not an instruction that is known here")
        flags = {}
        while name in ("COPY", "HEALTHCHECK") and (found := re.match(r"--([\w-]+)=(\S+)\s+", rest)):
            flags[found[1]] = found[2]
            rest = rest[found.end() :]
        yield Instruction(name, flags, rest.strip())


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Puts values in the place of `${NAME}`; nothing where there is none, as an engine does."""
    return VARIABLE.sub(lambda found: variables.get(found[1] or found[2], ""), text)


def ignored(path: str, patterns: Sequence[str]) -> bool:
    """Whether a .dockerignore keeps a path out: the last pattern that fits it or a parent decides."""
    parents = ["/".join(path.split("/")[: count + 1]) for count in range(path.count("/") + 1)]
    out = False
    for pattern in patterns:
        if any(map(as_expression(pattern.lstrip("!").strip("/")).fullmatch, parents)):
            out = not pattern.startswith("!")
    return out


@cache
def as_expression(pattern: str) -> re.Pattern[str]:
    """Go's filepath.Match with Docker's `**`, as a regular expression."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    found = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return re.compile("".join(parts.get(part) or re.escape(part) for part in found))


def ignore_patterns(path: Path) -> list[str]:
    """The patterns of a .dockerignore."""
    return [line.strip() for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]


def context(root: Path, source: str = "") -> list[Path]:
    """Every file of the repository, or of one of its files and directories, that would be sent to the engine.

    They are relative to the root.
    """
    patterns = ignore_patterns(root / ".dockerignore")
    wanted = root / source
    files = (path.relative_to(root) for path in (wanted, *wanted.rglob("*")) if path.is_file())
    return sorted(path for path in files if not ignored(str(path), patterns))
