"""What a request of the OpenAI protocol may hold, judged before an engine sees it.

Both engines take less than the protocol has, and pass over in silence what they do not know; nothing is here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson

from handler.errors import BadRequest
from handler.generation.openai_protocol import CHAT, COMPLETIONS, EMBEDDINGS, Document
from handler.request import MOST_PROBLEMS
from handler.rules import BOOLEAN, Problem, Rule, check, integer, key, label, nearest, number, one_of

NEEDED = {CHAT: "messages", COMPLETIONS: "prompt", EMBEDDINGS: "input"}
# Said about a request, and not to the model: taken, and not handed on.
HINTS = frozenset(
    ("metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier", "user")
)
# Values that ask for nothing, of fields that an engine may not do.
NOTHING: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "store": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "echo": (False,),
    "suffix": ("",),
    "stop": ([], ""),
    "logit_bias": ({},),
    "tool_choice": ("auto",),
    "parallel_tool_calls": (True,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "min_p": (0,),
    "repetition_penalty": (1,),
    "functions": ([],),
    "function_call": ("auto", "none"),
}
# The same where there are no tools, which vLLM refuses: langchain-openai's bind_tools([]) sends an empty list.
OF_NO_TOOLS: Mapping[str, tuple[object, ...]] = {
    "tools": ([],),
    "tool_choice": ("auto", "none"),
    "parallel_tool_calls": (True, False),
}
DRAWN = ("temperature", "top_p", "top_k")  # each asks for a draw, but a temperature of 0
# Of a message; what is beside it would be passed over, and so would a word that is misspelt.
MESSAGE = frozenset(("role", "content", "name", "tool_calls", "tool_call_id", "reasoning", "reasoning_content"))
STREAM_OPTIONS = frozenset(("include_usage", "include_obfuscation"))
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
# What engines bound, for every protocol that asks for it.
TEMPERATURE, TOP_P, PENALTY, REPETITION = number(0, 2), number(1e-6, 1), number(-2, 2), number(1e-6, 1e6)
OBJECT = Rule("an object", lambda v: isinstance(v, dict))
FORMAT = Rule(  # TGI has a schema there as `value`, others as `schema`; vLLM would pass over it
    "an object; a schema is given as json_schema, with that type",
    lambda v: (
        isinstance(v, dict)
        and (v.get("type") != "json_object" or not any(v[name] for name in v if name != "type"))
    ),
)
TOOLS = Rule(
    "a list of objects with type and function, which has a name",
    lambda v: isinstance(v, list) and all(map(_is_function, v)),
)
TOOL_CHOICE = Rule(
    "auto, none, required, or an object with type and function, which has a name",
    lambda v: v in ("auto", "none", "required") or (_is_function(v) and v.get("type") == "function"),
)


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    new_tokens: int  # of each answer
    sequences: int  # that are generated for it at once
    inputs: int  # that are embedded for it


@dataclass(frozen=True)
class Judged:
    """What the engines take as it comes, and would fail on or change in silence."""

    max_tokens: int | None = key(integer(1), "the most tokens of the answer", None)
    max_completion_tokens: int | None = key(integer(1), "its newer name", None)
    temperature: float | None = key(TEMPERATURE, "0: always the likeliest", None)
    top_p: float | None = key(TOP_P, "of the probability that is drawn from", None)
    top_k: int | None = key(
        Rule("a whole number, 0 or -1 for all", lambda v: type(v) is int and v >= -1),
        "of the tokens that are drawn from",
        None,
    )
    min_p: float | None = key(number(0, 1), "of the likeliest's probability, below which none is drawn", None)
    presence_penalty: float | None = key(PENALTY, "against what was said at all", None)
    frequency_penalty: float | None = key(PENALTY, "against what was said often", None)
    repetition_penalty: float | None = key(REPETITION, "against what the prompt has or was said", None)
    seed: int | None = key(Rule("a whole number", lambda v: type(v) is int), "of what is drawn", None)
    n: int | None = key(integer(1, 128), "answers", None)
    stream: bool = key(BOOLEAN, "piece by piece", False)
    stream_options: dict[str, Any] | None = key(
        Rule(
            "an object with include_usage",
            lambda v: (
                isinstance(v, dict) and v.keys() <= STREAM_OPTIONS and all(type(x) is bool for x in v.values())
            ),
        ),
        "whether the stream ends with its usage",
        None,
    )
    tools: list[Any] | None = key(TOOLS, "what the model may call", None)
    tool_choice: Any = key(TOOL_CHOICE, "whether it has to call one, and which", None)
    parallel_tool_calls: bool | None = key(BOOLEAN, "whether it may call several", None)
    response_format: dict[str, Any] | None = key(FORMAT, "what the answer has to look like", None)
    structured_outputs: dict[str, Any] | None = key(OBJECT, "the same, as vLLM has it", None)
    chat_template_kwargs: dict[str, Any] | None = key(OBJECT, "what else the chat template is given", None)
    encoding_format: str | None = key(one_of("float", "base64"), "of embeddings", None)


JUDGED = frozenset(Judged.__dataclass_fields__)


def judge(path: str, document: Document, fields: frozenset[str], limits: Limits, draws: bool = True) -> Document:
    """The request as an engine gets it: without hints and without what asks for nothing. Raises BadRequest.

    Args:
        path: of the route.
        document: the request's body.
        fields: those that the engine does something with.
        limits: what one request may ask for.
        draws: whether the engine draws where the request says nothing of it.
    """
    said = {name: value for name, value in document.items() if value is not None and name not in HINTS}
    if not said.get("tools"):
        said = {name: value for name, value in said.items() if not is_nothing(name, value, OF_NO_TOOLS)}
    if said.get("tool_choice") == "none" and "tool_choice" not in fields:
        said = {name: value for name, value in said.items() if name not in ("tool_choice", "tools")}
    if said.get("temperature") == 0 or not (draws or said.keys() & set(DRAWN)):  # the likeliest, whatever the seed
        said = {name: value for name, value in said.items() if name != "seed" or name in fields}
    said = {name: value for name, value in said.items() if name in fields or not is_nothing(name, value)}
    # A body of 1 MB has room for 100,000 wrong names, and each one's likeness to the known takes time.
    if problems := list(islice(_problems(path, said, fields, limits), MOST_PROBLEMS)):
        raise BadRequest("; ".join(map(str, problems)))
    if path == CHAT:
        said["messages"] = [_without_nothing(message) for message in said["messages"]]
    return said


def _problems(path: str, said: Document, fields: frozenset[str], limits: Limits) -> Iterator[Problem]:
    for name in said:
        if name not in fields:
            yield Problem(label(name), "this engine does not do this" + meant(name, fields))
    wrong = check({name: said[name] for name in said if name in JUDGED}, Judged, quote=False)
    yield from wrong
    needed = NEEDED[path]
    if said.get(needed) is None:
        yield Problem(needed, "is missing")
    elif path == CHAT:
        yield from _message_problems(said["messages"])
    if "tool_choice" in said and not said.get("tools"):  # one that asks for nothing is gone by now
        yield Problem("tools", "is missing beside tool_choice")
    if not wrong:
        yield from _excess(said, limits)


def _excess(said: Document, limits: Limits) -> Iterator[Problem]:
    for name in ("max_tokens", "max_completion_tokens"):
        if said.get(name, 0) > limits.new_tokens:
            yield Problem(name, f"{said[name]}; the limit is {limits.new_tokens}")
    prompts = said.get("prompt")
    many = isinstance(prompts, list) and bool(prompts) and not isinstance(prompts[0], int)
    if said.get("n", 1) * (len(prompts) if many else 1) > limits.sequences:  # type: ignore[arg-type]
        yield Problem("n", f"expected at most {limits.sequences} answers to all prompts of a request together")
    inputs = said.get("input")
    if isinstance(inputs, list) and len(inputs) > limits.inputs and not isinstance(inputs[0], int):
        yield Problem("input", f"{len(inputs)} texts; the limit is {limits.inputs}")


def is_nothing(name: str, value: object, nothings: Mapping[str, tuple[object, ...]] = NOTHING) -> bool:
    """Whether a field's value asks for nothing."""
    return any(
        value == nothing and isinstance(value, bool) == isinstance(nothing, bool)
        for nothing in nothings.get(name, ())
    )


def meant(name: str, fields: frozenset[str]) -> str:
    """A question for whoever has misspelt one of the fields."""
    known = name in NOTHING  # of the protocol: no misspelling
    close = nearest(name, fields) if len(name) <= 80 and not known else None
    return f"; did you mean {close}?" if close else ""


def _message_problems(messages: Any) -> Iterator[Problem]:
    if not isinstance(messages, list) or not messages:
        yield Problem("messages", "expected a list of at least one message")
        return
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            yield Problem(where, "expected an object with role and content")
            continue
        calls = message.get("tool_calls")
        if message.get("role") not in ROLES:
            yield Problem(f"{where}.role", f"expected one of {', '.join(ROLES)}")
        elif beside := next((name for name in message if message[name] and name not in MESSAGE), None):
            yield Problem(f"{where}.{label(beside)}", "no message has this" + meant(beside, MESSAGE))
        elif not isinstance(message.get("name") or "", str):
            yield Problem(f"{where}.name", "expected a string")
        elif calls and not (isinstance(calls, list) and all(map(_is_call, calls))):
            yield Problem(f"{where}.tool_calls", "expected a list of calls of functions, whose arguments are JSON")
        elif not (_is_content(message.get("content")) or calls or _only_thought(message)):
            yield Problem(f"{where}.content", "expected a string, or a list of parts of text")


def _is_content(content: Any) -> bool:
    """Text: what else there could be, vLLM would fetch from wherever the client says."""
    return isinstance(content, str) or (
        isinstance(content, list)
        and bool(content)
        and all(
            isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
            for part in content
        )
    )


def _only_thought(message: Document) -> bool:
    """Whether it is an answer that was cut off before it said anything, as engines give it."""
    return message["role"] == "assistant" and message.get("content") is None


def _is_function(holder: Any) -> bool:
    """Whether it is about a function that has a name."""
    function = holder.get("function") if isinstance(holder, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _is_call(call: Any) -> bool:
    """A call of a function, as a model makes it and a client sends it back."""
    return _is_function(call) and is_arguments(call["function"].get("arguments"))


def is_arguments(arguments: Any) -> bool:
    """What a function is called with: a JSON object, as a string."""
    if not isinstance(arguments, str):
        return False
    try:
        read = orjson.loads(arguments)
        orjson.dumps(read)  # no deeper than what can be written again
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        return False
    return isinstance(read, dict)


def _without_nothing(message: Document) -> Document:
    """A message without what is null or empty, as clients send back what they got: content stays, as it was."""
    return {name: value for name, value in message.items() if value is not None and (value or name == "content")}
