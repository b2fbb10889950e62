"""A worker without its frontend: `ts.service.Service` over an archive's content, loaded as TorchServe loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.service import Service

from handler.transformer_handler import TransformerHandler

ROOT = Path(__file__).parent.parent.parent


def start(directory: Path, gpu_id: int | None = None, **handler: Any) -> Service:
    """Loads `directory/model` with this `handler:` section."""
    (directory / "model-config.yaml").write_text(yaml.safe_dump({"responseTimeout": 60, "handler": handler}))
    metrics = MetricsCacheYamlImpl(str(ROOT / "metrics.yaml"))
    metrics.initialize_cache()
    metrics.model_name = "tiny"
    loaded = TransformerHandler()
    manifest = {"model": {"modelName": "tiny", "modelVersion": "1.0", "configFile": "model-config.yaml"}}
    service = Service("tiny", str(directory), manifest, loaded.handle, gpu_id, 64, True, metrics)
    service.handler = loaded  # for tests that look inside
    loaded.initialize(service.context)
    return service
