"""Whether a service encodes prompts as the whole model does here: the reference is transformers, run directly.

The reference needs torch, transformers and room for the model; it does what diffusers' FLUX.2 pipelines do: the
chat template, padding to the maximum, every layer, the hidden states of those that were asked for side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from client.errors import ClientError
from client.inference import InferenceClient
from client.management import ManagementClient

PROMPTS = (
    "a cat on a roof",
    "",
    "A wide shot of a harbour at dawn, fishing boats in the foreground, soft mist over the water, warm light.",
    "word " * 600,  # longer than most limits: cut
)
EXACT = 1e-5  # of the largest value, in float32
COSINE = 0.9999  # of each token's vector with the reference's, in other formats


class Differs(ClientError):
    """The service's answer is not the reference's."""


def verify(
    inference: InferenceClient,
    management: ManagementClient,
    name: str,
    model: Path,
    prompts: Sequence[str] = PROMPTS,
) -> str:
    """Holds the service against the reference, prompt by prompt; a line that says how near it is.

    Raises:
        Differs: it is too far off.
        ValueError: the model that is served encodes no prompts, or there is no such directory.
    """
    import torch  # noqa: PLC0415  the rest of the client needs none

    about = management.about(name)
    if about.get("task") != "prompt-encoding":
        raise ValueError(f"{name} does {about.get('task')}, not prompt-encoding")
    if not (model / "config.json").is_file():
        raise ValueError(f"--model {model}: holds no config.json")
    loaded = _load(model)
    worst, least = 0.0, 1.0
    for prompt in prompts:
        wanted = reference(loaded, prompt, about)
        found = inference.encode_prompt(name, prompt).prompt_embeds[0]
        if found.shape != wanted.shape:
            raise Differs(f"{name} answers {tuple(found.shape)}, the reference {tuple(wanted.shape)}")
        worst = max(worst, float((found.float() - wanted).abs().max() / wanted.abs().max()))
        cosines = torch.nn.functional.cosine_similarity(found.float(), wanted, dim=-1)
        least = min(least, float(cosines[wanted.abs().sum(-1) > 0].min()))
    said = f"{len(prompts)} prompts: {worst:.1e} of the largest value off at most, cosine at least {least:.6f}"
    if worst > EXACT if about["dtype"] == "float32" else least < COSINE:
        raise Differs(f"{name} is not the reference in {about['dtype']}: {said}")
    return said


def reference(loaded: tuple[Any, Any], prompt: str, about: Mapping[str, Any]) -> Any:
    """(length, layers x width) float32: every layer of the whole model, padding included."""
    from reference.answers import hidden_states, templated  # noqa: PLC0415

    model, tokenizer = loaded
    text = templated(tokenizer, prompt, about)
    states, _ = hidden_states(model, tokenizer, text, about["max_length"], about["layers"])
    return states.float()


def _load(directory: Path) -> tuple[Any, Any]:
    import transformers  # noqa: PLC0415

    from reference.answers import prompt_tokenizer  # noqa: PLC0415

    transformers.logging.disable_progress_bar()
    offline = {"local_files_only": True, "trust_remote_code": False}
    model = transformers.AutoModel.from_pretrained(directory, dtype="float32", use_safetensors=True, **offline)
    return model.eval(), prompt_tokenizer(directory)
