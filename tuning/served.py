"""The second stage: the real server with each of the settings, under a closed loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from tuning.choosing import Seen, Served, middle
from tuning.in_process import InProcess
from tuning.machine import free_memory
from tuning.server import Void, load, server
from tuning.settings import Outside, outside_config
from tuning.wanted import Wanted, archive

JAVA_BYTES = 1_000_000_000  # of one frontend, about


def stage(
    wanted: Wanted, candidates: Sequence[Outside], inside: Mapping[int, InProcess]
) -> dict[Outside, Served | str]:
    """Measures each candidate, rounds interleaved.

    All servers are up side by side where memory allows, and one is loaded at a time; else each is started anew in
    every round.

    Returns:
        What was seen, or why there is nothing.
    """
    return Stage(wanted, candidates, inside).run()


class Stage:
    """The servers of one run, and what was seen of them."""

    def __init__(self, wanted: Wanted, candidates: Sequence[Outside], inside: Mapping[int, InProcess]) -> None:
        self.wanted = wanted
        self.candidates = candidates
        self.seen: dict[Outside, list[tuple[Seen, Seen]]] = {candidate: [] for candidate in candidates}
        self.void: dict[Outside, str] = {}
        self.stores = {each: wanted.temp / f"store-{number}" for number, each in enumerate(candidates)}
        sizes = {each: each.workers * inside[each.threads].memory + JAVA_BYTES for each in candidates}
        free = free_memory()
        for each in candidates:
            archive(wanted, outside_config(wanted.config, each, inside[each.threads].best), self.stores[each])
            if sizes[each] > free:
                self._void(each, f"would take {sizes[each] / 1e9:.0f} GB of memory; {free / 1e9:.0f} are free")
        self.side_by_side = wanted.device == "cpu" and sum(sizes.values()) < free / 2

    def run(self) -> dict[Outside, Served | str]:
        """All rounds; no server is left."""
        with ExitStack() as servers:
            ports: dict[Outside, int] = {}
            for each in self.candidates if self.side_by_side else ():
                self._start(each, ports, servers)
            for turn in range(self.wanted.rounds):
                for each in self.candidates[:: -1 if turn % 2 else 1]:
                    with ExitStack() as server_of_this_round:
                        if not self.side_by_side:
                            self._start(each, ports, server_of_this_round)
                        if each not in self.void:
                            self._measure(each, ports[each], turn)
        return {each: self.void.get(each) or _middle(self.seen[each]) for each in self.candidates}

    def _start(self, each: Outside, ports: dict[Outside, int], stack: ExitStack) -> None:
        if each in self.void:
            return
        self.wanted.say(f"  starting TorchServe: {each}")
        try:
            ports[each] = stack.enter_context(server(self.wanted, each.workers, self.stores[each]))
        except Void as err:
            self._void(each, str(err))

    def _measure(self, each: Outside, port: int, turn: int) -> None:
        wanted = self.wanted
        try:
            loaded = load(wanted, port, wanted.connections, wanted.seconds)
            alone = load(wanted, port, 1, wanted.seconds)
        except Void as err:
            self._void(each, str(err))
            return
        self.seen[each].append((loaded, alone))
        wanted.say(
            f"  round {turn + 1} of {wanted.rounds}: {each}: {loaded.rate:.1f} requests/s, p50 "
            f"{loaded.p50 * 1e3:.1f} ms, p99 {loaded.p99 * 1e3:.1f} ms; one connection {alone.p50 * 1e3:.1f} ms"
        )

    def _void(self, each: Outside, why: str) -> None:
        self.void[each] = why
        self.wanted.say(f"  void: {each}: {why}")


def _middle(rounds: Sequence[tuple[Seen, Seen]]) -> Served:
    return Served(middle([loaded for loaded, _ in rounds]), middle([alone for _, alone in rounds]))
