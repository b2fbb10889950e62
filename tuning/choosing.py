"""From what was measured to what is recommended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from tuning.errors import CannotTune
from tuning.settings import Inside, Outside

NEAR_INSIDE = 0.03  # of the best rate: a smaller budget within this is as good
NEAR_OUTSIDE = 0.05  # of the best rate, which a setting may lie below it ...
QUICKER = 0.20  # ... where a lone request is answered in so much less time


@dataclass(frozen=True)
class Seen:
    """What a closed loop saw; medians where it ran several times."""

    rate: float  # requests/s
    p50: float  # s
    p99: float


@dataclass(frozen=True)
class Served:
    """One setting of the server under load."""

    loaded: Seen  # at all connections
    alone: Seen  # at one


def middle(rounds: Sequence[Seen]) -> Seen:
    """The median of each figure."""
    return Seen(*(median(getattr(seen, name) for seen in rounds) for name in ("rate", "p50", "p99")))


def choose_inside(table: Mapping[Inside, float]) -> Inside:
    """The smallest budget within 3 % of the best rate: padding and memory grow with it, and lanes share it worse.

    Args:
        table: texts/s of each setting.
    """
    enough = max(table.values()) * (1 - NEAR_INSIDE)
    return min((inside for inside in table if table[inside] >= enough), key=lambda i: (i.budget, -table[i]))


def choose_outside(table: Mapping[Outside, Served | str]) -> Outside:
    """The highest rate under load, unless one that is nearly as fast answers a lone request much sooner.

    Args:
        table: what was seen of each setting, or why it is void.

    Raises:
        CannotTune: all are void.
    """
    valid = {outside: served for outside, served in table.items() if isinstance(served, Served)}
    if not valid:
        reasons = "; ".join(f"{outside}: {why}" for outside, why in table.items())
        raise CannotTune(f"no setting of the server could be measured: {reasons}")
    best = max(valid, key=lambda outside: valid[outside].loaded.rate)
    fast = valid[best].loaded.rate * (1 - NEAR_OUTSIDE)
    quick = valid[best].alone.p50 * (1 - QUICKER)
    others = [o for o in valid if valid[o].loaded.rate >= fast and valid[o].alone.p50 <= quick]
    return min(others, key=lambda outside: valid[outside].alone.p50, default=best)
