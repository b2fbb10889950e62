"""The first stage: budgets and lanes for each number of threads, in one process each and without a server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median

from tuning.choosing import choose_inside
from tuning.errors import CannotTune
from tuning.processes import module, tail
from tuning.settings import Inside, insides
from tuning.wanted import Wanted, archive

TEXTS = 128  # at least; more where there are more connections
SECONDS = 1.0  # of one measurement, at least


@dataclass(frozen=True)
class InProcess:
    """What was measured with so many threads."""

    threads: int
    table: dict[Inside, float]  # requests/s
    memory: int  # bytes that the process took

    @property
    def best(self) -> Inside:
        """The recommended one."""
        return choose_inside(self.table)


def stage(wanted: Wanted, all_threads: Sequence[int]) -> dict[int, InProcess]:
    """Measures every number of threads, one after the other.

    Raises:
        CannotTune: the model cannot be loaded, or a request is refused.
        Refused: the archive cannot be built.
    """
    return {threads: _measure(wanted, threads) for threads in all_threads}


def _measure(wanted: Wanted, threads: int) -> InProcess:
    place = wanted.temp / f"threads-{threads}"
    config = replace(wanted.config, handler=replace(wanted.config.handler, threads=threads, lanes=None))
    settings = insides(wanted.device, threads, wanted.quick)
    job = {
        "directory": str(archive(wanted, config, place)),
        "name": wanted.recipe.name,
        "bodies": wanted.bodies[: max(TEXTS, 2 * wanted.connections)],
        "connections": wanted.connections,
        "threads": threads,
        "settings": [asdict(setting) for setting in settings],
        "rounds": wanted.rounds,
        "seconds": SECONDS / (4 if wanted.quick else 1),
    }
    path, log = place / "job.json", place / "log"
    path.write_text(json.dumps(job))
    wanted.say(f"in one process, threads {threads}: loading, then {len(settings)} settings")
    rates: dict[Inside, list[float]] = {setting: [] for setting in settings}
    memory = 0
    with module("tuning.inside", [str(path)], place, log) as process:
        assert process.stdout is not None
        for line in process.stdout:
            report = json.loads(line)
            if "error" in report:
                raise CannotTune(str(report["error"]))
            if "memory" in report:
                memory = int(report["memory"])
                continue
            setting = settings[report["index"]]
            rates[setting].append(report["rate"])
            wanted.say(
                f"  round {report['round'] + 1} of {wanted.rounds}: max_batch_tokens {setting.budget}, "
                f"lanes {setting.lanes}: {report['rate']:.1f} texts/s"
            )
    if not memory:
        raise CannotTune(f"the process that measures ended too early:\n{tail(log)}")
    return InProcess(threads, {setting: median(seen) for setting, seen in rates.items()}, memory)
