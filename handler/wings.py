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


def load(context: Any) -> Any:
    """Everything between an unpacked archive and a worker that is ready.

    Raises:
        LoadError: one line says why the model cannot be served.
    """
    directory = Path(context.system_properties["model_dir"]) / "model"
    try:
        config = read_config(context.model_yaml_config)
        device = devices.choose(context.system_properties.get("gpu_id"), config.server.deviceType)
        threads = devices.share_cores(config.server.maxWorkers, config.handler.threads)
        room = "handler.generation.rounds" if config.handler.task in GENERATION else "handler.pipeline"
        wing = importlib.import_module(room).build(config, directory, context.model_name, device, threads)
    except LoadError:
        raise
    except Exception as err:
        raise LoadError(f"{type(err).__name__}: {err}".splitlines()[0]) from err
    logger.info("serving %s on %s with %d CPU threads", config.handler.task, device, threads)
    return wing
