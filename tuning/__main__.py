"""The command: the recommended model-config.yaml on stdout, everything else on stderr.

Status: 0 done, 1 nothing to recommend, 2 wrong usage, 128 + n ended by signal n.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from archiver.ending import ended
from tuning import flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Tunes; nothing that was started and no temporary directory is left, however it ends."""
    wanted = flags.read(arguments)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    return ended(lambda: _tune(wanted), say)


def _tune(wanted: flags.Flags) -> int:
    with tempfile.TemporaryDirectory(prefix="tune-") as temp:
        from tuning.tune import tune  # noqa: PLC0415  torch; --help is to work before it is installed

        print(tune(wanted, Path(temp), say), end="", flush=True)
    return 0


def say(line: str) -> None:
    """Progress and tables."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
