"""The two wings, batches and generation, behind one face; the configuration says which."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

from handler import devices
from handler.config import GENERATION, read_config
from handler.errors import LoadError

logger = logging.getLogger(__name__)


def load(archive: Path, document: object, model_name: str, gpu_id: int | None = None) -> Any:
    """Everything between an unpacked archive and a worker that is ready.

    Args:
        archive: the directory that holds `model/`, and `golden/` if there is one.
        document: the parsed model-config.yaml.
        model_name: as it is served.
        gpu_id: the GPU that TorchServe gave to the worker.

    Raises:
        LoadError: one line says why the model cannot be served.
    """
    try:
        config = read_config(document)
        device = devices.choose(gpu_id, config.server.deviceType)
        threads = devices.share_cores(config.server.maxWorkers, config.handler.threads)
        room = "handler.generation.rounds" if config.handler.task in GENERATION else "handler.pipeline"
        wing = importlib.import_module(room).build(config, archive / "model", model_name, device, threads)
    except LoadError:
        raise
    except Exception as err:
        raise LoadError(f"{type(err).__name__}: {err}".splitlines()[0]) from err
    logger.info("serving %s on %s with %d CPU threads", config.handler.task, device, threads)
    return wing
