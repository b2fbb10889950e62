"""What was measured, as tables for people; and what is recommended, as a model-config.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import yaml

from handler.config import ModelConfig
from tuning.choosing import Served
from tuning.in_process import InProcess
from tuning.settings import Inside, Outside


def inside_table(measured: InProcess) -> str:
    """Budgets down, lanes across."""
    lanes = sorted({inside.lanes for inside in measured.table})
    rows = [["max_batch_tokens", *(f"lanes {count}" for count in lanes)]]
    for budget in sorted({inside.budget for inside in measured.table}):
        cells = [(Inside(budget, count), measured.table[Inside(budget, count)]) for count in lanes]
        rows.append([str(budget), *(f"{rate:.1f}{_mark(at == measured.best)}" for at, rate in cells)])
    return f"in one process, threads {measured.threads}, texts/s (* chosen)\n{_aligned(rows)}"


def outside_table(table: Mapping[Outside, Served | str], chosen: Outside) -> str:
    """A line each setting; a void one says why."""
    names = ["workers", "threads", "batchSize", "requests/s", "p50 ms", "p99 ms", "alone p50 ms"]
    rows, voids = [names], []
    for each, served in table.items():
        if isinstance(served, str):
            voids.append(f"void: {each}: {served.splitlines()[0]}")
            continue
        figures = (served.loaded.p50, served.loaded.p99, served.alone.p50)
        cells = [str(each.workers), str(each.threads), str(each.batch_size)]
        cells += [f"{served.loaded.rate:.1f}{_mark(each == chosen)}", *(f"{1e3 * value:.1f}" for value in figures)]
        rows.append(cells)
    return "\n".join(["with the server (* chosen)", _aligned(rows), *voids])


def document(config: ModelConfig, comments: Sequence[str]) -> str:
    """The whole file, every default written out."""
    lines = [f"# {line}" for comment in comments for line in comment.splitlines()]
    return "\n".join([*lines, yaml.safe_dump(config.document(), sort_keys=False)])


def _mark(chosen: bool) -> str:
    return "*" if chosen else " "


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  " + "  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
