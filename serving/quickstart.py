"""From a recipe to answers: builds the archive, serves it, asks it three things, and shows what came back."""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client import ClientError, InferenceClient, ManagementClient

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "sentiment"
NAME = "sentiment"
LOG = ROOT / "logs" / "quickstart.log"
SENTENCES = (
    "A warm, funny film that I could watch again tomorrow.",
    "The battery died after a week and nobody answered my mails.",
    "It was not good at all.",
)
READY_SECONDS = 180.0
# What a worker that cannot load its model prints (ts/model_service_worker.py:160).
LOAD_FAILED = re.compile(r"Failed to load model \S+, exception (.*)|(Failed to load model: .*)")


class Failed(Exception):
    """One sentence says why."""


def main() -> int:
    """The command line; 0, 1 after one sentence, or 130 where it was stopped before it had answered."""
    parser = argparse.ArgumentParser(prog="scripts/quickstart.sh", description=__doc__)
    parser.add_argument("--once", action="store_true", help="stop the server once it has answered")
    parser.add_argument("--port-base", type=int, default=8080, metavar="N", help="the first port (default: 8080)")
    args = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a shell's background jobs start with it ignored
        signal.signal(number, signal.default_int_handler)
    answered = False
    try:
        build()
        with server(args.port_base) as process:
            wait_until_ready(process, args.port_base)
            ask(args.port_base)
            answered = True
            if not args.once:
                say(f"serving until Ctrl-C; its log is {LOG.relative_to(ROOT)}")
                process.wait()
                raise Failed(last_error() or "the server ended by itself")
    except Failed as err:
        say(f"error: {err}")
        return 1
    except KeyboardInterrupt:
        say("stopped")
        return 0 if answered and not args.once else 130
    return 0


def build() -> None:
    """Builds the recipe's archive into model_store/."""
    say(f"building model_store/{NAME}.mar from recipes/{NAME}")
    command = [sys.executable, "-P", "-m", "archiver", "build", str(RECIPE), "--force"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as building:
        try:
            status = building.wait()
        except KeyboardInterrupt:  # it has files to take away
            building.terminate()
            raise
    if status:
        raise Failed("the archive could not be built; the lines above say why")


@contextmanager
def server(port_base: int) -> Iterator[subprocess.Popen[bytes]]:
    """scripts/serve.sh's server, writing to the log; stopped on the way out, whatever happens."""
    LOG.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-P", "-m", "serving", "--models", f"{NAME}.mar", "--port-base", str(port_base)]
    with LOG.open("wb") as log:
        # Ctrl-C reaches it through us, so that it is told once.
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            say("stopping the server")
            process.terminate()
            process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], port_base: int) -> None:
    """Waits until every worker is READY by the management API; /ping says healthy long before."""
    say(f"starting TorchServe on ports {port_base} to {port_base + 4}")
    management = ManagementClient(f"http://127.0.0.1:{port_base + 1}", timeout=5)
    start = shown = time.monotonic()
    while time.monotonic() - start < READY_SECONDS:
        if process.poll() is not None:
            raise Failed(last_error() or "the server ended by itself")
        if reason := load_failure():
            raise Failed(f"the model could not be loaded: {reason}")
        try:
            model = management.describe(NAME)
            if model.ready >= model.min_workers > 0:
                say(f"ready after {time.monotonic() - start:.0f} s: {model.ready} worker(s)")
                return
        except ClientError:
            pass  # not listening yet
        if time.monotonic() - shown > 2:
            shown = time.monotonic()
            say(f"  waiting for the workers, {shown - start:.0f} s")
        time.sleep(0.2)
    raise Failed(f"no worker was ready after {READY_SECONDS:.0f} s; see {LOG}")


def ask(port_base: int) -> None:
    """Sends the sentences, one a request, and prints requests and answers."""
    url = f"http://127.0.0.1:{port_base}"
    client = InferenceClient(url)
    for sentence in SENTENCES:
        document = json.dumps({"text": sentence})
        print(f"\n$ curl {url}/predictions/{NAME} -H 'content-type: application/json' -d '{document}'")
        print(json.dumps(client.predict(NAME, sentence)), flush=True)
    print()


def load_failure() -> str | None:
    """Why a worker could not load its model, by the server's log."""
    match = LOAD_FAILED.search(LOG.read_text(errors="replace"))
    return (match[1] or match[2]) if match else None


def last_error() -> str | None:
    """The sentence with which the server ended."""
    errors = re.findall(r"^error: (.*)$", LOG.read_text(errors="replace"), re.MULTILINE)
    return errors[-1] if errors else None


def say(line: str) -> None:
    """Progress goes to stderr; stdout holds requests and answers."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
