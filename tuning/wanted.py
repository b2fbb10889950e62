"""What one run was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from archiver import build
from archiver.recipe import Recipe
from handler.config import ModelConfig

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """A recipe, and how it is measured."""

    recipe: Recipe
    bodies: Sequence[str]  # a JSON request of each text
    device: str  # cpu or cuda
    cores: int
    connections: int
    seconds: float  # of one measurement over HTTP
    rounds: int
    quick: bool
    temp: Path  # goes away with the run
    say: Say

    @property
    def config(self) -> ModelConfig:
        """The recipe's configuration."""
        return self.recipe.config


def archive(wanted: Wanted, config: ModelConfig, store: Path) -> Path:
    """The recipe's archive with this configuration, its weights not copied but linked. Raises Refused.

    It remembers nothing: the same few texts come again and again, and would reach no model.
    """
    store.mkdir()
    config = replace(config, handler=replace(config.handler, cache_bytes=0))
    recipe = replace(wanted.recipe, config=config, warnings=())
    return build.build(recipe, store, "no-archive", force=False, say=lambda line: None, opened=False)
