"""What a model directory is for, where nobody has said it: by the model's own config.json, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from handler.config import GENERATION, TASKS
from serving.errors import CannotServe

ENDINGS = {  # of the class that a model's config names -> the task
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "Model": "feature-extraction",
}


def is_model(folder: Path) -> bool:
    """Whether a directory is a model, and not one of archives."""
    return (folder / "config.json").is_file()


def task_of(model: Path) -> str:
    """The task of a model directory.

    Raises:
        CannotServe: its config does not tell.
    """
    if (model / "modules.json").is_file():
        return "feature-extraction"  # sentence-transformers
    config = _config(model)
    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    for ending, task in ENDINGS.items():
        if name.endswith(ending):
            # One logit is a score: sentence-transformers' cross-encoders.
            one = task == "text-classification" and _labels(config) == 1
            return "text-ranking" if one else task
    known = ", ".join((*TASKS, *GENERATION))
    raise CannotServe(
        f"{model / 'config.json'} does not tell the task ({name or 'no architecture'}); TASK: {known}"
    )


def _config(model: Path) -> dict[str, Any]:
    try:
        config = json.loads((model / "config.json").read_text())
    except (OSError, ValueError) as err:
        raise CannotServe(f"{model / 'config.json'} cannot be read: {err}") from err
    return config if isinstance(config, dict) else {}


def _labels(config: dict[str, Any]) -> int:
    labels = config.get("id2label")
    return len(labels) if isinstance(labels, dict) else int(config.get("num_labels", 2))
