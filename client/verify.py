"""Whether a service encodes prompts as the whole model does here: the reference is transformers, run directly.

The reference needs torch, transformers and room for the model; it does what diffusers' FLUX.2 pipelines do: the
chat template, padding to the maximum, every layer, the hidden states of those that were asked for side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
# In other formats, whose roundings add up over the layers: of a prompt's numbers with the reference's, and of each
# token's. Diffusers in bfloat16 is itself no nearer to float32 than 0.9996 after 30 layers.
COSINE, TOKEN_COSINE = 0.9999, 0.999


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
    if not prompts:
        raise ValueError("there is no prompt to compare")
    about = management.about(name)
    if about.get("task") != "prompt-encoding":
        raise ValueError(f"{name} does {about.get('task')}, not prompt-encoding")
    if not (model / "config.json").is_file():
        raise ValueError(f"--model {model}: holds no config.json")
    from reference.answers import prompt_encoding, quiet  # noqa: PLC0415  torch, which the rest does without

    quiet()
    reference, nearness = prompt_encoding(model, about), Nearness()
    for prompt in prompts:
        right = reference(prompt=prompt).tensors
        [wanted], [ids] = right["prompt_embeds"], right["text_ids"]
        answer = inference.encode_prompt(name, prompt)
        if answer.prompt_embeds.shape[1:] != wanted.shape or not _close(answer.text_ids[0], ids, 0):
            raise Differs(
                f"{name} answers {tuple(answer.prompt_embeds.shape[1:])}, the reference {tuple(wanted.shape)}"
            )
        nearness.add(answer.prompt_embeds[0].float(), wanted.float())
    said = f"{len(prompts)} prompts: {nearness}"
    if not (nearness.exact if about["dtype"] == "float32" else nearness.similar):
        raise Differs(f"{name} is not the reference in {about['dtype']}: {said}")
    return said


@dataclass
class Nearness:
    """How far the answers so far are from the reference."""

    off: float = 0.0  # the largest difference, in parts of the largest value
    cosine: float = 1.0  # of a prompt's numbers, the least
    token_cosine: float = 1.0  # of a token's
    exact: bool = True

    def add(self, found: Any, wanted: Any) -> None:
        """One more prompt, (length, width) float32 each. Raises Differs where an answer holds no numbers."""
        from torch.nn.functional import cosine_similarity  # noqa: PLC0415

        if not found.isfinite().all():  # max() and min() would pass over them
            raise Differs("an answer holds what is no number")
        largest = float(wanted.abs().max())
        self.off = max(self.off, float((found - wanted).abs().max()) / largest)
        self.exact &= _close(found, wanted, EXACT * largest)
        self.cosine = min(
            self.cosine, float(cosine_similarity(found.double().flatten(), wanted.double().flatten(), 0))
        )
        tokens = cosine_similarity(found.double(), wanted.double(), -1)[wanted.abs().sum(-1) > 0]
        self.token_cosine = min(self.token_cosine, float(tokens.min()))

    @property
    def similar(self) -> bool:
        """Whether it is as near as formats of fewer digits allow."""
        return self.cosine >= COSINE and self.token_cosine >= TOKEN_COSINE

    def __str__(self) -> str:
        off = f"{self.off:.1e} of the largest value off at most"
        return f"{off}, cosine at least {self.cosine:.6f}, a token's {self.token_cosine:.6f}"


def _close(found: Any, wanted: Any, tolerance: float) -> bool:
    import torch  # noqa: PLC0415

    try:
        torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)
    except AssertionError:
        return False
    return True
