"""The `openai` package's asynchronous client: many of its requests at once, streams and whole answers."""

from __future__ import annotations

import asyncio

import openai

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
