"""The command line's arguments: one function a command, and one table of them all."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from client import commands

DESCRIPTION = """Talk to a TorchServe server.

Answers are JSON on standard output (models prints a table unless --json is given);
progress and errors go to standard error.
Exit status: 0 done, 1 failed, 2 wrong arguments, 130 interrupted."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read a command line; `run` of the result is the command's function."""
    top = argparse.ArgumentParser(
        prog="python -m client",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common(None)],
    )
    subparsers = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    shared = common(argparse.SUPPRESS)
    for name, (run, text, arguments) in COMMANDS.items():
        command = subparsers.add_parser(name, help=text, description=text, parents=[shared])
        command.set_defaults(run=run)
        arguments(command)
    if argv and argv[0] in COMMANDS:  # texts may then stand among the options, which subparsers cannot do
        defaults = argparse.Namespace(**vars(common(None).parse_args([])))
        return subparsers.choices[argv[0]].parse_intermixed_args(argv[1:], defaults)
    return top.parse_args(argv)


def common(default: str | None) -> argparse.ArgumentParser:
    """The options of every command, wherever they stand."""
    shared = argparse.ArgumentParser(add_help=False, argument_default=default)
    group = shared.add_argument_group("server")
    group.add_argument("--inference-url", metavar="URL", help="default http://127.0.0.1:8080")
    group.add_argument("--management-url", metavar="URL", help="default http://127.0.0.1:8081")
    group.add_argument("--metrics-url", metavar="URL", help="default http://127.0.0.1:8082")
    group.add_argument(
        "--port-base", metavar="N", type=port_base, help="use ports N, N+1 and N+2 of 127.0.0.1 instead"
    )
    group.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=seconds,
        help="wait this long: default 60 for an answer, 300 for workers",
    )
    return shared


def name_and_version(command: argparse.ArgumentParser) -> None:
    """The model that a command is about."""
    command.add_argument("name", metavar="NAME", help="the model's name")
    command.add_argument("--version", help="the model's version; its default version if not given")


def predict(command: argparse.ArgumentParser) -> None:
    """What to ask."""
    name_and_version(command)
    command.add_argument("texts", metavar="TEXT", nargs="*", help="one text, or several as one request")
    command.add_argument(
        "--json", metavar="DOC", help="a JSON object to send; @PATH reads it from a file, @- from stdin"
    )
    command.add_argument(
        "--file", metavar="PATH", help="a file of texts, one a line, sent as one request; - is stdin"
    )
    command.add_argument(
        "--param",
        metavar="KEY=VALUE",
        type=parameter,
        action="append",
        default=[],
        help="one more field of the request; the value is JSON, or else a string; may be repeated",
    )
    command.add_argument(
        "--retries",
        metavar="N",
        type=natural,
        default=0,
        help="ask again so often if the connection breaks before the answer; the model may compute it twice",
    )


def ready(command: argparse.ArgumentParser) -> None:
    """What to wait for."""
    name_and_version(command)
    command.add_argument("--workers", metavar="N", type=natural, help="how many; the model's minimum if not given")


def models(command: argparse.ArgumentParser) -> None:
    """How to print the list."""
    command.add_argument("--json", action="store_true", help="print JSON, with every worker")


def scale(command: argparse.ArgumentParser) -> None:
    """How many workers."""
    name_and_version(command)
    command.add_argument(
        "--min-worker",
        metavar="N",
        type=natural,
        required=True,
        help="how many there must be; 0 ends them all",
    )
    command.add_argument(
        "--max-worker", metavar="N", type=natural, help="how many there may be; default --min-worker"
    )
    command.add_argument("--no-wait", action="store_true", help="do not wait for the workers")


def register(command: argparse.ArgumentParser) -> None:
    """What to register, and how to run it."""
    command.add_argument("archive", metavar="URL", help="a file's name in the server's model store, or a URL")
    command.add_argument("--name", help="the model's name; the one in the archive if not given")
    command.add_argument(
        "--initial-workers", metavar="N", type=natural, default=1, help="how many to start (default 1)"
    )
    command.add_argument("--batch-size", metavar="N", type=natural, help="the largest batch")
    command.add_argument("--max-batch-delay", metavar="MS", type=natural, help="how long a batch may take to fill")
    command.add_argument(
        "--response-timeout", metavar="S", type=natural, help="how long a worker may take for a batch"
    )
    command.add_argument("--startup-timeout", metavar="S", type=natural, help="how long a worker may take to load")


def set_default(command: argparse.ArgumentParser) -> None:
    """The version to prefer."""
    command.add_argument("name", metavar="NAME", help="the model's name")
    command.add_argument("version", metavar="VERSION", help="the version")


def metrics(command: argparse.ArgumentParser) -> None:
    """Which metrics."""
    command.add_argument("names", metavar="NAME", nargs="*", help="only the samples of these names")


def verify(command: argparse.ArgumentParser) -> None:
    """The arguments of verify."""
    command.add_argument("name", metavar="NAME", help="the model's name")
    command.add_argument("--model", metavar="DIR", type=Path, required=True, help="the model's files, here")
    command.add_argument("--prompts", metavar="FILE", type=Path, help="one a line; default: four of our own")


COMMANDS: dict[str, tuple[Callable[..., None], str, Callable[[argparse.ArgumentParser], None]]] = {
    "predict": (commands.predict, "Ask a model, and print its JSON answer.", predict),
    "ready": (commands.ready, "Wait until a model's workers are ready.", ready),
    "models": (commands.models, "List every version of every model.", models),
    "scale": (commands.scale, "Change how many workers a model has, and wait until they are ready.", scale),
    "register": (commands.register, "Register an archive, and wait until its workers are ready.", register),
    "unregister": (commands.unregister, "Take a version of a model off the server.", name_and_version),
    "set-default": (
        commands.set_default,
        "Make a version the one that answers if none is named.",
        set_default,
    ),
    "verify": (commands.verify, "Hold a service that encodes prompts against the model itself.", verify),
    "metrics": (commands.metrics, "Print what the server counts and measures.", metrics),
}


def natural(text: str) -> int:
    """A whole number, 0 or more."""
    return number(text, 0, 2**31 - 1)  # TorchServe takes what is no Java int for a number not given


def port_base(text: str) -> int:
    """The first of three ports."""
    return number(text, 1, 65533)


def number(text: str, least: int, most: int) -> int:
    """A whole number between two bounds."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{value} is not between {least} and {most}")
    return value


def seconds(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def parameter(text: str) -> tuple[str, Any]:
    """A field KEY=VALUE of a request."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
