"""The command line. Only what Python brings is imported here: --help is to work before anything is installed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Flags:
    """What the command line says."""

    recipe: Path | None
    model: str | None
    task: str | None
    model_name: str | None
    config_file: Path | None
    overrides: tuple[str, ...]
    connections: int
    seconds: float
    rounds: int
    texts: Path | None
    quick: bool
    in_process_only: bool


def read(arguments: Sequence[str] | None) -> Flags:
    """The flags; wrong ones end the process with status 2."""
    parser = _parser()
    found = parser.parse_args(arguments)
    if found.recipe is None and found.model is None:
        parser.error("nothing to measure: name a recipe such as recipes/sentiment, or a model with --model")
    rounds = found.rounds or (1 if found.quick else 3)
    told = {**vars(found), "overrides": tuple(found.overrides), "rounds": rounds}
    return Flags(**told)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/tune.sh",
        description="Measures batch size, token budget, lanes, workers and threads on this machine, first in one "
        "process, then with the real server, and prints the model-config.yaml that it recommends. Progress and "
        "tables go to stderr.",
        epilog="Some minutes, or one with --quick. Other work on the machine spoils the figures.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "recipe", nargs="?", type=Path, metavar="RECIPE", help="a directory such as recipes/sentiment"
    )
    parser.add_argument("--model", metavar="MODEL", help="a directory, or HUB_ID[@REVISION]; beats the recipe's")
    parser.add_argument("--task", help="what the model does, such as text-classification")
    parser.add_argument("--model-name", metavar="NAME", help="its name; default: the recipe's")
    parser.add_argument("-c", "--config-file", type=Path, metavar="FILE", help="a model-config.yaml to begin with")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="beats a key; repeatable"
    )
    parser.add_argument(
        "--connections", type=_count, default=64, metavar="N", help="that are kept busy (default: 64)"
    )
    parser.add_argument(
        "--seconds", type=_seconds, default=5.0, metavar="S", help="of one measurement over HTTP (default: 5)"
    )
    parser.add_argument("--rounds", type=_count, metavar="N", help="of which medians are taken (default: 3)")
    parser.add_argument("--texts", type=Path, metavar="FILE", help="one a line (default: 512 of 4 to 120 words)")
    parser.add_argument("--quick", action="store_true", help="fewer settings, and one round unless told")
    parser.add_argument("--in-process-only", action="store_true", help="token budget and lanes only, no server")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError("expected a whole number from 1 to 10000")
    return int(text)


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.1 <= number <= 3600:
        raise argparse.ArgumentTypeError("expected a number from 0.1 to 3600")
    return number
