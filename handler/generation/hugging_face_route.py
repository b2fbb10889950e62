"""Hugging Face's: `{"inputs": …, "parameters": …}`, answered as the text-generation pipeline does.

With `stream` the events are Text Generation Inference's. As in both, a text goes to the model as it is, without
the chat template; a conversation in its place goes through it.

https://huggingface.co/docs/inference-providers/tasks/text-generation
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from handler.errors import HandlerError, InvalidRequest, NotOffered
from handler.generation.openai_protocol import (
    CHAT,
    COMPLETIONS,
    Document,
    Stream,
    Usage,
    event_of,
    message_of,
    said_in,
    text_of,
)
from handler.generation.openai_requests import DRAWN, OBJECT, PENALTY, REPETITION, TEMPERATURE, TOP_P
from handler.generation.route import Route, Served
from handler.protocols.gathering import check_keys
from handler.protocols.hugging_face import HINTS
from handler.request import MOST_PROBLEMS
from handler.rules import BOOLEAN, TEXT, Rule, check, integer, key, number, optional, strings
from handler.wire import Reply, error_reply

NO = optional(Rule("false", lambda v: v is False))
ONE = optional(Rule("1", lambda v: v == 1 and v is not True))
# As in the OpenAI protocol.
SAME = (*DRAWN, "repetition_penalty", "frequency_penalty", "seed", "typical_p", "stop")
# Names here -> names of the OpenAI protocol, and of vLLM's beside it.
RENAMED = {"num_return_sequences": "n", "truncate": "truncate_prompt_tokens", "grammar": "structured_outputs"}
NAMES = {**{name: name for name in SAME}, "stop_sequences": "stop", "adapter_id": "model", **RENAMED}
OF_A_DRAW = ("top_p", "top_k", "typical_p", "seed")
NO_ID = -1  # of a token: engines say the text, and its clients want a number
GRAMMARS = {"json": "json", "json_schema": "json", "regex": "regex"}  # kinds -> vLLM's


@dataclass(frozen=True)
class Body:
    """The request."""

    inputs: Any = key(
        Rule(
            "a string, a list of strings or a list of messages",
            lambda v: isinstance(v, str) or _are(str, v) or (_are(dict, v) and all("role" in one for one in v)),
        ),
        "what to continue, or a conversation to answer",
    )
    parameters: dict[str, Any] | None = key(optional(OBJECT), "how", None)
    options: dict[str, Any] | None = key(optional(OBJECT), "hints to the Hub, which change nothing here", None)
    stream: bool | None = key(optional(BOOLEAN), "answer piece by piece", None)


@dataclass(frozen=True)
class Parameters:
    """What stands in `parameters`, as the pipeline's `generate` and Text Generation Inference call it."""

    max_new_tokens: int | None = key(optional(integer(1)), "the most tokens of the answer", None)
    do_sample: bool | None = key(optional(BOOLEAN), "false: always the likeliest token", None)
    temperature: float | None = key(optional(TEMPERATURE), "0: always the likeliest token", None)
    top_p: float | None = key(optional(TOP_P), "of the probability that is drawn from", None)
    top_k: int | None = key(optional(integer(0)), "of the tokens that are drawn from; 0: all", None)
    typical_p: float | None = key(optional(number(0, 1)), "1; what else there is no engine does", None)
    repetition_penalty: float | None = key(optional(REPETITION), "against what was said", None)
    frequency_penalty: float | None = key(optional(PENALTY), "against what was said often", None)
    seed: int | None = key(optional(integer(0)), "of what is drawn", None)
    stop: list[str] | None = key(optional(strings(0, 4)), "what ends the answer", None)
    stop_sequences: list[str] | None = key(optional(strings(0, 4)), "another name of stop", None)
    num_return_sequences: int | None = key(optional(integer(1, 128)), "answers to each input", None)
    truncate: int | None = key(optional(integer(1)), "tokens of the input that are read, its last ones", None)
    return_full_text: bool | None = key(optional(BOOLEAN), "whether the answer begins with the input", None)
    adapter_id: str | None = key(optional(TEXT), "the adapter that answers", None)
    grammar: dict[str, Any] | None = key(
        optional(
            Rule(
                f"an object with a type of {', '.join(GRAMMARS)}, and a value",
                lambda v: isinstance(v, dict) and v.keys() == {"type", "value"} and v["type"] in (*GRAMMARS,),
            )
        ),
        "what the answer has to look like",
        None,
    )
    best_of: int | None = key(ONE, "1", None)
    num_beams: int | None = key(ONE, "1", None)
    watermark: bool | None = key(NO, "false", None)
    details: bool | None = key(optional(BOOLEAN), "whether the answer says why it ended", None)
    decoder_input_details: bool | None = key(NO, "false", None)
    top_n_tokens: int | None = key(optional(Rule("0", lambda v: v == 0 and v is not False)), "0", None)


def read(document: Document, served: Served) -> Route:
    """A request to its route. Raises BadRequest, InvalidRequest or NotOffered."""
    asked = Body(**_held(document, Body))
    parameters = _held(asked.parameters or {}, Parameters, "parameters.")
    check_keys(asked.options or {}, HINTS)
    is_chat = _are(dict, asked.inputs)
    path = CHAT if is_chat else COMPLETIONS
    body = _in_openai_terms(parameters, served)
    for theirs, ours in RENAMED.items():
        if ours in body and ours not in served.engine.fields[path]:
            raise InvalidRequest(f"parameters.{theirs}: this engine does not do this")
    alone = is_chat or isinstance(asked.inputs, str)
    prompts = [asked.inputs] if alone else asked.inputs
    detailed = bool(parameters.get("details"))
    for name, wanted in (("stream", asked.stream), ("parameters.details", detailed)):
        if wanted and len(prompts) * body.get("n", 1) > 1:
            raise InvalidRequest(f"{name}: expected one input, and one answer to it")
    if detailed and body.get("stop") and not served.engine.tells_stop:
        raise InvalidRequest(
            "parameters.details: this engine does not say whether a string of stop ended an answer"
        )
    body["messages" if is_chat else "prompt"] = prompts[0] if len(prompts) == 1 else prompts
    body["stream"] = bool(asked.stream)
    ask = served.ask(path, body, parameters.get("max_new_tokens"))
    before = prompts if parameters.get("return_full_text") else [None] * len(prompts)
    usage = Usage()

    def whole(status: int, body: bytes, content_type: str) -> Reply:
        answered = orjson.loads(body)
        if status != 200:
            return Reply(orjson.dumps(_error(status, message_of(answered))), status=status)
        usage.note(answered)
        texts = [text_of(choice) for choice in sorted(answered["choices"], key=lambda choice: choice["index"])]
        each = len(texts) // len(before)
        made = [
            [{"generated_text": _full(prompt, text)} for text in texts[number * each : (number + 1) * each]]
            for number, prompt in enumerate(before)
        ]
        if detailed:
            made[0][0]["details"] = {**_details(usage, parameters), "prefill": [], "tokens": []}
        return Reply(orjson.dumps(made[0] if alone else made))

    events = _Events(usage, before[0], parameters)
    piece = Stream(events.tell, events.end).piece
    return Route(ask, whole, piece, body["stream"], refuse, usage, events.fail)


def refuse(error: HandlerError) -> Reply:
    """An error, as Text Generation Inference has it."""
    return error_reply(error, lambda error, message: _error(error.status, message))


def _held(document: Document, schema: type[Any], prefix: str = "") -> Document:
    """What is said in a document, once it is as it should be."""
    if problems := check(document, schema, prefix, quote=False, most=MOST_PROBLEMS):
        raise InvalidRequest("; ".join(map(str, problems)))
    return {name: value for name, value in document.items() if value is not None}


def _in_openai_terms(parameters: Document, served: Served) -> Document:
    """What parameters ask of an engine."""
    if "stop" in parameters and "stop_sequences" in parameters:
        raise InvalidRequest("parameters.stop_sequences: is another name of stop; expected one of them")
    body = {ours: parameters[theirs] for theirs, ours in NAMES.items() if theirs in parameters}
    if body.get("n") == 1:
        del body["n"]
    if (model := served.known(body.get("model"))) is None:
        raise NotOffered(f"parameters.adapter_id: expected one of {', '.join(served.names)}")
    body["model"] = model
    if parameters.get("do_sample") is False:  # then `generate` does nothing of a draw
        body = {name: value for name, value in body.items() if name not in OF_A_DRAW} | {"temperature": 0}
    elif parameters.get("do_sample") and not (served.engine.draws or body.keys() & set(DRAWN)):
        body["temperature"] = 1.0
    if body.get("typical_p", 1) != 1:
        raise InvalidRequest("parameters.typical_p: expected 1: no engine draws in this way")
    body.pop("typical_p", None)
    if grammar := parameters.get("grammar"):
        body[RENAMED["grammar"]] = {GRAMMARS[grammar["type"]]: grammar["value"]}
    return body


@dataclass
class _Events:
    """The events of a stream: one for each piece of text, and one that has all of it."""

    usage: Usage
    before: Any  # what the whole text begins with
    parameters: Document
    texts: list[str] = field(default_factory=list)
    failed: bool = False

    def tell(self, document: Document, event: bytes) -> bytes:
        """For an event of the OpenAI protocol's."""
        self.usage.note(document)
        if "error" in document:
            return self.fail(message_of(document))
        text = said_in(document)
        if not text:
            return b""
        self.texts.append(text)
        return self._event(text)

    def fail(self, message: str = "the engine failed") -> bytes:
        """Where it goes no further."""
        self.failed = True
        return event_of(_error(500, message))

    def end(self) -> bytes:
        """The last one, whose token is none: engines say that they have ended, and not by which token."""
        if self.failed:
            return b""
        details = _details(self.usage, self.parameters) if self.parameters.get("details") else None
        return self._event("", special=True, whole=_full(self.before, "".join(self.texts)), details=details)

    def _event(self, text: str, special: bool = False, whole: Any = None, details: Any = None) -> bytes:
        token = {"id": NO_ID, "text": text, "logprob": None, "special": special}
        index = len(self.texts) + special
        return event_of({"index": index, "token": token, "generated_text": whole, "details": details})


def _details(usage: Usage, parameters: Document) -> Document:
    """Of one answer: why it ended, and its tokens."""
    why = "length" if usage.finish_reason == "length" else "stop_sequence" if usage.stopped else "eos_token"
    tokens = {"input_length": usage.prompt_tokens, "generated_tokens": usage.new_tokens}
    return {"finish_reason": why, **tokens, "seed": parameters.get("seed")}


def _full(before: Any, text: str) -> Any:
    """An answer behind what it continues: a text, a conversation or nothing."""
    if isinstance(before, list):
        return [*before, {"role": "assistant", "content": text}]
    return (before or "") + text


def _error(status: int, message: str) -> Document:
    kind = "validation" if status < 500 else "overloaded" if status == 503 else "generation"
    return {"error": message, "error_type": kind}


def _are(kind: type, values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(value, kind) for value in values)
