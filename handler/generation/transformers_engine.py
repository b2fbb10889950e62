"""transformers' own serving application with its continuous batching, for every model that transformers can run.

The routes are those of transformers.cli.serving. With continuous batching it knows one way of sampling for all
requests, that of the first; here each has its own. What it would ignore in silence is refused.
"""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig

from handler.config import HandlerConfig
from handler.devices import BATCH_TOKENS
from handler.errors import MAX_MESSAGE, LoadError
from handler.generation.application import Application
from handler.generation.engine import Engine
from handler.generation.routes import openai_error
from handler.loading import DTYPES, OFFLINE, check_directory
from handler.rules import BOOLEAN, TEXT, Problem, check, integer, key, number

# What the application takes and leaves undone: its own UNUSED_… fields, and what continuous batching drops.
NOT_DONE = frozenset(
    (
        "audio",
        "best_of",
        "echo",
        "frequency_penalty",
        "function_call",
        "functions",
        "generation_config",
        "logit_bias",
        "logprobs",
        "modalities",
        "n",
        "prediction",
        "presence_penalty",
        "reasoning_effort",
        "response_format",
        "seed",
        "stop",
        "suffix",
        "tool_choice",
        "top_logprobs",
        "web_search_options",
    )
)
# Their values that ask for nothing.
NOTHING: Mapping[str, object] = {"n": 1, "best_of": 1, "presence_penalty": 0, "frequency_penalty": 0}
ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Judged:
    """What both routes share, and the application does not look at."""

    max_tokens: int | None = key(integer(1), "the most tokens of the answer", None)
    temperature: float | None = key(number(0, 2), "0: always the likeliest", None)
    top_p: float | None = key(number(1e-6, 1), "of the probability that is drawn from", None)
    top_k: int | None = key(integer(1), "of the tokens that are drawn from", None)
    stream: bool = key(BOOLEAN, "piece by piece", False)
    prompt: str | None = key(TEXT, "what to continue", None)


JUDGED = tuple(Judged.__dataclass_fields__)
PAGE = 256  # tokens that a request's memory is measured in
COLD = 0.01  # a temperature below which the likeliest token is taken: logits over it would leave float32
UNDRAWN = {"temperature": 1.0, "top_k": 1, "top_p": 1.0}  # the likeliest token, whatever is drawn


def build(directory: Path, config: HandlerConfig, device: torch.device, name: str) -> Engine:
    """Loads the model and its application. Raises LoadError."""
    check_directory(directory)
    try:
        from transformers.cli.serving import server  # noqa: PLC0415  an extra, and slow to import
    except ImportError as error:
        raise LoadError(f"handler.engine transformers needs transformers[serving]: {error}") from error
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, **OFFLINE)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=DTYPES[config.dtype],
        attn_implementation=config.attention,
        use_safetensors=True,
        **OFFLINE,
    )
    model = model.to(device).eval()
    manager = _manager(model, config)
    state = _State(manager)
    chat, completion = _handlers(name, model, tokenizer, state)
    app = server.build_server(_Models(), chat, completion, None, None, state)
    _speak_openai(app)
    application = Application(app, dead=lambda: not manager.is_alive())
    application.start()
    about = {"engine": "transformers", "dtype": config.dtype, "context_tokens": _context(model, config)}
    return Engine(application, bool(tokenizer.chat_template), about, manager.busy)


def _manager(model: Any, config: HandlerConfig) -> Any:
    """Continuous batching for the model, in which every request samples for itself."""
    from transformers.cli.serving.utils import CBGenerateManager  # noqa: PLC0415

    class PerRequest(CBGenerateManager):  # type: ignore[misc]
        """Each request's own sampling, cap and cancellation."""

        def init_cb(self, model: Any, gen_config: GenerationConfig) -> None:
            """Nothing: it is there since loading."""

        def start(self) -> None:
            shared = copy.deepcopy(model.generation_config)
            # A processor is made only for what is set to something; each request then says its own.
            shared.update(do_sample=True, temperature=0.5, top_k=2, top_p=0.5, use_cache=False)
            self._cb = model.init_continuous_batching(
                generation_config=shared,
                continuous_batching_config=ContinuousBatchingConfig(
                    page_size=PAGE,
                    num_blocks=-(-config.cache_tokens // PAGE),  # else nearly all of the memory
                    max_batch_tokens=config.max_batch_tokens or BATCH_TOKENS[model.device.type],
                    auto_switch_to_flash=False,  # its kernels might come from the hub
                    per_request_processors=True,
                ),
            )
            self._add, self._cb.add_request = self._cb.add_request, self._add_sampled
            self._sampling: dict[str, Any] = dict(UNDRAWN)
            # Its thread is a daemon if the one that starts it is; else it would keep a worker alive whose frontend
            # has gone, and which ends by sys.exit (otf_message_handler.py:167).
            starter = threading.Thread(target=self._cb.start, daemon=True)
            starter.start()
            starter.join()

        def busy(self) -> int:
            """Requests that are running or waiting; none before the first has come."""
            if self._cb.batch_processor is None:
                return 0
            return len(self.scheduler.active_requests) + len(self.scheduler.waiting_requests)

        def _add_sampled(self, *arguments: Any, **options: Any) -> Any:
            return self._add(*arguments, **options, **self._sampling)

        def generate_streaming(self, model: Any, processor: Any, inputs: Any, gen_config: Any, **more: Any) -> Any:
            self._prepare(model, inputs, gen_config)
            return super().generate_streaming(model, processor, inputs, gen_config, **more)

        async def generate_non_streaming(
            self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str
        ) -> Any:
            self._prepare(model, inputs, gen_config)  # and no other request comes before the first await
            try:
                return await super().generate_non_streaming(model, processor, inputs, gen_config, request_id)
            except asyncio.CancelledError:
                self._cb.cancel_request(request_id)
                raise

        def _prepare(self, model: Any, inputs: Any, asked: GenerationConfig) -> None:
            """Judges a request's lengths, and says how it is to be sampled. Raises HTTPException."""
            _fit(asked, len(inputs["input_ids"]), _context(model, config), config.max_new_tokens)
            self._sampling = _sampling(asked, model.config.get_text_config().vocab_size)

    manager = PerRequest()
    manager.start()
    return manager


def _fit(asked: GenerationConfig, size: int, context: int, cap: int) -> None:
    """Bounds what may be generated by the room that is left. Raises HTTPException where there is none."""
    from fastapi import HTTPException  # noqa: PLC0415

    if not size:
        raise HTTPException(400, "the prompt has no tokens")
    if size >= context:
        raise HTTPException(400, f"the prompt has {size} tokens; the model reads at most {context}")
    asked.max_new_tokens = min(asked.max_new_tokens or cap, cap, context - size)


def _sampling(asked: GenerationConfig, vocabulary: int) -> dict[str, Any]:
    """A request's own temperature, top_k and top_p; none that would make the engine's numbers infinite."""
    temperature = float(asked.temperature if asked.temperature is not None else 1.0)
    if not asked.do_sample or temperature < COLD:
        return dict(UNDRAWN)
    return {
        "temperature": temperature,
        "top_k": min(int(asked.top_k), vocabulary) if asked.top_k else vocabulary,
        "top_p": float(asked.top_p if asked.top_p is not None else 1.0),
    }


def _context(model: Any, config: HandlerConfig) -> int:
    """Tokens that a request may have, its answer included: what the model reads, and what there is memory for."""
    read = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(int(read or config.cache_tokens), config.cache_tokens)


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


def _handlers(name: str, model: Any, tokenizer: Any, state: _State) -> tuple[Any, Any]:
    """The application's two handlers, with this model, and strict."""
    from fastapi import HTTPException  # noqa: PLC0415
    from transformers.cli.serving import chat_completion, completion  # noqa: PLC0415

    class Strict:
        """Refuses what would be ignored, and knows one model."""

        needs = ""  # the field that there is nothing to do without

        def _validate_request(self, body: dict[str, Any]) -> None:
            for field in [field for field in body if field in NOT_DONE]:
                if body[field] is not None and body[field] != NOTHING.get(field, ...):
                    raise HTTPException(400, f"{field}: the transformers engine does not do this")
                del body[field]
            _judge(body, self.needs)
            super()._validate_request(body)  # type: ignore[misc]

        def _resolve_model(self, body: dict[str, Any]) -> tuple[str, Any, Any]:
            return name, model, tokenizer

        def _build_generation_config(self, body: dict[str, Any], base: Any, use_cb: bool = False) -> Any:
            asked = super()._build_generation_config(body, base, use_cb=use_cb)  # type: ignore[misc]
            asked.max_new_tokens = body.get("max_tokens")
            if any(body.get(field) is not None for field in ("temperature", "top_p", "top_k")):
                asked.do_sample = body.get("temperature") != 0
                asked.top_k = body.get("top_k")  # a model's own is for its own temperature
            return asked

    class ChatParameters(chat_completion.TransformersCompletionCreateParamsStreaming, total=False):  # type: ignore[misc, call-arg]
        top_k: int  # which vLLM has beside the protocol too

    class CompletionParameters(completion.TransformersTextCompletionCreateParams, total=False):  # type: ignore[misc, call-arg]
        top_k: int

    class Chat(Strict, chat_completion.ChatCompletionHandler):  # type: ignore[misc]
        _valid_params_class, needs = ChatParameters, "messages"

    class Completion(Strict, completion.CompletionHandler):  # type: ignore[misc]
        _valid_params_class, needs = CompletionParameters, "prompt"

    return Chat(_Models(), state), Completion(_Models(), state)


def _judge(body: dict[str, Any], needs: str) -> None:
    """What the application would take as it comes, and fail on or pass on. Raises HTTPException."""
    from fastapi import HTTPException  # noqa: PLC0415

    most = body.pop("max_completion_tokens", None)  # the newer name, which the application does not know
    if most is not None:
        body["max_tokens"] = most
    body.pop("stream_options", None)  # usage always comes with the last chunk
    problems = check({name: body[name] for name in JUDGED if body.get(name) is not None}, Judged, quote=False)
    if body.get(needs) is None:
        problems.append(Problem(needs, "is missing"))
    elif needs == "messages":
        problems += list(_message_problems(body["messages"]))
    if problems:
        raise HTTPException(400, "; ".join(map(str, problems)))


def _message_problems(messages: Any) -> Iterator[Problem]:
    if not isinstance(messages, list) or not messages:
        yield Problem("messages", "expected a list of at least one message")
        return
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            yield Problem(where, "expected an object with role and content")
        elif message.get("role") not in ROLES:
            yield Problem(f"{where}.role", f"expected one of {', '.join(ROLES)}")
        elif not _is_content(message.get("content")) and not message.get("tool_calls"):
            yield Problem(f"{where}.content", "expected a string, or a list of parts of text")


def _is_content(content: Any) -> bool:
    return isinstance(content, str) or (
        isinstance(content, list)
        and bool(content)
        and all(
            isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
            for part in content
        )
    )


def _speak_openai(app: Any) -> None:
    """The application's errors in the protocol's own shape."""
    from fastapi import HTTPException, Request  # noqa: PLC0415
    from fastapi.exceptions import RequestValidationError  # noqa: PLC0415
    from fastapi.responses import JSONResponse  # noqa: PLC0415
    from jinja2.exceptions import TemplateError  # noqa: PLC0415

    def reply(status: int, message: str) -> Any:
        return JSONResponse(openai_error(status, message), status_code=status)

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
