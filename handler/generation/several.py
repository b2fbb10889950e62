"""Several answers to one request of the OpenAI protocol, of an application that gives one: prompts, and `n`."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from handler.generation.openai_protocol import Document


def each_alone(body: Document) -> list[Document]:
    """The requests that a request stands for: `n` of its first prompt, `n` of its second, and so on.

    A prompt is a string, or its tokens.
    """
    prompts = body.get("prompt")
    if not (isinstance(prompts, list) and prompts and all(isinstance(prompt, (str, list)) for prompt in prompts)):
        prompts = [prompts]
    alone = {name: value for name, value in body.items() if name not in ("prompt", "n")}
    said = [alone if prompt is None else {**alone, "prompt": prompt} for prompt in prompts]
    return [_seeded(one, number) for one in said for number in range(body.get("n", 1))]


def _seeded(body: Document, number: int) -> Document:
    """A request of its own: one seed would draw the same answer each time."""
    return {**body, "seed": body["seed"] + number} if body.get("seed") is not None else dict(body)


async def all_of(answers: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """What all of them give. If one fails nobody waits for the others, and they end."""
    tasks = [asyncio.ensure_future(answer) for answer in answers]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def together(answers: Sequence[Document], n: int) -> Document:
    """Their answers as one: a prompt's tokens count once, however many answers it has."""
    choices = [{**answer["choices"][0], "index": index} for index, answer in enumerate(answers)]
    read = sum(answer["usage"]["prompt_tokens"] for answer in answers[::n])
    said = sum(answer["usage"]["completion_tokens"] for answer in answers)
    usage = {"prompt_tokens": read, "completion_tokens": said, "total_tokens": read + said}
    return {**answers[0], "choices": choices, "usage": usage}
