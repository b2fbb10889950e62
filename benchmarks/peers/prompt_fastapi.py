"""The seed's prompt service, rebuilt from its description: one FastAPI application, JSON lists both ways.

What its users would run: the whole model in bfloat16, one forward for each request, padding computed, a response
model that checks every number. Its own code is another's, so nothing of it is here; two things differ from it: the
device is the CPU, and a tokenizer stands where its processor stood, which adds images.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import torch
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoTokenizer, Mistral3ForConditionalGeneration

MODEL = os.environ["BENCH_MODEL"]
LAYERS = [int(layer) for layer in os.environ["BENCH_LAYERS"].split(",")]
SYSTEM = os.environ["BENCH_SYSTEM"]
LENGTH = 512
loaded: dict[str, object] = {}


class Asked(BaseModel):
    """A request."""

    prompt: str | list[str]


class Encoded(BaseModel):
    """An answer."""

    prompt_embeds: list[list[list[float]]]
    text_ids: list[list[list[int]]]
    shapes: dict[str, list[int]]
    time_ms: float


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads once."""
    loaded["model"] = Mistral3ForConditionalGeneration.from_pretrained(MODEL, dtype=torch.bfloat16).eval()
    loaded["tokenizer"] = AutoTokenizer.from_pretrained(MODEL)
    torch.set_grad_enabled(False)
    yield
    loaded.clear()


app = FastAPI(lifespan=lifespan)


def encode(prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """(prompts, length, layers x width) bfloat16, and (prompts, length, 4) int64."""
    model, tokenizer = loaded["model"], loaded["tokenizer"]
    chats = [
        [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt.replace("[IMG]", "")}]
        for prompt in prompts
    ]
    inputs = tokenizer.apply_chat_template(
        chats,
        add_generation_prompt=False,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        padding="max_length",
        truncation=True,
        max_length=LENGTH,
    )
    torch.set_grad_enabled(False)  # a thread's own
    output = model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        output_hidden_states=True,
        use_cache=False,
    )
    states = torch.stack([output.hidden_states[layer] for layer in LAYERS], dim=1)
    embeds = states.permute(0, 2, 1, 3).reshape(len(prompts), LENGTH, -1)
    ids = torch.zeros(len(prompts), LENGTH, 4, dtype=torch.int64)
    ids[:, :, 3] = torch.arange(LENGTH)
    return embeds, ids


@app.post("/predict", response_model=Encoded)
def predict(asked: Asked) -> Encoded:
    """In a thread of the pool, as FastAPI runs what is not asynchronous."""
    start = time.time()
    embeds, ids = encode([asked.prompt] if isinstance(asked.prompt, str) else asked.prompt)
    took = (time.time() - start) * 1000
    embeds, ids = embeds.cpu().to(torch.float32), ids.cpu().to(torch.int32)
    shapes = {"prompt_embeds": list(embeds.shape), "text_ids": list(ids.shape)}
    return Encoded(prompt_embeds=embeds.tolist(), text_ids=ids.tolist(), shapes=shapes, time_ms=took)
