"""The command line: python -m benchmarks VERB, behind scripts/bench.sh."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.environments import ROOT, Unavailable
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


def arguments(line: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for."""
    from benchmarks.candidates.candidate import TASKS  # noqa: PLC0415
    from benchmarks.encoder import NAMES  # noqa: PLC0415

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
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=6, help="of a closed loop (default: %(default)s)")
    parser.add_argument("--open-seconds", type=float, default=10, help="of an open loop (default: %(default)s)")
    parser.add_argument("--no-open-loop", action="store_true", help="encoder: closed loops only")
    for flag, known in (("--only", NAMES), ("--tasks", TASKS)):
        parser.add_argument(
            flag, type=names(known), default=known, metavar="NAME,…", help=f"encoder: of {', '.join(known)}"
        )
    parser.add_argument("--texts", type=int, default=512, help="encoder: of each set (default: %(default)s)")
    parser.add_argument(
        "--requests", type=int, default=100_000, help="memory, gateway: how many (default: %(default)s)"
    )
    parser.add_argument(
        "--streams",
        type=int,
        default=1000,
        help="generation: of which one in three is left (default: %(default)s)",
    )
    parser.add_argument("--megabytes", type=int, default=500, help="archive: of weights (default: %(default)s)")
    parser.add_argument("--results", type=Path, metavar="DIR", help="write there, and leave the README alone")
    return parser.parse_args(line)


def main() -> int:
    """0, or 1 after one line that says why not."""
    flags = arguments()
    for number in (signal.SIGTERM, signal.SIGINT):  # servers are ended on the way out
        signal.signal(number, signal.default_int_handler)
    try:
        for verb in VERBS if flags.verb == "all" else [flags.verb]:
            if verb != "all":
                measure(verb, flags)
    except (Unavailable, Failed, OSError) as err:
        say(f"error: {err}")
        return 1
    except KeyboardInterrupt:
        say("stopped")
        return 130
    return 0


def measure(verb: str, flags: argparse.Namespace) -> None:
    """One verb, from the first measurement to the table."""
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
    matters: dict[str, dict[str, Any]] = {
        "options": {"rounds": plan.rounds},
        "prompt": {"rounds": plan.rounds},
        "generation": {"rounds": plan.rounds, "streams": flags.streams},
        "encoder": vars(plan),
        "overhead": {"rounds": plan.rounds, "seconds": plan.seconds},
        "gateway": {"rounds": plan.rounds, "seconds": plan.seconds, "requests": flags.requests},
        "memory": {"requests": flags.requests},
        "archive": {"rounds": plan.rounds, "megabytes": flags.megabytes},
    }
    settings = matters[verb]
    results = Results(verb, machine.today(), machine.describe(), settings)
    folder = flags.results or ROOM / "results"
    started = time.monotonic()
    if verb in ("encoder", "overhead"):
        closed_loop.find_wrk()
        raw = folder / f"{results.date}-{verb}.json"
        rounds = (
            encoder.measure(plan, flags.tasks, flags.only, results, say)
            if verb == "encoder"
            else overhead.measure(plan, results, say)
        )
        for _ in rounds:
            results.write(raw)  # what is stopped halfway has not been for nothing
    else:
        rooms: dict[str, Any] = {
            "archive": archive,
            "options": options,
            "prompt": prompt,
            "generation": generation,
            "gateway": gateway,
            "memory": memory,
        }
        rooms[verb].measure(**settings, results=results, say=say)
    for path in report.write(results, folder, None if flags.results else ROOM / "README.md"):
        say(f"wrote {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")
    say(f"{verb}: {(time.monotonic() - started) / 60:.1f} minutes")


def say(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
