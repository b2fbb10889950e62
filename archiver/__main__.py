"""The command line: build, inspect, verify, run. The path of an archive is all that a build says on stdout.

Status: 0 done, 1 refused or not whole, 2 wrong usage, 128 + n ended by signal n.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from archiver.ending import ended

# Only what Python brings is imported up here: --help is to work before anything is installed.
MODEL_STORE = Path(__file__).resolve().parents[1] / "model_store"
FORMATS = ("zip-store", "default", "tgz", "no-archive")
EVERY = 2.0  # s between two lines of progress that nobody is watching on a terminal


def parser() -> argparse.ArgumentParser:
    """The whole command line. Flags that torch-model-archiver has keep its names."""
    whole = argparse.ArgumentParser(prog="archiver", description="Archives for TorchServe.", allow_abbrev=False)
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_build(commands.add_parser("build", help="build an archive", allow_abbrev=False))
    inspect = commands.add_parser("inspect", help="say what is in an archive", allow_abbrev=False)
    inspect.add_argument("file", metavar="FILE", type=Path, help="a .mar, a .tar.gz or a no-archive directory")
    inspect.add_argument("--json", action="store_true", help="for programs")
    verify = commands.add_parser("verify", help="say whether an archive is whole", allow_abbrev=False)
    verify.add_argument("file", metavar="FILE", type=Path, help="a .mar, a .tar.gz or a no-archive directory")
    _add_run(commands.add_parser("run", help="answer a file of requests, without a server", allow_abbrev=False))
    for command in commands.choices.values():
        command.set_defaults(parser=command)
    return whole


def _add_run(run: argparse.ArgumentParser) -> None:
    run.description = "Answer a file of requests with an archive's own handler: offline, in order, at full speed."
    run.epilog = (
        "A request that fails has its error in its line, and the status is 0. A run that is stopped goes on from "
        "FILE.part when it is started again."
    )
    run.add_argument("file", metavar="ARCHIVE", type=Path, help="a .mar, a .tar.gz or a no-archive directory")
    run.add_argument(
        "--input", type=Path, required=True, metavar="FILE", help='requests, one a line, such as {"text": "…"}'
    )
    run.add_argument("--output", type=Path, required=True, metavar="FILE", help="where the answers go, one a line")
    run.add_argument("--gpu", type=int, metavar="N", help="the GPU to run on; default: as without a server's say")
    run.add_argument("-f", "--force", action="store_true", help="begin anew, and replace what is there")


def _add_build(build: argparse.ArgumentParser) -> None:
    build.description = "Build an archive from a recipe, from any model, or from a recipe with flags that beat it."
    build.epilog = (
        "SOURCE_DATE_EPOCH sets the one time that an archive knows; unset, it is 1980-01-01. "
        "The same inputs give the same bytes."
    )
    build.add_argument(
        "recipe", nargs="?", type=Path, metavar="RECIPE", help="a directory such as recipes/sentiment"
    )
    build.add_argument("--model", metavar="MODEL", help="a directory, or HUB_ID[@REVISION]")
    build.add_argument(
        "--tokenizer", metavar="MODEL", help="whose tokenizer to take; default: the model's, or as the recipe says"
    )
    build.add_argument("--task", help="what the model does, such as text-classification")
    build.add_argument("--model-name", metavar="NAME", help="its name in URLs, and the archive's")
    build.add_argument("-v", "--version", help="its version in URLs")
    build.add_argument("-c", "--config-file", type=Path, metavar="FILE", help="a model-config.yaml")
    build.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="beats a key of it; repeatable"
    )
    build.add_argument(
        "--extra-files", action="append", default=[], metavar="PATH,...", help="put beside the handler"
    )
    build.add_argument("--export-path", type=Path, metavar="DIR", help="where to; default: model_store/")
    build.add_argument("--archive-format", choices=FORMATS, default="zip-store", help="default: zip-store")
    build.add_argument(
        "--golden",
        action="store_true",
        help="record the reference's answers, which workers then have to give before they are READY",
    )
    build.add_argument(
        "--golden-requests",
        type=Path,
        metavar="FILE",
        help="record the answers to these, a JSON request a line; default: golden.jsonl of the recipe, or made up",
    )
    build.add_argument("-f", "--force", action="store_true", help="replace an archive that is there")


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns its status."""
    flags, unknown = parser().parse_known_args(arguments)
    if unknown:  # told by the whole command line's parser, it would be with the usage of that (argparse)
        flags.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    command = {"build": _build, "inspect": _inspect, "verify": _verify, "run": _run}[flags.command]
    kept = "; what was answered is kept" if flags.command == "run" else "; nothing was changed"
    return ended(lambda: command(flags), _say, kept)


def _build(flags: argparse.Namespace) -> int:
    from archiver import build, recipe  # noqa: PLC0415

    if flags.export_path is None:
        MODEL_STORE.mkdir(exist_ok=True)
    wanted = recipe.read(
        recipe.Flags(
            recipe=flags.recipe,
            model=flags.model,
            tokenizer=flags.tokenizer,
            task=flags.task,
            model_name=flags.model_name,
            version=flags.version,
            config_file=flags.config_file,
            archive_format=flags.archive_format,
            extra_files=tuple(flags.extra_files),
            overrides=tuple(flags.set),
            golden=flags.golden,
            golden_requests=flags.golden_requests,
        )
    )
    target = build.build(
        wanted,
        flags.export_path or MODEL_STORE,
        flags.archive_format,
        force=flags.force,
        say=_say,
        progress=_Progress(),
    )
    print(target)
    return 0


def _inspect(flags: argparse.Namespace) -> int:
    from archiver import listing  # noqa: PLC0415

    described = listing.describe(flags.file)
    print(json.dumps(described, indent=2) if flags.json else listing.text(described))
    return 0


def _verify(flags: argparse.Namespace) -> int:
    from archiver import verify  # noqa: PLC0415

    problems = verify.problems(flags.file)
    for problem in problems:
        _say(f"error: {flags.file}: {problem}")
    if not problems:
        print(f"{flags.file}: whole")
    return 1 if problems else 0


def _run(flags: argparse.Namespace) -> int:
    from archiver import run  # noqa: PLC0415

    started = time.monotonic()
    lines, failed = run.run(
        flags.file,
        flags.input,
        flags.output,
        force=flags.force,
        gpu=flags.gpu,
        say=_say,
        progress=_Progress(_lines),
    )
    errors = f", {failed:,} of them errors" if failed else ""
    _say(f"{lines:,} answers{errors}, {time.monotonic() - started:.1f} s")
    print(flags.output)
    return 0


def _megabytes(done: int, total: int) -> str:
    return f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB"


def _lines(done: int, total: int) -> str:
    return f"{done:,} of {total:,} answers"


class _Progress:
    """How far it is: on a terminal in place, elsewhere a line now and then, for what is short nothing."""

    def __init__(self, told: Callable[[int, int], str] = _megabytes) -> None:
        self._told = told
        self._last = time.monotonic()
        self._every = 0.2 if sys.stderr.isatty() else EVERY

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last < self._every:
            return
        self._last = now
        line = f"  {self._told(done, total)}"
        sys.stderr.write(f"\r{line} " if sys.stderr.isatty() else f"{line}\n")
        sys.stderr.flush()


def _say(line: str) -> None:
    prefix = "\r\033[K" if sys.stderr.isatty() else ""  # over a line of progress
    print(prefix + line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
