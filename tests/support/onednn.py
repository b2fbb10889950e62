"""What oneDNN says of the kernels that it makes."""

from __future__ import annotations

import os
import subprocess
import sys


def told(*command: str) -> str:
    """The output of a Python script with arguments: a line for each kernel that is made or found again, too."""
    # Without what an earlier test's worker has set.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ONEDNN")}
    return subprocess.run(
        [sys.executable, "-c", *command],
        env={**inherited, "ONEDNN_VERBOSE": "profile_create"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
