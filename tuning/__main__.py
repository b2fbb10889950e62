"""The command: the recommended model-config.yaml on stdout, everything else on stderr.

Status: 0 done, 1 nothing to recommend, 2 wrong usage, 128 + n ended by signal n.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from archiver.errors import Interrupted, Refused
from tuning import flags
from tuning.errors import CannotTune

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(arguments: Sequence[str] | None = None) -> int:
    """Tunes; nothing that was started and no temporary directory is left, however it ends."""
    wanted = flags.read(arguments)
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        with tempfile.TemporaryDirectory(prefix="tune-") as temp:
            from tuning.tune import tune  # noqa: PLC0415  torch; --help is to work before it is installed

            print(tune(wanted, Path(temp), say), end="", flush=True)
        return 0
    except Refused as error:
        for problem in error.problems:
            say(f"error: {problem}")
    except CannotTune as error:
        say(f"error: {error}")
    except BrokenPipeError:
        sys.stderr.close()  # whoever read us has gone
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        say(f"error: {place}{error.strerror or error}")
    except Interrupted as error:
        say(f"stopped by {signal.Signals(error.number).name}")
        return 128 + error.number
    return 1


def _interrupt(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # one is enough; clean-up is not to be interrupted
    raise Interrupted(number)


def say(line: str) -> None:
    """Progress and tables."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
