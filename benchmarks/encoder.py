"""The encoder benchmark: all candidates, both tasks, in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from benchmarks import ceiling
from benchmarks.candidates.candidate import TASKS, Candidate
from benchmarks.candidates.fastapi import FastapiBatched, FastapiPlain
from benchmarks.candidates.infinity import Infinity
from benchmarks.candidates.litserve import LitServe
from benchmarks.candidates.ours import Ours
from benchmarks.candidates.torchserve import TorchServeSeed
from benchmarks.candidates.triton import Triton
from benchmarks.figures import Measurement, Results, Standing
from benchmarks.models import Call, bare_call, model_for, reference
from benchmarks.texts import LENGTHS, text_set
from benchmarks.turns import CELLS, SHARES, Material, Plan, Turns

CANDIDATES: tuple[type[Candidate], ...] = (
    Ours, TorchServeSeed, FastapiPlain, FastapiBatched, Triton, LitServe, Infinity,
)  # fmt: skip
NAMES = (ceiling.NAME, *(candidate.name for candidate in CANDIDATES))
SEARCHED = 4  # the budget is searched with every fourth text
START_AND_CHECK = 22.0  # s of a turn, about
Item = TypeVar("Item")
Say = Callable[[str], None]


def measure(plan: Plan, tasks: Sequence[str], names: Sequence[str], results: Results, say: Say) -> None:
    """Runs everything."""
    sets = {name: text_set(name)[: plan.texts] for name in LENGTHS}
    turns = sum(name in names and task in theirs for task in tasks for name, theirs in _tasks_of().items())
    say(f"about {estimate(plan, turns, len(tasks)) / 60:.0f} minutes: {turns} candidates, {plan.rounds} rounds")
    for task in tasks:
        call = bare_call(task)
        say(f"{task}: computing the right answers")
        expected = {name: list(reference(task, call, texts)) for name, texts in sets.items()}
        material = Material(task, model_for(task), sets, expected)
        taking = [
            Turns(candidate(), material, plan, results, say)
            for candidate in CANDIDATES
            if candidate.name in names and task in candidate.wires
        ]
        for one in taking:
            one.prepare()
        steps: list[tuple[str, Callable[[int], None]]] = [(one.candidate.name, one.take) for one in taking]
        if ceiling.NAME in names:
            steps.insert(0, (ceiling.NAME, CeilingTurns(call, material, plan, results, say).take))
        for number in range(plan.rounds):
            for place, (name, take) in enumerate(rotated(steps, number)):
                done = number * len(steps) + place + 1
                say(f"[{done}/{plan.rounds * len(steps)}] {task}, round {number + 1}: {name}")
                take(number)


class CeilingTurns:
    """The turns of the model alone; the best layout is searched before the first."""

    def __init__(self, call: Call, material: Material, plan: Plan, results: Results, say: Say) -> None:
        self.call, self.material, self.plan, self.results, self.say = call, material, plan, results, say
        say(f"{material.task}: searching the best batches for the ceiling")
        self.layout, tried = ceiling.best_layout(call, material.sets["mixed"][::SEARCHED])
        about = "the model alone, no server: texts sorted by length, batches of the best size found"
        described = results.candidates.setdefault(ceiling.NAME, {"about": about, "layouts": {}})
        described["layouts"][material.task] = {"best": str(self.layout), "tried": tried}
        results.stand(Standing(material.task, ceiling.NAME, difference=0.0))

    def take(self, number: int) -> None:
        """One round, numbered from 0."""
        for cell, load in ceiling.set_loads(self.call, self.material.sets, self.layout, self.plan.seconds).items():
            self.results.measurements.append(Measurement(self.material.task, ceiling.NAME, cell, number, load))
            self.say(f"    {cell:10} {load.per_second:8.1f}/s")


def _tasks_of() -> Mapping[str, Sequence[str]]:
    return {candidate.name: tuple(candidate.wires) for candidate in CANDIDATES} | {ceiling.NAME: TASKS}


def rotated(items: Sequence[Item], by: int) -> list[Item]:
    """Each round begins with another, so that nobody always follows the same one."""
    by %= len(items) or 1
    return [*items[by:], *items[:by]]


def estimate(plan: Plan, turns: int, tasks: int) -> float:
    """Seconds, about."""
    turn = START_AND_CHECK + len(CELLS) * (plan.seconds + 1)
    once = 60.0 * tasks + turns * 20.0  # right answers and the ceiling's search; the other sets' checks, archives
    if plan.open_loop:
        turn += len(SHARES) * (plan.open_seconds + 1)
        once += turns * 3 * (plan.knee_seconds + 2)
    return plan.rounds * turns * turn + once
