"""The generate extension of KServe's second protocol, also Triton's: `{"text_input": …}` -> `{"text_output": …}`.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/generate_rest.yaml
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_generate.md
"""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from handler.errors import HandlerError, InvalidRequest
from handler.generation import native_route
from handler.generation.openai_protocol import (
    COMPLETIONS,
    Document,
    Stream,
    Usage,
    event_of,
    message_of,
    said_in,
    text_of,
)
from handler.generation.openai_requests import PENALTY, REPETITION, TEMPERATURE, TOP_P
from handler.generation.route import Route, Served
from handler.protocols.gathering import read_mapping
from handler.request import MOST_PROBLEMS
from handler.rules import BOOLEAN, TEXT, Rule, check, integer, key, label, optional, strings
from handler.wire import Reply, error_reply, plain_error

PASSED_ON = (*native_route.PASSED_ON, "repetition_penalty")  # named as vLLM has them beside the protocol


@dataclass(frozen=True)
class Asked:
    """The request, whose parameters may stand in `parameters` or beside it, as Triton has it."""

    text_input: str = key(TEXT, "what to continue")
    max_tokens: int | None = key(optional(integer(1)), "the most tokens of the answer", None)
    temperature: float | None = key(optional(TEMPERATURE), "0: always the likeliest token", None)
    top_p: float | None = key(optional(TOP_P), "of the probability that is drawn from", None)
    top_k: int | None = key(optional(integer(1)), "of the tokens that are drawn from", None)
    stop: list[str] | None = key(optional(strings(0, 5)), "what ends the answer", None)
    presence_penalty: float | None = key(optional(PENALTY), "against what was said at all", None)
    frequency_penalty: float | None = key(optional(PENALTY), "against what was said often", None)
    repetition_penalty: float | None = key(optional(REPETITION), "against what the prompt has or was said", None)
    seed: int | None = key(optional(integer(0)), "of what is drawn", None)
    best_of: int | None = key(optional(Rule("1", lambda v: v == 1 and v is not True)), "1", None)
    stream: bool | None = key(optional(BOOLEAN), "which the path says", None)
    exclude_input_in_output: bool | None = key(optional(BOOLEAN), "false: the answer begins with text_input", None)


def read(document: Document, served: Served, streams: bool) -> Route:
    """A request to its route; the text goes to the model as it is. Raises InvalidRequest or BadRequest."""
    parameters = read_mapping("parameters", document.get("parameters"))
    beside = {name: value for name, value in document.items() if name != "parameters"}
    if both := beside.keys() & parameters.keys():
        raise InvalidRequest(f"parameters: {label(min(both))} is also beside it")
    if problems := check({**beside, **parameters}, Asked, quote=False, most=MOST_PROBLEMS):
        raise InvalidRequest("; ".join(map(str, problems)))
    asked = Asked(**beside, **parameters)
    if asked.stream and not streams:
        raise InvalidRequest("stream: generate answers whole; ask generate_stream")
    body: Document = {name: getattr(asked, name) for name in PASSED_ON if getattr(asked, name) is not None}
    ask = served.ask(COMPLETIONS, {**body, "prompt": asked.text_input, "stream": streams}, asked.max_tokens)
    about = {"model_name": served.name, "model_version": served.version}
    before = [asked.text_input] if asked.exclude_input_in_output is False else []
    usage = Usage()

    def whole(status: int, body: bytes, content_type: str) -> Reply:
        answered = orjson.loads(body)
        if status != 200:
            return Reply(orjson.dumps({"error": message_of(answered)}), status=status)
        usage.note(answered)
        [choice] = answered["choices"]
        return Reply(orjson.dumps({**about, "text_output": "".join([*before, text_of(choice)])}))

    def tell(document: Document, event: bytes) -> bytes:
        usage.note(document)
        if "error" in document:
            return event_of({"error": message_of(document)})
        text = said_in(document)
        if not text:
            return b""
        said = "".join([*before, text])
        before.clear()
        return event_of({**about, "text_output": said, "done": False})

    def end() -> bytes:
        return event_of({**about, "text_output": "".join(before), "done": True})

    return Route(ask, whole, Stream(tell, end).piece, streams, refuse, usage, _failed)


def refuse(error: HandlerError) -> Reply:
    """An error, as the protocol has it."""
    return error_reply(error, plain_error)


def _failed() -> bytes:
    return event_of({"error": "the engine failed"})
