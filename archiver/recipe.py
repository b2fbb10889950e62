"""What to build: a recipe directory, flags, or both; a flag beats the recipe.

A recipe is a directory with model-config.yaml, and either recipe.yaml, which names the model, or model/.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from archiver.errors import Refused
from archiver.hub import fetch
from archiver.names import name_problem, version_problem
from handler.config import ConfigError, ModelConfig, is_own, read_config
from handler.rules import Problem, Rule, check, key, optional

GOLDEN_REQUESTS = "golden.jsonl"  # of a recipe: a JSON request a line
TEXT = Rule("a text", lambda value: isinstance(value, str) and bool(value))


@dataclass(frozen=True)
class RecipeFile:
    """recipe.yaml. Every value is a text: version 1.10 is not the number 1.1."""

    name: str = key(TEXT, "the model's name in URLs")
    version: str = key(TEXT, "the model's version in URLs")
    model: str = key(TEXT, "HUB_ID@REVISION, or a directory relative to the recipe", "model")
    tokenizer: str | None = key(
        optional(TEXT), "HUB_ID@REVISION, or a directory, whose tokenizer is taken in place of the model's", None
    )
    description: str | None = key(optional(TEXT), "a sentence for people", None)


@dataclass(frozen=True)
class Flags:
    """What the command line says; None where it is silent."""

    recipe: Path | None = None
    model: str | None = None
    tokenizer: str | None = None
    task: str | None = None
    model_name: str | None = None
    version: str | None = None
    config_file: Path | None = None
    archive_format: str = "zip-store"
    extra_files: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()  # KEY=VALUE
    golden: bool = False
    golden_requests: Path | None = None


@dataclass(frozen=True)
class Recipe:
    """One archive to build, everything found and judged but the model's files."""

    name: str
    version: str
    model: Path  # the model directory
    config: ModelConfig
    extensions: dict[str, str] = field(default_factory=dict)  # of the manifest: source, description
    extra_files: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    tokenizer: Path | None = None  # a directory whose tokenizer takes the place of the model's
    golden: bool = False  # whether golden answers are recorded
    golden_requests: Path | None = None  # to these; None: to some that are made for the task


def read(flags: Flags) -> Recipe:
    """Reads a recipe and the flags that beat it.

    Raises:
        Refused: with everything that is wrong with recipe.yaml, the configuration and the flags, a line each.
    """
    if (flags.recipe, flags.model, flags.task, flags.model_name) == (None, None, None, None):
        raise Refused("nothing to build: name a recipe such as recipes/sentiment, or a model with --model")
    problems: list[str] = []
    file = _read_recipe_file(flags, problems)
    config = _read_config(flags, problems)
    name = flags.model_name or (file.name if file else None)
    version = flags.version or (file.version if file else None)
    if problem := name and name_problem(name, flags.archive_format):
        problems.append(f"model name: {name!r}: {problem}")
    if problem := version and version_problem(version):
        problems.append(f"version: {version!r}: {problem}")
    if file is None and not problems:
        wanted = {"--model": flags.model, "--model-name": name, "--version": version}
        problems += [f"{flag} is missing; or name a recipe" for flag, value in wanted.items() if not value]
    if problems or not (name and version and config):
        raise Refused(*problems)
    folder, source, warnings = _find_model(flags, file)
    extensions = {"source": source} if source else {}
    tokenizer, tokenizer_source, more = _find_tokenizer(flags, file)
    if tokenizer_source:
        extensions["tokenizer"] = tokenizer_source
    if file and file.description:
        extensions["description"] = file.description
    extra_files = (*flags.extra_files, *_own_module(flags, config))
    golden, requests = _golden(flags)
    return Recipe(
        name,
        version,
        folder,
        config,
        extensions,
        extra_files,
        (*warnings, *more),
        tokenizer=tokenizer,
        golden=golden,
        golden_requests=requests,
    )


def _golden(flags: Flags) -> tuple[bool, Path | None]:
    """Whether golden answers are wanted, and the file of requests: the one named, else the recipe's."""
    if flags.golden_requests is not None:
        if not flags.golden_requests.is_file():
            raise Refused(f"--golden-requests {flags.golden_requests}: there is no such file")
        return True, flags.golden_requests
    own = flags.recipe / GOLDEN_REQUESTS if flags.recipe else None
    return flags.golden, own if own and own.is_file() else None


def _own_module(flags: Flags, config: ModelConfig) -> tuple[str, ...]:
    """The file of a recipe's own task; where no recipe is, --extra-files has to bring it. Raises Refused."""
    if not is_own(config.handler.task):
        return ()
    name = config.handler.task.partition(":")[0] + ".py"
    if flags.recipe and (flags.recipe / name).is_file():
        return (str(flags.recipe / name),)
    if any(path.name == name for path in extra_paths(flags.extra_files)):
        return ()
    raise Refused(f"handler.task: {config.handler.task}: there is no {name} in the recipe or among --extra-files")


def extra_paths(arguments: Iterable[str], problems: list[str] | None = None) -> Iterator[Path]:
    """A comma separates, as upstream has it, unless a path with that comma exists."""
    problems = [] if problems is None else problems
    for argument in arguments:
        parts = [argument] if os.path.exists(argument) else [part.strip() for part in argument.split(",")]
        for part in parts:
            matches = [part] if os.path.exists(part) else sorted(glob.glob(part))
            if not matches:
                problems.append(f"--extra-files {part}: there is no such file")
            yield from map(Path, matches)


def _find_model(flags: Flags, file: RecipeFile | None) -> tuple[Path, str | None, list[str]]:
    """The model's directory, its hub id where it has one, and warnings."""
    if flags.model or file is None or flags.recipe is None:
        return _find(Path(), flags.model or "")
    return _find(flags.recipe, file.model)


def _find_tokenizer(flags: Flags, file: RecipeFile | None) -> tuple[Path | None, str | None, list[str]]:
    """As _find_model; a recipe's tokenizer goes with the recipe's model, and not with another."""
    if flags.tokenizer:
        return _find(Path(), flags.tokenizer, tokenizer_only=True)
    if flags.model or file is None or flags.recipe is None or not file.tokenizer:
        return None, None, []
    return _find(flags.recipe, file.tokenizer, tokenizer_only=True)


def _find(base: Path, text: str, *, tokenizer_only: bool = False) -> tuple[Path, str | None, list[str]]:
    if (base / text).is_dir():
        return base / text, None, []
    if text.startswith((".", "/", "~")) or text.partition("@")[0].count("/") > 1 or text == "model":
        raise Refused(f"{base / text}: there is no such model directory")
    return fetch(text, tokenizer_only=tokenizer_only)


def _read_recipe_file(flags: Flags, problems: list[str]) -> RecipeFile | None:
    if flags.recipe is None:
        return None
    if not flags.recipe.is_dir():
        problems.append(f"{flags.recipe}: there is no such recipe directory")
        return None
    path = flags.recipe / "recipe.yaml"
    if not path.exists():
        return RecipeFile(name=flags.recipe.resolve().name, version="1.0")
    document = _load_yaml(path, _Texts, problems)
    if document is None:
        return None
    if not isinstance(document, Mapping):
        problems.append(f"{path}: expected a mapping with name, version and model")
        return None
    found = check(document, RecipeFile, quote=True)
    problems += [f"{path}: {problem}" for problem in found]
    return None if found else RecipeFile(**document)


def _read_config(flags: Flags, problems: list[str]) -> ModelConfig | None:
    path = flags.config_file or (flags.recipe / "model-config.yaml" if flags.recipe else None)
    document: Any = {"handler": {}}
    if path is not None:
        if flags.recipe and not flags.recipe.is_dir():
            return None  # said already
        before = len(problems)
        document = _load_yaml(path, _Values, problems)
        if len(problems) > before:
            return None
    overrides = ((f"handler.task={flags.task}",) if flags.task else ()) + flags.overrides
    document = _override(document, overrides, problems)
    try:
        return read_config(document)
    except ConfigError as error:
        place = f"{path}: " if path else ""
        problems += [f"{place}{_with_flag(problem, flags)}" for problem in error.problems]
        return None


def _with_flag(problem: Problem, flags: Flags) -> str:
    missing = problem.key == "handler.task" and problem.value is None and flags.recipe is None
    return f"{problem}; give it with --task" if missing else str(problem)


def _override(document: Any, overrides: Sequence[str], problems: list[str]) -> Any:
    """The document with KEY=VALUE put in; the value is YAML, so that numbers are numbers."""
    if not isinstance(document, Mapping):
        return document  # refused by read_config, in its own words
    merged = dict(document)
    for text in overrides:
        name, equals, value = text.partition("=")
        section, _, inner = name.rpartition(".")
        if not equals or not inner or section not in ("", "handler"):
            problems.append(f"--set {text}: expected KEY=VALUE or handler.KEY=VALUE")
            continue
        try:
            parsed = yaml.load(value, _Values)
        except (yaml.YAMLError, ValueError):
            problems.append(f"--set {text}: the value is not YAML")
            continue
        if not section:
            merged[inner] = parsed
        elif isinstance(merged.setdefault("handler", {}) or {}, Mapping):
            merged["handler"] = {**(merged["handler"] or {}), inner: parsed}
    return merged


def _load_yaml(path: Path, loader: type[yaml.SafeLoader] | type[yaml.BaseLoader], problems: list[str]) -> Any:
    try:
        with path.open("rb") as file:
            return yaml.load(file, loader)
    except OSError as error:
        problems.append(f"{path}: {error.strerror}")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problems.append(f"{path}: is not YAML: {' '.join(str(error).split())[:300]}")
    return None


class _OnceOnly:
    """A key that is written twice is an error; PyYAML would keep the last one in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for name, _ in node.value:
            if isinstance(name, yaml.ScalarNode) and name.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {name.value!r} is there twice", name.start_mark
                )
            seen.add(str(name.value))
        result: dict[Any, Any] = super().construct_mapping(node, deep)  # type: ignore[misc]
        return result


class _Values(_OnceOnly, yaml.SafeLoader):
    """Scalars become what they look like."""


class _Texts(_OnceOnly, yaml.BaseLoader):
    """Scalars stay as they are written."""
