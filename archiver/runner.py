"""Runs an archive's own handler over a file of requests, in a clean process; no server.

A script for `python -I`, as worker.py is: the archive's `handler/` answers, not the repository's. Its argument is
the job, a line of JSON. It writes an answer a line, in the order of the requests, and says on stdout how many
there are by now; a line on stderr that begins with "error: " says why it ended.
"""

from __future__ import annotations

import codecs
import json
import os
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

TELL_SECONDS = 0.2
JSON = "application/json"


def main() -> int:
    """0, or 1 after the line that says why not."""
    job = json.loads(sys.argv[1])
    report = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not the report
    root = Path(job["archive"])
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(root))
    from handler import errors  # noqa: PLC0415  the archive's

    try:
        return answer_all(root, job, report)
    except (errors.LoadError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1


def answer_all(root: Path, job: dict[str, Any], report: Any) -> int:
    """Loads the model and answers what is left of the requests."""
    import yaml  # noqa: PLC0415

    from handler import wings, wire  # noqa: PLC0415

    os.chdir(root)
    wing = wings.load(root, yaml.safe_load((root / "model-config.yaml").read_bytes()), job["name"], job["gpu"])
    json.dump({"loaded": True}, report)
    report.write("\n")
    with open(job["input"], "rb") as requests, open(job["output"], "ab") as answers:
        messages = (wire.Message(line, JSON) for line in lines(islice(requests, job["skip"], None)))
        done, failed, told = 0, 0, time.monotonic()
        for reply in wing.replies(messages):
            answers.write(reply.body + b"\n")
            done, failed = done + 1, failed + (reply.status != 200)
            if time.monotonic() - told > TELL_SECONDS:
                answers.flush()
                told = time.monotonic()
                report.write(json.dumps({"done": done, "failed": failed}) + "\n")
    report.write(json.dumps({"done": done, "failed": failed}) + "\n")
    report.flush()
    return 0


def lines(requests: Iterator[bytes]) -> Iterator[bytes]:
    """Without their ends, or the mark of UTF-8; an empty one is a request too, and gets its error."""
    return (line.rstrip(b"\r\n").removeprefix(codecs.BOM_UTF8) for line in requests)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # an engine's threads and processes are not waited for
