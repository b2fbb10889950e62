"""transformers' own serving application (transformers.cli.serving), of one model, without what it does in silence.

What it takes and leaves undone is no field of a request here; what would be its 500 is refused before.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, get_type_hints

import orjson
import torch

from handler.errors import MAX_MESSAGE
from handler.generation import tool_choice
from handler.generation.application import Asgi, Event
from handler.generation.formats import FIELDS, UNFOLLOWED, Format, Formats, Unkept
from handler.generation.logprobs import alongside, with_logprobs
from handler.generation.openai_protocol import CHAT, COMPLETIONS, Document, Stream, as_whole
from handler.generation.openai_requests import DRAWN, is_nothing
from handler.generation.sampling import MOST_TOPS
from handler.generation.several import all_of, each_alone, interleaved, together
from handler.generation.tool_calls import forgive
from handler.generation.tool_choice import Choice
from handler.protocols.openai_embeddings import error_document

MOST_STOPS, MOST_BIAS = 16, 100
# Bytes of a request from which it is read in a thread: a megabyte's tokens take half a second, in which the loop
# would carry nobody's. And so is one with a format, whose first tokens may take a tenth.
LONG = 16_384
READER = ThreadPoolExecutor(1, "reader")
# Of sampling: the application takes a frequency's penalty for another one, and a seed for everybody's.
OWN = ("frequency_penalty", "logit_bias", "min_p", "presence_penalty", "repetition_penalty", "seed")
TO_A_FORMAT = (*FIELDS, "tool_choice")  # an answer is kept by these
TOOLS = ("tools", "tool_choice", "parallel_tool_calls")
# What the application takes and leaves undone: its own UNUSED_… fields, and what continuous batching drops.
NOT_DONE = frozenset(
    (
        "audio",
        "best_of",
        "echo",
        "function_call",
        "functions",
        "generation_config",
        "metadata",
        "modalities",
        "moderation",
        "prediction",
        "reasoning_effort",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "suffix",
        "user",
        "verbosity",
        "web_search_options",
    )
)


def make_application(
    name: str, model: Any, tokenizer: Any, manager: Any, formats: Formats | None
) -> tuple[Asgi, dict[str, frozenset[str]]]:
    """The application, and what the requests to each of its paths may hold.

    Args:
        name: what the model is called.
        model: transformers' own.
        tokenizer: the model's.
        manager: generates (transformers.cli.serving.utils.CBGenerateManager).
        formats: that answers can be kept to.
    """
    from transformers.cli.serving import server  # noqa: PLC0415  an extra, and slow to import

    state = _State(manager)
    forgive(tokenizer)
    tokenizer("")  # from here on no call changes it, which another thread's could not bear
    chat, completion = _handlers(name, model, _judging(tokenizer), state, formats)
    app = server.build_server(_Models(), chat, completion, None, None, state)
    _speak_openai(app)
    # Its only middleware gives each request an id, and hands every piece of a stream from task to task for it.
    app.user_middleware.clear()

    async def with_id(scope: Event, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope["state"] = {"request_id": str(uuid.uuid4())}
        await app(scope, receive, send)

    undone = set() if formats else {*TO_A_FORMAT}
    calls_tools = _parses(model, tokenizer) and "tools" in str(tokenizer.chat_template)
    without_tools = set() if calls_tools else {*TOOLS}
    return with_id, {CHAT: _fields(chat) - undone - without_tools, COMPLETIONS: _fields(completion) - undone}


def _fields(handler: Any) -> frozenset[str]:
    """What a handler of the application's does something with."""
    return frozenset(get_type_hints(handler._valid_params_class)) - NOT_DONE


def _parses(model: Any, tokenizer: Any) -> bool:
    """Whether the application can tell what a model says from its thoughts and its calls of tools."""
    from transformers.cli.serving.utils import get_response_template  # noqa: PLC0415

    return get_response_template(tokenizer, model) is not None


class _State:
    """The application's GenerationState, of one model."""

    _compile = False

    def __init__(self, manager: Any) -> None:
        self.manager = manager

    def use_continuous_batching(self, model: Any, modality: Any) -> bool:
        return True

    def get_manager(self, model_id: str, use_cb: bool = False) -> Any:
        return self.manager

    def is_cb_alive(self) -> bool:
        return bool(self.manager.is_alive())


class _Models:
    """The application's ModelManager, of one model: it loads nothing and lists nothing."""

    def get_model_modality(self, model: Any, processor: Any = None) -> Any:
        from transformers.cli.serving.utils import Modality  # noqa: PLC0415

        return Modality.LLM

    def shutdown(self) -> None:
        pass


def _handlers(name: str, model: Any, tokenizer: Any, state: _State, formats: Formats | None) -> tuple[Any, Any]:
    """The application's two handlers, with this model, and strict."""
    from fastapi import HTTPException  # noqa: PLC0415
    from fastapi.responses import JSONResponse, StreamingResponse  # noqa: PLC0415
    from transformers.cli.serving import chat_completion, completion  # noqa: PLC0415

    parses = _parses(model, tokenizer)

    class Strict:
        """Gives as many answers as are asked for, and knows one model."""

        _unused_fields = frozenset[str]()  # of what it warns: others are refused, and these are done here

        async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
            asked = each_alone(body)
            keeps = any(body.get(field) and not is_nothing(field, body[field]) for field in TO_A_FORMAT)
            long = keeps or len(orjson.dumps(body)) >= LONG
            if len(asked) == 1:
                return await (await self._read(asked[0], request_id, long))()
            names = [f"{request_id}-{at}" for at in range(len(asked))]
            answers = await all_of([self._read(one, name, long) for one, name in zip(asked, names, strict=True)])
            if body.get("stream"):
                streams = await self._begun(answers, names)
                events = interleaved(streams, body.get("n", 1), request_id)
                return StreamingResponse(events, media_type="text/event-stream")
            answered = [orjson.loads(one.body) for one in await all_of([answer() for answer in answers])]
            return JSONResponse({**together(answered, body.get("n", 1)), "id": request_id})

        async def _read(self, body: dict[str, Any], request_id: str, long: bool) -> Any:
            """Reads a request, which waits for nothing, and gives what answers it; a long one beside the loop."""
            read = partial(super().handle_request, body, request_id)  # type: ignore[misc]
            if long:
                return await asyncio.get_running_loop().run_in_executor(READER, _result, read)
            return await read()

        async def _begun(self, answers: Sequence[Any], names: Sequence[str]) -> list[Any]:
            """The streams of all, or of none, where one is refused."""
            streams: list[Any] = []
            try:
                for answer in answers:
                    streams.append((await answer()).body_iterator)
            except HTTPException:
                for begun in names[: len(streams)]:
                    state.manager.cancel(begun)
                raise
            return streams

        def _validate_request(self, body: dict[str, Any]) -> None:
            if "prompt" in body and not isinstance(body["prompt"], str):
                body["prompt"] = Tokens.of(body["prompt"], model.get_input_embeddings().num_embeddings)
            if (most := body.pop("max_completion_tokens", None)) is not None:  # a name that it does not know
                body["max_tokens"] = most
            body.pop("stream_options", None)  # usage always comes with the last chunk
            super()._validate_request(body)  # type: ignore[misc]

        def _resolve_model(self, body: dict[str, Any]) -> tuple[str, Any, Any]:
            return name, model, tokenizer

        def _build_generation_config(self, body: dict[str, Any], base: Any, use_cb: bool = False) -> Any:
            left = {field: value for field, value in body.items() if field not in OWN}
            asked = super()._build_generation_config(left, base, use_cb=use_cb)  # type: ignore[misc]
            for field in OWN:
                if body.get(field) is not None:
                    setattr(asked, field, body[field])
            asked.tops = _tops(body)
            asked.bias = _bias(body.get("logit_bias"), model.config.get_text_config().vocab_size)
            asked.choice, asked.format = _format(body, formats)
            asked.alone = body.get("parallel_tool_calls") is False
            asked.max_new_tokens = body.get("max_tokens")
            asked.stop_strings = _stop_strings(asked.stop_strings)  # or those of the model's own configuration
            if any(body.get(field) is not None for field in DRAWN):
                asked.do_sample = body.get("temperature") != 0
                asked.top_k = max(body.get("top_k") or 0, 0)  # a model's own is for its own temperature
            return asked

        def _streaming(self, *arguments: Any, **named: Any) -> Any:
            """Not yet: what is done once the request is read; and so the next."""
            return partial(self._stream, *arguments, **named)

        async def _non_streaming(self, *arguments: Any, **named: Any) -> Any:
            return partial(self._whole, *arguments, **named)

        async def _stream(self, *arguments: Any, **named: Any) -> Any:
            answer, asked = super()._streaming(*arguments, **named), arguments[5]  # type: ignore[misc]
            if asked.tops is not None:
                answer.body_iterator = alongside(
                    answer.body_iterator, asked.sampling.told, asked.counts, tokenizer
                )
            return answer

        async def _whole(self, *arguments: Any, **named: Any) -> Any:
            asked = arguments[5]  # the generation config
            in_pieces = asked.stop_strings or asked.choice or asked.alone or (parses and asked.format)
            whole = self._in_pieces if in_pieces else super()._non_streaming  # type: ignore[misc]
            try:
                answer = await whole(*arguments, **named)
            except RuntimeError as error:
                if asked.format is not None and asked.format.lost:
                    raise HTTPException(400, UNFOLLOWED) from error
                raise
            if asked.tops is None:
                return answer
            return JSONResponse(with_logprobs(orjson.loads(answer.body), asked.sampling.told, tokenizer))

        async def _in_pieces(self, *arguments: Any, **named: Any) -> Any:
            chunks: list[Document] = []

            def take(chunk: Document, event: bytes) -> bytes:
                chunks.append(chunk)
                return b""

            events = Stream(take)
            async for piece in super()._streaming(*arguments, **named).body_iterator:  # type: ignore[misc]
                events.piece(piece.encode(), last=False)
            return JSONResponse(as_whole(chunks))

    class ChatParameters(chat_completion.TransformersCompletionCreateParamsStreaming, total=False):  # type: ignore[misc, call-arg]
        top_k: int  # which vLLM has beside the protocol too, and the next three
        min_p: float
        repetition_penalty: float
        structured_outputs: dict[str, Any]

    class CompletionParameters(completion.TransformersTextCompletionCreateParams, total=False):  # type: ignore[misc, call-arg]
        top_k: int
        min_p: float
        repetition_penalty: float
        presence_penalty: float
        response_format: dict[str, Any]
        structured_outputs: dict[str, Any]

    # Among them `chat_template`: a client's own would be a program, run on the loop that has everybody's tokens.
    reserved = {*inspect.signature(tokenizer.apply_chat_template).parameters, "load_audio_from_video"}

    class Chat(Strict, chat_completion.ChatCompletionHandler):  # type: ignore[misc]
        _valid_params_class = ChatParameters

        @staticmethod
        def get_processor_inputs_from_messages(messages: list[dict[str, Any]], modality: Any) -> list[Any]:
            """With what its own leaves out and templates may show: who speaks, and what is said beside a call."""
            stock = chat_completion.ChatCompletionHandler.get_processor_inputs_from_messages
            made = stock(messages, modality)
            for message, one in zip(messages, made, strict=True):
                if "tool_calls" in message:
                    without = {name: message[name] for name in message if name != "tool_calls"}
                    one["content"] = stock([without], modality)[0]["content"]
            return [{**message, **one} for message, one in zip(messages, made, strict=True)]

        def _validate_request(self, body: dict[str, Any]) -> None:
            super()._validate_request(body)
            if body.get("tool_choice") == "none":
                body.pop("tools", None)
            if not tokenizer.chat_template:
                raise HTTPException(400, "this model has no chat template; v1/completions continues a prompt")
            if taken := reserved & body.get("chat_template_kwargs", {}).keys():
                raise HTTPException(
                    400, f"chat_template_kwargs: not for clients to say: {', '.join(sorted(taken))}"
                )

    class Completion(Strict, completion.CompletionHandler):  # type: ignore[misc]
        _valid_params_class = CompletionParameters

        def _resolve_model(self, body: dict[str, Any]) -> tuple[str, Any, Any]:
            return name, model, _ReadsTokens(tokenizer)

    return Chat(_Models(), state), Completion(_Models(), state)


def _result(begin: Callable[[], Any]) -> Any:
    """What a coroutine that waits for nothing returns, where there is no loop."""
    try:
        begin().send(None)
    except StopIteration as ended:
        return ended.value
    raise RuntimeError("a request waited for something while it was read")


class Tokens(str):
    """A prompt as its client has tokenized it: the application wants a string, and hands it to the tokenizer."""

    ids: list[int]

    @classmethod
    def of(cls, ids: Any, vocabulary: int) -> Tokens:
        """Raises HTTPException."""
        from fastapi import HTTPException  # noqa: PLC0415

        if not (isinstance(ids, list) and all(type(token) is int for token in ids)):
            raise HTTPException(400, "prompt: expected a string, a list of tokens, or a list of such prompts")
        if not all(0 <= token < vocabulary for token in ids):  # on a GPU, to look one up would end the worker
            raise HTTPException(400, f"prompt: expected tokens from 0 to {vocabulary - 1}")
        made = cls()
        made.ids = ids
        return made


class _ReadsTokens:
    """A tokenizer that has nothing to do where its client has done it."""

    def __init__(self, tokenizer: Any) -> None:
        self._wrapped = tokenizer

    def __call__(self, prompt: str, **options: Any) -> Any:
        return {"input_ids": list(prompt.ids)} if isinstance(prompt, Tokens) else self._wrapped(prompt, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)


def _tops(body: dict[str, Any]) -> int | None:
    """How many likeliest tokens are to be told of; None where logprobs are not asked for. Raises HTTPException."""
    from fastapi import HTTPException  # noqa: PLC0415

    asked, tops = body.get("logprobs"), body.get("top_logprobs") or 0
    if asked is None or asked is False:
        if tops:
            raise HTTPException(400, "top_logprobs: expected logprobs, too, to be true")
        return None
    if "messages" not in body:
        tops = asked
    elif asked is not True:
        raise HTTPException(400, "logprobs: expected true or false")
    if not (type(tops) is int and 0 <= tops <= MOST_TOPS):
        name = "top_logprobs" if "messages" in body else "logprobs"
        raise HTTPException(400, f"{name}: expected a whole number from 0 to {MOST_TOPS}")
    return int(tops)


def _bias(asked: Any, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Tokens, (n) int64, and what is added to their scores, (n) float32. Raises HTTPException."""
    from fastapi import HTTPException  # noqa: PLC0415

    if asked is None or asked == {}:
        return None
    try:
        bias = {int(token): float(value) for token, value in asked.items() if type(value) in (int, float)}
    except (AttributeError, OverflowError, ValueError):
        bias = {}
    fits = all(0 <= token < vocabulary and abs(value) <= MOST_BIAS for token, value in bias.items())
    if not (bias and fits and len(bias) == len(asked)):
        what = f"tokens from 0 to {vocabulary - 1} and numbers from -{MOST_BIAS} to {MOST_BIAS}"
        raise HTTPException(400, f"logit_bias: expected an object of {what}")
    return torch.tensor([*bias]), torch.tensor([*bias.values()])


def _format(body: dict[str, Any], formats: Formats | None) -> tuple[Choice | None, Format | None]:
    """What the answer has to call, and to look like. Raises HTTPException."""
    from fastapi import HTTPException  # noqa: PLC0415

    if formats is None:
        return None, None
    try:
        choice, format_ = tool_choice.read(body), formats.read(body)
        if choice and format_:
            raise Unkept("expected a format or a tool_choice, not both")
        return choice, formats.of_calls(choice) if choice else format_
    except ValueError as error:
        raise HTTPException(400, str(error)[:MAX_MESSAGE]) from None


def _stop_strings(stop: Any) -> list[str] | None:
    """What ends the answer; None where nothing does. Raises HTTPException."""
    from fastapi import HTTPException  # noqa: PLC0415

    strings = [stop] if isinstance(stop, str) else stop or []
    if not (isinstance(strings, list) and all(isinstance(one, str) for one in strings)):
        raise HTTPException(400, "stop: expected a string, or a list of strings")
    if len(strings) > MOST_STOPS:  # each is looked for at every token
        raise HTTPException(400, f"stop: {len(strings)} strings; the limit is {MOST_STOPS}")
    return [one for one in strings if one] or None


def _judging(tokenizer: Any) -> Any:
    """The tokenizer, whose chat template fails at the request's cost: it takes values for what they should be."""
    from fastapi import HTTPException  # noqa: PLC0415

    fill_in = tokenizer.apply_chat_template

    @functools.wraps(fill_in)
    def judged(*arguments: Any, **options: Any) -> Any:
        try:
            return fill_in(*arguments, **options)
        except (TypeError, ValueError, LookupError) as error:
            raise HTTPException(400, "the chat template cannot be filled in with this") from error

    tokenizer.apply_chat_template = judged
    return tokenizer


def _speak_openai(app: Any) -> None:
    """The application's errors in the protocol's own shape."""
    from fastapi import HTTPException, Request  # noqa: PLC0415
    from fastapi.exceptions import RequestValidationError  # noqa: PLC0415
    from fastapi.responses import JSONResponse  # noqa: PLC0415
    from jinja2.exceptions import TemplateError  # noqa: PLC0415

    def reply(status: int, message: str) -> Any:
        return JSONResponse(error_document(status, message), status_code=status)

    @app.exception_handler(HTTPException)  # type: ignore[untyped-decorator]
    async def refused(_: Request, error: HTTPException) -> Any:
        return reply(400 if error.status_code == 422 else error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)  # type: ignore[untyped-decorator]
    async def invalid(_: Request, error: RequestValidationError) -> Any:
        return reply(400, "the body is not a valid request")

    @app.exception_handler(TemplateError)  # type: ignore[untyped-decorator]
    async def untemplated(_: Request, error: TemplateError) -> Any:
        return reply(400, f"the chat template refuses these messages: {error}"[:MAX_MESSAGE])

    @app.exception_handler(Exception)  # type: ignore[untyped-decorator]
    async def failed(_: Request, error: Exception) -> Any:
        return reply(500, "the request could not be answered")
