"""Draws a run of the encoder benchmark: python chart.py RESULTS.json PICTURE.png. It needs matplotlib only."""

from __future__ import annotations

import json
import statistics
import sys

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

OURS, PEER = "#c2410c", "#94a3b8"


def main(raw: str, picture: str) -> None:
    """One row of two charts for each task."""
    with open(raw) as file:
        run = json.load(file)
    tasks = list(dict.fromkeys(one["task"] for one in run["measurements"]))
    figure, axes = pyplot.subplots(len(tasks), 2, figsize=(12, 0.9 + 2.6 * len(tasks)), squeeze=False)
    for (left, right), task in zip(axes, tasks, strict=True):
        bars(left, rows(run, task, "mixed@64", "per_second"), f"{task}: texts/s, 64 connections, mixed lengths")
        if ceiling := rows(run, task, "mixed@64", "per_second", ["ceiling"]).get("ceiling"):
            left.axvline(
                statistics.median(ceiling), color="black", linestyle="--", linewidth=1, label="the model alone"
            )
            left.legend(loc="lower right", fontsize=8)
        bars(right, rows(run, task, "open@80%", "p99"), f"{task}: p99 in ms at 80 % of each one's own knee")
    machine = run["machine"]
    figure.suptitle(f"{run['date']}, {machine['cores']} cores of {machine['cpu']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


def rows(run: dict, task: str, cell: str, what: str, names: list[str] | None = None) -> dict[str, list[float]]:
    """Candidate -> the figure of each round."""
    found: dict[str, list[float]] = {}
    for one in run["measurements"]:
        wanted = one["candidate"] in names if names else one["candidate"] != "ceiling"
        if (one["task"], one["cell"]) == (task, cell) and wanted:
            found.setdefault(one["candidate"], []).append(one["load"][what])
    return found


def bars(axis: pyplot.Axes, found: dict[str, list[float]], title: str) -> None:
    """Medians as bars, the best-known name on top, and the spread as a line on each."""
    axis.set_title(title, fontsize=10)
    names = list(found)[::-1]
    middles = [statistics.median(found[name]) for name in names]
    low = [middle - min(found[name]) for name, middle in zip(names, middles, strict=True)]
    high = [max(found[name]) - middle for name, middle in zip(names, middles, strict=True)]
    axis.barh(
        names, middles, xerr=[low, high], color=[OURS if name == "ours" else PEER for name in names], capsize=3
    )
    for place, (middle, above) in enumerate(zip(middles, high, strict=True)):
        beside = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
        axis.annotate(f"{middle:.0f}", (middle + above, place), **beside)
    axis.margins(x=0.1)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main(*sys.argv[1:])
