"""A worker without its frontend: `ts.service.Service` over an archive's content, loaded as TorchServe loads it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.service import Service

from handler.transformer_handler import TransformerHandler

ROOT = Path(__file__).parent.parent.parent
# What TorchServe would give it: on a machine with a GPU the same tests run there (benchmarks/gpu/README.md).
GPU_ID = 0 if os.environ.get("TESTS_ON") == "cuda" else None


def start(directory: Path, gpu_id: int | None = GPU_ID, **handler: Any) -> Service:
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


def poison(service: Service, word: str) -> None:
    """Makes every row with this word in it NaN, and no other row."""
    loaded = service.handler.pipeline.task.encoder.loaded
    embeddings = loaded.model.get_input_embeddings()
    [token] = loaded.tokenizer(word, add_special_tokens=False)["input_ids"]
    weight = embeddings.weight.detach().clone()  # an output layer may share it
    weight[token] = float("nan")
    embeddings.weight = torch.nn.Parameter(weight)


def short_of_memory(
    service: Service, fits: Callable[[Sequence[Any]], bool], error: Exception
) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """The task's forward, which raises the error for rows that do not fit."""
    forward = service.handler.pipeline.task.forward

    def limited(rows: Sequence[Any]) -> Sequence[Any]:
        if not fits(rows):
            raise error
        return forward(rows)

    return limited
