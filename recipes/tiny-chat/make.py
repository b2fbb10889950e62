"""Makes model/ again: a Llama from a configuration, with random weights. It says nothing of sense.

It is for trying out text generation without a download, and small enough to lie in the repository.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
CORPUS = (
    "Tell me a story about the sea, the old harbour and a boat that came back in the morning.",
    "What is the best way to serve a model? One archive, one server, and as few surprises as can be.",
    "The answer is short: the weather was good, the bread was warm, and nobody was in a hurry.",
)
SPECIAL = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{%- for message in messages -%}<|{{ message.role }}|>{{ message.content }}<|end|>{%- endfor -%}"
    "{%- if add_generation_prompt %}<|assistant|>{% endif -%}"
)
CONTEXT = 2048


def main() -> None:
    """Writes model/."""
    place = HERE / "model"
    shutil.rmtree(place, ignore_errors=True)
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        eos_token=SPECIAL[0],
        pad_token=SPECIAL[0],
        model_max_length=CONTEXT,
        model_input_names=["input_ids", "attention_mask"],
        chat_template=TEMPLATE,
    )
    tokenizer.save_pretrained(place)
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,  # of 32, the least that vLLM has kernels for
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2,  # so that the likeliest tokens are far apart, and the same on every machine
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(place)


if __name__ == "__main__":
    main()
