"""A frontend's part in continuous batching: requests that live over many rounds, and clients that leave."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from transformers import AutoTokenizer

from tests.support import frames

PROMPTS = ("the film was not good", "a wonderful story, well told", "they sent another one", "")
NEW = 12  # tokens of an answer


@dataclass
class Client:
    """One request, as far as it has been answered."""

    request: frames.Request
    sent: bool = False
    pieces: list[frames.Response] = field(default_factory=list)
    done: bool = False
    gone: bool = False

    @property
    def status(self) -> int:
        return self.pieces[0].status

    @property
    def body(self) -> bytes:
        return b"".join(piece.body for piece in self.pieces)

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of each event of a stream."""
        found = [event.partition(b"data: ")[2] for event in self.body.split(b"\n\n") if event]
        return [event.decode() if event == b"[DONE]" else json.loads(event) for event in found]


class Frontend:
    """Calls a worker's service round by round, as ContinuousBatching.java does."""

    def __init__(self, service: Any) -> None:
        self.service = service
        self.live: dict[str, Client] = {}
        self._count = 0

    def post(self, document: Any, path: str = "") -> Client:
        """A new request, which the next round hands over."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        client = Client(frames.post(body, url_path=path))
        self._count += 1
        self.live[f"request-{self._count}"] = client
        return client

    def leave(self, client: Client) -> None:
        """Its connection is gone, at which the frontend looks when its answer goes on."""
        client.gone = True

    def round(self) -> None:
        """One round."""
        rows = {
            name: replace(client.request, parameters=()) if client.sent else client.request
            for name, client in self.live.items()
        }
        for client in self.live.values():
            client.sent = True
        for name, piece in frames.one_round(self.service, rows).items():
            client = self.live[name]
            follows = piece.headers.get("ts_stream_next")
            assert follows != "false" or client.pieces, "a stream ends that has not begun (RestJob.java:148)"
            assert follows or not client.pieces, "a stream is followed by a whole answer"
            client.pieces.append(piece)
            client.done = follows != "true"
            if client.done or client.gone:
                del self.live[name]

    def run(self, *clients: Client, seconds: float = 60) -> None:
        """Rounds until these are answered, or all."""
        end = time.monotonic() + seconds
        while any(not client.done for client in clients or self.live.values()):
            assert time.monotonic() < end, "not answered in time"
            self.round()

    def ask(self, document: Any, path: str = "") -> Client:
        """One request, alone."""
        client = self.post(document, path)
        self.run(client)
        return client

    def ask_in_pieces(self, document: Any, path: str = "", tries: int = 5) -> Client:
        """One stream, alone; again where all of it came at once, as on a machine that is busy it may."""
        while len((client := self.ask(document, path)).pieces) < 2:
            tries -= 1
            assert tries, "it came in one piece each time"
        return client


def messages(prompt: str) -> list[dict[str, str]]:
    """A conversation that begins."""
    return [{"role": "user", "content": prompt}]


def thirty_two_say_what_each_says_alone(frontend: Frontend, alone: Callable[[str], tuple[str, int, int]]) -> None:
    """Half of them as streams."""
    asked = [
        {"prompt": PROMPTS[number % 4], "max_new_tokens": NEW, "stream": number % 2 == 1} for number in range(32)
    ]
    clients = [frontend.post(document) for document in asked]
    frontend.run()
    wanted = {prompt: whole(alone(prompt)[0]) for prompt in PROMPTS}
    for document, client in zip(asked, clients, strict=True):
        assert client.pieces[0].content_type.startswith("text/event-stream") == document["stream"]
        events = client.events[:-1] if document["stream"] else [{"text": client.document["response"]}]
        assert whole("".join(event["text"] for event in events)) == wanted[document["prompt"]]


def a_speakers_name_is_read(frontend: Frontend, model: Path) -> None:
    """By the chat template, which shows it."""
    asked = [{**messages("a")[0], "name": "ann"}]
    answered = frontend.ask({"messages": asked, "max_tokens": NEW}, "v1/chat/completions").document
    tokens = AutoTokenizer.from_pretrained(model).apply_chat_template(asked, add_generation_prompt=True)
    assert answered["usage"]["prompt_tokens"] == len(tokens["input_ids"])


def a_response_says_what_a_chat_says(frontend: Frontend) -> None:
    """Whole and streamed, and to the end of a conversation that has all of what a response's items can be."""
    called = {"call_id": "1", "name": "f", "arguments": '{"a": 1}'}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "c"}]},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": "d"},
        {"type": "function_call", "id": "fc_1", "status": "completed", **called},
        {"type": "function_call_output", "call_id": "1", "output": "e"},
        {
            "role": "assistant",
            "content": [{"type": "output_text", "text": "f"}, {"type": "output_text", "text": "g"}],
        },
        {"type": "message", "role": "user", "content": "h"},
    ]
    said = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "reasoning": "c", "reasoning_content": "c", "content": "d", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "e"},
        {"role": "assistant", "content": "fg"},
        {"role": "user", "content": "h"},
    ]
    asked = [({"input": prompt}, messages(prompt)) for prompt in PROMPTS]
    for given, conversation in (*asked, ({"input": items, "instructions": "be kind"}, said)):
        more = {"temperature": 0, "model": "tiny"}
        chat = frontend.ask({"messages": conversation, "max_tokens": NEW, **more}, "v1/chat/completions").document
        request = {**given, "max_output_tokens": NEW, **more}
        answered = Response.model_validate(frontend.ask(request, "v1/responses").document, strict=True)
        wanted = chat["choices"][0]["message"]["content"]
        assert answered.output_text == wanted and answered.model == "tiny"
        cut = chat["choices"][0]["finish_reason"] == "length"
        assert answered.status == ("incomplete" if cut else "completed")
        used = (answered.usage.input_tokens, answered.usage.output_tokens)
        assert used == (chat["usage"]["prompt_tokens"], chat["usage"]["completion_tokens"])
        streamed = frontend.ask({**request, "stream": True}, "v1/responses")
        events = [TypeAdapter(ResponseStreamEvent).validate_python(event) for event in streamed.events]
        assert b"[DONE]" not in streamed.body and [event.sequence_number for event in events] == [
            *range(len(events))
        ]
        assert events[0].type == "response.created" and events[-1].type == f"response.{answered.status}"
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == events[-1].response.output_text and whole("".join(deltas)) == whole(wanted)
        assert events[-1].response.usage == answered.usage


def wing(service: Any) -> Any:
    """The generation wing of a worker's service."""
    return service.handler.pipeline


def settled(service: Any, seconds: float = 3.0) -> None:
    """Nothing is alive any more, in the worker or in the engine."""
    end = time.monotonic() + seconds
    while wing(service).live or (load := wing(service).engine.load()).running + load.waiting:
        assert time.monotonic() < end, "still generating"
        time.sleep(0.05)


def whole(text: str) -> str:
    """Without a character that the cap has cut in two: only a whole answer of transformers has a sign for it."""
    return text.rstrip("\ufffd")
