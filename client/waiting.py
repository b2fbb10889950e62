"""Waiting for a model's workers, with every step told."""

from __future__ import annotations

import time
from collections.abc import Callable

from client.errors import NotReachable, NotReady
from client.models import Model

PAUSE = 0.2  # seconds between two looks

Progress = Callable[[int, int], object]


def wait_for(look: Callable[[], Model], workers: int | None, timeout: float, progress: Progress | None) -> Model:
    """Look until enough workers are ready.

    Args:
        look: describes the model as it is now.
        workers: how many must be ready; None is as many as the model says it wants.
        timeout: seconds until the last look.
        progress: called with the number of ready workers and of those wanted, whenever one changes.
    """
    deadline = time.monotonic() + timeout
    told: tuple[int, int] | None = None
    while True:
        last = time.monotonic() >= deadline
        try:
            model = look()
        except NotReachable:
            if last:
                raise
        else:
            wanted = model.min_workers if workers is None else workers
            if progress and told != (model.ready, wanted):
                told = (model.ready, wanted)
                progress(*told)
            if wanted <= model.ready and wanted > 0:
                return model
            if last or wanted == 0:
                raise not_ready(model, wanted, timeout)
        time.sleep(PAUSE)


def not_ready(model: Model, wanted: int, timeout: float) -> NotReady:
    """The error that says what each worker does."""
    who = f"model {model.name} {model.version}"
    if wanted == 0:
        return NotReady(f"{who} has no workers: scale it up first", ready=model.ready, wanted=wanted)
    states = ", ".join(f"{worker.id} {worker.status}" for worker in model.workers) or "none"
    return NotReady(
        f"{who} has {model.ready} of {wanted} workers ready after {timeout:g} s (workers: {states}); "
        "the server's log says why",
        ready=model.ready,
        wanted=wanted,
    )
