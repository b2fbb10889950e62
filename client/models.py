"""What the management port says about a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Worker:
    """One process that serves a model."""

    id: str
    status: str  # READY, or UNLOADING: which TorchServe also says of one that still loads or is down
    pid: int
    gpu: bool
    memory: int  # bytes; 0 where the server's system metrics are off

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read one entry of `workers`."""
        return cls(
            id=str(document["id"]),
            status=str(document["status"]),
            pid=int(document["pid"]),
            gpu=bool(document["gpu"]),
            memory=int(document["memoryUsage"]),
        )


@dataclass(frozen=True)
class Model:
    """One version of a model, as it stands on the server."""

    name: str
    version: str
    url: str
    batch_size: int
    max_batch_delay: int  # milliseconds
    response_timeout: int  # seconds
    min_workers: int
    max_workers: int
    loaded_at_startup: bool
    workers: tuple[Worker, ...]
    pending: int | None  # requests in the queue
    room: int | None  # how many more the queue takes

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read one entry of a describe answer."""
        queue = document.get("jobQueueStatus") or {}
        return cls(
            name=str(document["modelName"]),
            version=str(document["modelVersion"]),
            url=str(document["modelUrl"]),
            batch_size=int(document["batchSize"]),
            max_batch_delay=int(document["maxBatchDelay"]),
            response_timeout=int(document["responseTimeout"]),
            min_workers=int(document["minWorkers"]),
            max_workers=int(document["maxWorkers"]),
            loaded_at_startup=bool(document["loadedAtStartup"]),
            workers=tuple(Worker.from_json(worker) for worker in document["workers"]),
            pending=queue.get("pendingRequests"),
            room=queue.get("remainingCapacity"),
        )

    @property
    def ready(self) -> int:
        """How many workers are ready."""
        return sum(worker.status == "READY" for worker in self.workers)
