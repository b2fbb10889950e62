"""Answers a file of requests with an archive's own handler, offline: the other end of runner.py.

What has been answered stands in OUTPUT.part until all is; a run that was stopped goes on from there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from archiver import verify
from archiver.errors import Refused
from archiver.manifest import MANIFEST, SUMS
from archiver.opening import start_clean
from archiver.reading import read

SCRIPT = Path(__file__).with_name("runner.py")
BLOCK = 1 << 20  # bytes
DEVICES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VLLM_LOGGING_LEVEL")
LAST_LINES = 5  # of what a process said that ended without a reason


def run(
    archive: Path,
    requests: Path,
    answers: Path,
    *,
    force: bool = False,
    gpu: int | None = None,
    say: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> tuple[int, int]:
    """Answers every line of a file.

    Args:
        archive: in any format.
        requests: a request a line, as the model's route takes them.
        answers: an answer a line, in the same order; a request that fails has its error there.
        force: whether what stands there may be replaced, and what an earlier run of other requests has begun.
        gpu: the number of a GPU; None: as the archive's deviceType says.
        say: takes a line for the user.
        progress: takes how many lines are answered, and how many there are.

    Returns:
        lines, and how many of them hold an error; of this run.

    Raises:
        Refused: there is nothing to run, or it ended before its end.
    """
    part, state = answers.with_name(f"{answers.name}.part"), answers.with_name(f"{answers.name}.part.json")
    if answers.exists() and not force:
        raise Refused(f"{answers}: is there already; --force replaces it")
    found = verify.contents(archive)
    if problems := verify.judged(found):
        raise Refused(*(f"{archive}: {problem}" for problem in problems))
    total, digest = _measure(requests)
    if not total:
        raise Refused(f"{requests}: holds no request")
    sums = hashlib.sha256(found.kept[SUMS]).hexdigest()  # of what names the digest of each file
    begun = {"archive": sums, "requests": digest}
    with _alone(part) as lock:
        skip = _resume(part, state, begun, force)
        if skip:
            say(f"going on behind line {skip:,} of {total:,}")
        with _unpacked(archive) as root:
            name = json.loads((root / MANIFEST).read_bytes())["model"]["modelName"]
            job = {"archive": str(root), "name": name, "gpu": gpu, "skip": skip, "lock": lock}
            job |= {"input": str(requests.resolve()), "output": str(part.resolve())}
            failed = _answer(job, lambda done: progress(skip + done, total))
        if (there := _count(part)) != total:
            raise Refused(f"{part}: holds {there:,} answers to {total:,} requests; remove it to begin anew")
        part.replace(answers)
    state.unlink()
    return total - skip, failed


def _count(answers: Path) -> int:
    with answers.open("rb") as file:
        return sum(1 for _ in file)


def _measure(requests: Path) -> tuple[int, str]:
    """How many lines there are, and the digest of them."""
    lines, digest = 0, hashlib.sha256()
    with requests.open("rb") as file:
        for line in file:
            lines += 1
            digest.update(line)
    return lines, digest.hexdigest()


@contextmanager
def _alone(part: Path) -> Iterator[int]:
    """Holds the file of answers, as does the process that writes it: it may outlive this one by a request.

    Raises:
        Refused: another run holds it.
    """
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Refused(f"{part}: another run is writing it") from error
        yield file.fileno()


def _resume(part: Path, state: Path, begun: dict[str, str], force: bool) -> int:
    """How many answers of an earlier run are whole; what follows them is cut off. Raises Refused."""
    try:
        earlier = json.loads(state.read_text())
    except FileNotFoundError:
        earlier = None
    except ValueError:
        earlier = {}
    other = [what for what, digest in begun.items() if earlier is not None and earlier.get(what) != digest]
    if other and not force:
        raise Refused(f"{part}: is of other {' and '.join(other)}; --force begins anew")
    if earlier is None or other:
        os.truncate(part, 0)
        beside = state.with_name(f"{state.name}.tmp")
        beside.write_text(json.dumps(begun))
        beside.replace(state)
        return 0
    whole = 0
    with part.open("r+b") as file:
        end = 0
        for line in file:
            if not line.endswith(b"\n"):
                break
            whole, end = whole + 1, end + len(line)
        file.truncate(end)
    return whole


@contextmanager
def _unpacked(archive: Path) -> Iterator[Path]:
    """The archive's directory: itself, or a temporary one."""
    if archive.is_dir():
        yield archive.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="archiver-") as private:
        root = Path(private)
        with read(archive) as (_, files):
            for name, _, content in files:  # whose names have been verified
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                with (root / name).open("wb") as file:
                    shutil.copyfileobj(content, file, BLOCK)
        yield root


def _answer(job: dict[str, Any], progress: Callable[[int], None]) -> int:
    """Runs the process; how many lines hold an error. Raises Refused."""
    with (
        tempfile.TemporaryFile("w+", errors="replace") as log,
        # It ends without looking back, and vLLM would leave its sockets.
        tempfile.TemporaryDirectory(prefix="answers-", ignore_cleanup_errors=True) as scratch,
    ):
        process = start_clean(
            SCRIPT, json.dumps(job), log, more=DEVICES, kept=(job["lock"],), scratch=Path(scratch)
        )
        failed = 0
        try:
            for line in process.stdout or ():
                report = json.loads(line)
                progress(report.get("done", 0))
                failed = report.get("failed", 0)
            status = process.wait()
        finally:
            process.kill()
            process.communicate()
        if status:
            log.seek(0)
            said = log.read().strip().splitlines()
            reasons = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
            raise Refused(*(reasons[-1:] or [f"the handler ended with status {status}", *said[-LAST_LINES:]]))
    return failed
