"""What the generation wing needs of an engine; one module for each, named in ENGINES."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from handler.generation.application import Application

# handler.engine -> the module that builds it. Each has build(directory, config, device, name) -> Engine.
ENGINES = {
    "transformers": "handler.generation.transformers_engine",
    "vllm": "handler.generation.vllm_engine",
}


@dataclass(frozen=True)
class Load:
    """What an engine has to do."""

    running: int  # requests
    waiting: int  # requests that have come and not begun
    cache_used: float | None  # of the memory for tokens, 0 to 1


@dataclass(frozen=True)
class Engine:
    """An engine with its model loaded."""

    application: Application  # speaks the OpenAI protocol
    fields: Mapping[str, frozenset[str]]  # path of the OpenAI protocol -> what its requests may hold
    has_template: bool  # whether the model's tokenizer has a chat template
    draws: bool  # whether the model's own generation_config.json samples
    about: Mapping[str, Any]  # what the management API shows
    context_tokens: int  # of a request, its answer included
    load: Callable[[], Load]
    adapters: tuple[str, ...] = ()  # names that `model` may have beside the model's own
    tells_stop: bool = False  # whether a choice that ended at a string of `stop` has it as `stop_reason`
