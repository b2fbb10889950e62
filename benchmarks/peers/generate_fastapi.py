"""The seed's generating service, rebuilt from its description: one FastAPI application, one `generate` a request.

Its own code is another's, so nothing of it is here: a model and a tokenizer loaded in the lifespan, the chat
template where there is one, and whole answers with their token counts.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import torch
from fastapi import FastAPI
from pydantic import BaseModel, Field
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = os.environ["BENCH_MODEL"]
loaded: dict[str, object] = {}


class Asked(BaseModel):
    """A request."""

    prompt: str = Field(min_length=1)
    max_new_tokens: int = Field(128, ge=1, le=512)


class Answered(BaseModel):
    """An answer."""

    response: str
    input_token_count: int
    output_token_count: int


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads once."""
    loaded["tokenizer"] = AutoTokenizer.from_pretrained(MODEL)
    loaded["model"] = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    yield
    loaded.clear()


app = FastAPI(lifespan=lifespan)


@app.post("/generate", response_model=Answered)
def generate(asked: Asked) -> Answered:
    """In a thread of the pool, as FastAPI runs what is not asynchronous."""
    model, tokenizer = loaded["model"], loaded["tokenizer"]
    text = asked.prompt
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)  # a BERT's tokenizer gives them
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=asked.max_new_tokens)
    size = inputs["input_ids"].shape[1]
    new = output[0][size:]
    return Answered(
        response=tokenizer.decode(new, skip_special_tokens=True),
        input_token_count=size,
        output_token_count=len(new),
    )
