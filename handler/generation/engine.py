"""What the generation wing needs of an engine; one module for each, named in ENGINES."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from handler.generation.application import Application

# handler.engine -> the module that builds it. Each has build(directory, config, device, name) -> Engine.
ENGINES = {"transformers": "handler.generation.transformers_engine"}


@dataclass(frozen=True)
class Engine:
    """An engine with its model loaded."""

    application: Application  # speaks the OpenAI protocol
    has_template: bool  # whether the model's tokenizer has a chat template
    about: Mapping[str, Any]  # what the management API shows
    busy: Callable[[], int]  # requests that it holds, running or waiting
