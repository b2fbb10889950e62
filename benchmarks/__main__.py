"""The command line: python -m benchmarks VERB, behind scripts/bench.sh."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from archiver.ending import ended
from benchmarks.environments import ROOT
from benchmarks.processes import Failed

ROOM = ROOT / "benchmarks"
VERBS = {
    "archive": "building an archive, beside torch-model-archiver",
    "overhead": "a handler that does nothing, beside stock TorchServe",
    "options": "dtype, int8, compile and attention: what each gains, and what it costs in the answers",
    "prompt": "prompts for diffusion models: exactness, what is saved, large answers, the seed's service",
    "generation": "text generation: both engines beside their own servers, the seed's service, a thousand streams",
    "gateway": "the gateway's cost, and 100,000 malformed requests through it",
    "memory": "whether a worker grows over 100,000 requests",
    "encoder": "all-MiniLM-L6-v2 as a classifier and as an embedder, beside the peers",
    "all": "these, from the first to the last",
}
NEED_WRK = ("overhead", "gateway", "encoder")


def arguments(line: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for."""
    from benchmarks.candidates.candidate import TASKS  # noqa: PLC0415
    from benchmarks.encoder import NAMES  # noqa: PLC0415
    from benchmarks.generation.leaks import LOOKS as STREAMS  # noqa: PLC0415
    from benchmarks.memory import LOOKS  # noqa: PLC0415
    from benchmarks.texts import COUNT  # noqa: PLC0415

    def names(known: Sequence[str]) -> Callable[[str], list[str]]:
        def listed(value: str) -> list[str]:
            chosen = [name.strip() for name in value.split(",")]
            if unknown := [name for name in chosen if name not in known]:
                raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there is {', '.join(known)}")
            return chosen

        return listed

    parser = argparse.ArgumentParser(
        prog="scripts/bench.sh",
        description="Measures this project beside its peers; writes benchmarks/results/ and benchmarks/README.md.",
        epilog="\n".join(f"{verb:10} {words}" for verb, words in VERBS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help="what to measure, see below")
    for flag, kind, default, told in (
        ("--rounds", number(int, 1), 3, "how often each is measured"),
        ("--seconds", number(float, 0.1), 6, "of a closed loop"),
        ("--open-seconds", number(float, 0.1), 10, "of an open loop"),
        ("--texts", number(int, 1, COUNT), COUNT, "encoder: of each set"),
        ("--requests", number(int, LOOKS), 100_000, "memory, gateway: how many"),
        ("--streams", number(int, STREAMS), 1000, "generation: of which one in three is left"),
        ("--megabytes", number(int, 1), 500, "archive: of weights"),
    ):
        parser.add_argument(flag, type=kind, default=default, help=f"{told} (default: %(default)s)")
    parser.add_argument("--no-open-loop", action="store_true", help="encoder: closed loops only")
    for flag, known in (("--only", NAMES), ("--tasks", TASKS)):
        parser.add_argument(
            flag, type=names(known), default=known, metavar="NAME,…", help=f"encoder: of {', '.join(known)}"
        )
    parser.add_argument("--results", type=Path, metavar="DIR", help="write there, and leave the README alone")
    return parser.parse_args(line)


def number(kind: type[int] | type[float], least: float, most: float = math.inf) -> Callable[[str], float]:
    """What reads a flag's value."""

    def read(value: str) -> float:
        try:
            if least <= (found := kind(value)) <= most:
                return found
        except ValueError:
            pass
        bound = f"from {least} to {most}" if most < math.inf else f"of at least {least}"
        raise argparse.ArgumentTypeError(f"expected a {'whole ' if kind is int else ''}number {bound}")

    return read


def main() -> int:
    """0, 1 after one line that says why not, or 128 and the signal that stopped it; servers are ended before."""
    flags = arguments()

    def work() -> int:
        for verb in VERBS if flags.verb == "all" else [flags.verb]:
            if verb != "all":
                measure(verb, flags)
        return 0

    return ended(work, say)


def measure(verb: str, flags: argparse.Namespace) -> None:
    """One verb, from the first measurement to the table. Raises Refused, also where ours has no figure in it."""
    from benchmarks import archive, closed_loop, encoder, gateway, machine, memory, options, overhead, report  # noqa: PLC0415
    from benchmarks.figures import Results  # noqa: PLC0415
    from benchmarks.generation import measure as generation  # noqa: PLC0415
    from benchmarks.prompt import measure as prompt  # noqa: PLC0415
    from benchmarks.turns import Plan  # noqa: PLC0415

    plan = Plan(
        rounds=flags.rounds,
        seconds=flags.seconds,
        open_seconds=flags.open_seconds,
        knee_seconds=min(Plan.knee_seconds, flags.open_seconds),
        open_loop=not flags.no_open_loop,
        texts=flags.texts,
    )
    rooms: dict[str, tuple[Callable[..., None], list[str]]] = {
        "archive": (archive.measure, ["rounds", "megabytes"]),
        "overhead": (overhead.measure, ["rounds", "seconds"]),
        "options": (options.measure, ["rounds"]),
        "prompt": (prompt.measure, ["rounds"]),
        "generation": (generation.measure, ["rounds", "streams"]),
        "gateway": (gateway.measure, ["rounds", "seconds", "requests"]),
        "memory": (memory.measure, ["requests"]),
        "encoder": (partial(encoder.measure, plan, flags.tasks, flags.only), []),
    }
    work, matters = rooms[verb]
    settings = {name: getattr(flags, name) for name in matters}
    results = Results(verb, machine.today(), machine.describe(), settings or vars(plan))
    folder = flags.results or ROOM / "results"
    started = time.monotonic()
    if verb in NEED_WRK:
        closed_loop.find_wrk()
    try:
        work(**settings, results=results, say=say)
    except BaseException:
        part = folder / f"{results.date}-{verb}-part.json"
        results.write(part)  # what is stopped halfway has not been for nothing
        say(f"what there was by then is in {part}")
        raise
    for path in report.write(results, folder, None if flags.results else ROOM / "README.md"):
        say(f"wrote {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")
    say(f"{verb}: {(time.monotonic() - started) / 60:.1f} minutes")
    for one in results.standings:
        if one.candidate == "ours" and one.state != "measured":
            raise Failed(f"ours has no figure at {one.task}: {one.note}")


def say(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
