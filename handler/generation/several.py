"""Several answers to one request of the OpenAI protocol, of an application that gives one: prompts, and `n`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Sequence
from functools import partial
from typing import Any

from handler.generation.openai_protocol import Document, Stream, event_of


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
    return {**answers[0], "choices": choices, "usage": _usage([answer["usage"] for answer in answers], n)}


def _usage(usages: Sequence[Document], n: int) -> Document:
    read = sum(usage["prompt_tokens"] for usage in usages[::n])
    said = sum(usage["completion_tokens"] for usage in usages)
    return {"prompt_tokens": read, "completion_tokens": said, "total_tokens": read + said}


async def interleaved(streams: Sequence[AsyncIterable[str]], n: int, name: str) -> AsyncIterator[bytes]:
    """The events of their streams as one stream's, as they come; its last event has the usage of all.

    Where one fails that is the last event, and the others end.

    Args:
        streams: of one choice each.
        n: answers to each prompt.
        name: the request's.
    """
    arrived: asyncio.Queue[tuple[int, str] | None] = asyncio.Queue()  # None: all have ended
    ended: list[Document] = [{} for _ in streams]  # each one's last event
    failed = False

    async def read(index: int, stream: AsyncIterable[str]) -> None:
        async for piece in stream:
            arrived.put_nowait((index, piece))

    def tell(index: int, chunk: Document, event: bytes) -> bytes:
        nonlocal failed
        if "error" in chunk:
            failed = True
            return event
        if "usage" in chunk:
            ended[index] = {**chunk}
            del chunk["usage"]
        return event_of({**chunk, "id": name, "choices": [{**one, "index": index} for one in chunk["choices"]]})

    events = [Stream(partial(tell, index)) for index in range(len(streams))]
    reading = asyncio.ensure_future(all_of([read(index, stream) for index, stream in enumerate(streams)]))
    reading.add_done_callback(lambda _: arrived.put_nowait(None))
    try:
        while (found := await arrived.get()) is not None:
            index, piece = found
            yield events[index].piece(piece.encode(), last=False)
            if failed:
                return
        await reading
        usage = _usage([last["usage"] for last in ended], n)
        yield event_of({**ended[0], "id": name, "choices": [], "usage": usage})
    finally:
        reading.cancel()
