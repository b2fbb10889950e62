"""What diffusers' FLUX.2 pipelines make of prompts: (prompts, length, width), and ids of (prompts, length, 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.flux2.pipeline_flux2 import Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline
from transformers import AutoTokenizer, Mistral3ForConditionalGeneration, Qwen3ForCausalLM

# Their functions, whose defaults are the pipelines' own.
FLUX2 = Flux2Pipeline._get_mistral_3_small_prompt_embeds
KLEIN = Flux2KleinPipeline._get_qwen3_prompt_embeds
KINDS: dict[Callable[..., torch.Tensor], Any] = {FLUX2: Mistral3ForConditionalGeneration, KLEIN: Qwen3ForCausalLM}


def encoded(
    function: Callable[..., torch.Tensor],
    model: Path,
    prompts: Sequence[str],
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One of the functions, with its options."""
    loaded = KINDS[function].from_pretrained(model, dtype=dtype).eval()
    with torch.inference_mode():
        embeds = function(loaded, AutoTokenizer.from_pretrained(model), list(prompts), **options)
    return embeds, text_ids(embeds)


def text_ids(embeds: torch.Tensor) -> torch.Tensor:
    """The ids that go with embeddings, which are the same for both."""
    return Flux2Pipeline._prepare_text_ids(embeds)
