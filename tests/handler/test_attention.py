"""Attention by request: what `generate` says, for each kind of layer, however requests share steps."""

from __future__ import annotations

import random
from typing import Any

import pytest
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from handler.generation import attention
from tests.support import tiny_models, worker
from tests.support.reference import generated
from tests.support.rounds import Frontend, wing

NEW = 24
WORDS = ("not", "a", "film", "story", "wonderful", "battery", "they", "sent")


def llama(**sizes: Any) -> Any:
    return LlamaForCausalLM(LlamaConfig(**sizes))


def all_slide(**sizes: Any) -> Any:
    return MistralForCausalLM(MistralConfig(**sizes, sliding_window=16))


def some_slide(**sizes: Any) -> Any:
    kinds = ["sliding_attention", "full_attention"]
    return Qwen3ForCausalLM(Qwen3Config(**sizes, use_sliding_window=True, sliding_window=16, layer_types=kinds))


def other_scale(**sizes: Any) -> Any:
    kinds = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(**sizes, query_pre_attn_scalar=7, sliding_window=16, layer_types=kinds)
    return Gemma3ForCausalLM(config)


@pytest.mark.parametrize("kind", [llama, all_slide, some_slide, other_scale])
@pytest.mark.parametrize("step", [512, 32])  # tokens, of which a prompt has up to 200
def test_a_crowd_says_what_each_says_alone(tmp_path, kind, step):
    model = tiny_models.decoder(tmp_path / "model", kind)
    asked = {"engine": "transformers", "max_new_tokens": NEW, "max_batch_tokens": step, "cache_tokens": 8192}
    service = worker.start(tmp_path, task="text-generation", **asked)
    implementation = wing(service).engine.load.__self__._cb.model.config._attn_implementation
    assert implementation == attention.NAME
    frontend, draw = Frontend(service), random.Random(7)
    prompts = [" ".join(draw.choices(WORDS, k=draw.choice([1, 2, 5, 20, 40]))) for _ in range(20)]
    clients = []
    for prompt in prompts:
        clients.append(frontend.post({"prompt": prompt, "max_tokens": NEW, "temperature": 0}, "v1/completions"))
        if draw.random() < 0.4:
            frontend.round()
    frontend.run()
    for prompt, client in zip(prompts, clients, strict=True):
        assert client.document["choices"][0]["text"] == generated(model, prompt, NEW, chat=False)[0]


def test_eager_is_left_as_it_is(tmp_path):
    model = tiny_models.chatter(tmp_path / "model")
    service = worker.start(tmp_path, task="text-generation", attention="eager", max_new_tokens=NEW)
    implementation = wing(service).engine.load.__self__._cb.model.config._attn_implementation
    assert implementation == "paged|eager"
    frontend = Frontend(service)
    client = frontend.ask({"prompt": "a film", "max_tokens": 4, "temperature": 0}, "v1/completions")
    assert client.document["choices"][0]["text"] == generated(model, "a film", 4, chat=False)[0]
