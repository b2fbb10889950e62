"""Whether a model's files fit what the recipe asks of them, where that can be told without loading it."""

from __future__ import annotations

import json
from typing import Any

from archiver.snapshot import Snapshot
from handler.config import PROMPTS, HandlerConfig

TEMPLATES = ("chat_template.jinja", "chat_template.json")


def problems(config: HandlerConfig, snapshot: Snapshot) -> list[str]:
    """Everything that does not fit, a line each."""
    if config.task not in PROMPTS:
        return []
    model = _read(snapshot, "config.json")
    depth = model.get("text_config", model).get("num_hidden_layers")
    lines = []
    if isinstance(depth, int) and (beyond := [layer for layer in config.layers or () if layer > depth]):
        lines.append(f"handler.layers: {beyond}: the model has {depth} layers")
    has_template = any(name in snapshot.files for name in TEMPLATES)
    if not has_template and not _read(snapshot, "tokenizer_config.json").get("chat_template"):
        lines.append(f"the model's tokenizer has no chat template ({' or '.join(TEMPLATES)})")
    return lines


def _read(snapshot: Snapshot, name: str) -> dict[str, Any]:
    return dict(json.loads(snapshot.sources[name].read_text())) if name in snapshot.files else {}
