"""The whole run: both stages, what they showed, and what follows from it."""

from __future__ import annotations

import datetime
from pathlib import Path

from archiver import recipe
from handler.devices import usable_cores
from tuning import in_process, machine, report, served, texts
from tuning.choosing import Served, choose_outside
from tuning.errors import CannotTune
from tuning.flags import Flags
from tuning.settings import inside_config, outside_config, outsides, threads_of
from tuning.wanted import Say, Wanted


def tune(flags: Flags, temp: Path, say: Say) -> str:
    """The recommended model-config.yaml.

    Args:
        flags: the command line.
        temp: a directory that goes away with the run.
        say: told what goes on and what was measured.

    Raises:
        CannotTune, archiver.errors.Refused: nothing can be recommended.
    """
    wanted = _wanted(flags, temp, say)
    comments = _comments(wanted, flags)
    if flags.in_process_only:
        workers = wanted.config.server.maxWorkers
        threads = wanted.config.handler.threads or max(1, wanted.cores // workers)
        measured = in_process.stage(wanted, [threads])[threads]
        say(report.inside_table(measured))
        comments.append(f"in one process, without a server: {measured.table[measured.best]:.1f} texts/s")
        return report.document(inside_config(wanted.config, threads, measured.best), comments)
    candidates = outsides(wanted.cores, wanted.connections, wanted.quick)
    inside = in_process.stage(wanted, threads_of(candidates))
    for measured in inside.values():
        say(report.inside_table(measured))
    say(f"with the server: {len(candidates)} settings, {wanted.connections} connections and one")
    table = served.stage(wanted, candidates, inside)
    chosen = choose_outside(table)
    say(report.outside_table(table, chosen))
    comments.append(_result(wanted, table[chosen], len(table)))
    config = outside_config(wanted.config, chosen, inside[chosen.threads].best)
    return report.document(config, comments)


def _wanted(flags: Flags, temp: Path, say: Say) -> Wanted:
    lines = texts.read(flags.texts) if flags.texts else texts.built_in()
    name = flags.model_name or (None if flags.recipe else "model")
    found = recipe.read(
        recipe.Flags(
            recipe=flags.recipe,
            model=flags.model,
            task=flags.task,
            model_name=name,
            version=None if flags.recipe else "1.0",
            config_file=flags.config_file,
            archive_format="no-archive",
            overrides=flags.overrides,
        )
    )
    if len(set(lines)) < flags.connections:
        say("note: fewer different texts than connections; equal ones of a batch are computed once")
    bodies = texts.bodies(found.config.handler.task, lines, found.model)
    return Wanted(
        recipe=found,
        bodies=bodies,
        device=machine.device_of(found.config),
        cores=usable_cores(),
        connections=flags.connections,
        seconds=flags.seconds,
        rounds=flags.rounds,
        quick=flags.quick,
        temp=temp,
        say=say,
    )


def _comments(wanted: Wanted, flags: Flags) -> list[str]:
    """What was measured where; only the name of a file of texts, never one of them."""
    origin = f"of {flags.texts.name}" if flags.texts else f"of {texts.SHORTEST} to {texts.LONGEST} words"
    stages = "" if flags.in_process_only else f", {wanted.seconds:g} s each"
    return [
        f"Recommended by scripts/tune.sh for {wanted.recipe.name} {wanted.recipe.version}, "
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, on",
        f"{machine.describe(wanted.device, wanted.cores)} (load average {machine.busy():.1f} at the start),",
        f"{machine.versions()}.",
        f"Medians of {wanted.rounds} round(s){stages}, {len(wanted.bodies)} texts {origin}, "
        f"{wanted.connections} connections{', --quick' if wanted.quick else ''}:",
    ]


def _result(wanted: Wanted, best: Served | str, tried: int) -> str:
    if isinstance(best, str):
        raise CannotTune(best)
    return (
        f"{best.loaded.rate:.1f} requests/s, p50 {1e3 * best.loaded.p50:.1f} ms, p99 {1e3 * best.loaded.p99:.1f} "
        f"ms; over one connection p50 {1e3 * best.alone.p50:.1f} ms; the best of {tried} settings of the server."
    )
