"""Fixtures that several rooms share."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.support import reference, scenarios, tiny_models, worker

# No test fails on a clock: on a busy machine hypothesis calls any generation slow.
settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clock")


ASKED_FOR = ("cuda", "image", "monitoring", "slow")  # what takes a GPU, minutes, root or other programs


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Runs these where their marker is asked for, and else deselects them."""
    asked = config.option.markexpr
    out = [item for item in items for name in ASKED_FOR if item.get_closest_marker(name) and name not in asked]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]


@pytest.fixture(autouse=True)
def clean_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As shipped: the handler reads JSON itself, and nothing may reach for a model hub.

    What a handler does to its process, because the process is its own, is undone.
    """
    monkeypatch.setenv("TS_DECODE_INPUT_REQUEST", "false")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    caught, threads = signal.getsignal(signal.SIGUSR1), torch.get_num_threads()
    yield
    signal.signal(signal.SIGUSR1, caught)
    torch.set_num_threads(threads)
    if hasattr(sys, "tracebacklimit"):
        del sys.tracebacklimit


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Task -> a directory with a tiny model for it under model/."""
    home = tmp_path_factory.mktemp("tiny")
    for task, build in tiny_models.MODELS.items():
        build(home / task / "model")
    return {task: home / task for task in scenarios.TASKS}


@pytest.fixture(scope="session")
def services(tiny: dict[str, Path]) -> dict[str, object]:
    """Task -> a loaded worker."""
    return {task: worker.start(tiny[task], task=task, **scenarios.LIMITS) for task in scenarios.TASKS}


@pytest.fixture(scope="session")
def references(tiny: dict[str, Path]) -> dict[str, Callable[[Any], Any]]:
    """Task -> scenario -> what transformers answers."""
    return {task: partial(reference.REFERENCES[task], tiny[task] / "model") for task in scenarios.TASKS}
