"""The `openai` package's clients: many of their requests at once, streams and whole answers."""

from __future__ import annotations

import asyncio

import openai
from openai.types.responses import Response

from tests.support.rounds import PROMPTS, messages


def twenty_four_say(base_url: str, new: int) -> list[tuple[str, str]]:
    """A prompt and what was answered to it, of 24 requests at once: every other one a stream, with its usage."""

    async def ask(client: openai.AsyncOpenAI, prompt: str, stream: bool) -> tuple[str, str]:
        asked = {"model": "chat", "messages": messages(prompt), "max_tokens": new, "temperature": 0}
        if not stream:
            answer = await client.chat.completions.create(**asked)  # type: ignore[call-overload]
            assert answer.usage.prompt_tokens
            return prompt, answer.choices[0].message.content
        more = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = [chunk async for chunk in await client.chat.completions.create(**asked, **more)]  # type: ignore[call-overload]
        assert chunks[-1].usage.completion_tokens and not chunks[-1].choices
        return prompt, "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])

    async def everybody() -> list[tuple[str, str]]:
        async with openai.AsyncOpenAI(base_url=base_url, api_key="-", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, PROMPTS[n % 4], n % 2 == 0) for n in range(24)))

    return asyncio.run(everybody())


def twelve_responses_say(base_url: str, new: int) -> list[tuple[str, str]]:
    """The same of 12 responses: whole, and as streams whose last event has all that was said."""

    async def ask(client: openai.AsyncOpenAI, prompt: str, stream: bool) -> tuple[str, str]:
        asked = {"model": "chat", "input": prompt, "max_output_tokens": new, "temperature": 0}
        if not stream:
            answer = await client.responses.create(**asked)  # type: ignore[call-overload]
            return prompt, said(answer)
        events = [event async for event in await client.responses.create(**asked, stream=True)]  # type: ignore[call-overload]
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == said(events[-1].response) and len(deltas) > 1
        return prompt, "".join(deltas)

    def said(answer: Response) -> str:
        assert answer.usage and answer.usage.input_tokens and answer.usage.output_tokens
        assert answer.status in ("completed", "incomplete")
        return answer.output_text

    async def everybody() -> list[tuple[str, str]]:
        async with openai.AsyncOpenAI(base_url=base_url, api_key="-", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, PROMPTS[n % 4], n % 2 == 0) for n in range(12)))

    return asyncio.run(everybody())
