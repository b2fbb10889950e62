"""transformers' own serving application with its continuous batching, for every model that transformers can run.

The routes are those of transformers.cli.serving. With continuous batching it knows one way of sampling for all
requests, that of the first; here each has its own. What it would ignore in silence is refused.
"""

from __future__ import annotations

import asyncio
import copy
import threading
from pathlib import Path
from typing import Any, get_type_hints

import torch
import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig

from handler.config import HandlerConfig, ModelConfig
from handler.devices import BATCH_TOKENS
from handler.errors import MAX_MESSAGE, LoadError
from handler.generation.application import Application, Asgi
from handler.generation.engine import Engine, Load
from handler.generation.openai_protocol import CHAT, COMPLETIONS
from handler.generation.sampling import choose
from handler.loading import DTYPES, OFFLINE, check_directory
from handler.protocols.openai_embeddings import error_document

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
        "metadata",
        "modalities",
        "moderation",
        "n",
        "prediction",
        "presence_penalty",
        "reasoning_effort",
        "response_format",
        "seed",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "stop",
        "store",
        "suffix",
        "tool_choice",
        "top_logprobs",
        "user",
        "verbosity",
        "web_search_options",
    )
)
CACHE_TOKENS = 32_768
PAGE = 256  # tokens that a request's memory is measured in
COLD = 0.01  # a temperature below which the likeliest token is taken: logits over it would leave float32
UNDRAWN = {"temperature": 1.0, "top_k": 1, "top_p": 1.0}  # the likeliest token, whatever is drawn


def build(directory: Path, whole: ModelConfig, device: torch.device, name: str) -> Engine:
    """Loads the model and its application. Raises LoadError."""
    check_directory(directory)
    config = whole.handler
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

    async def make() -> Asgi:
        return app  # type: ignore[no-any-return]

    application = Application(make, dead=lambda: not manager.is_alive())
    application.start()
    about = {"engine": "transformers", "dtype": config.dtype, "context_tokens": _context(model, config)}
    return Engine(
        application,
        fields={CHAT: _fields(chat), COMPLETIONS: _fields(completion)},
        has_template=bool(tokenizer.chat_template),
        draws=bool(model.generation_config.do_sample),
        about=about,
        load=manager.load,
    )


def _fields(handler: Any) -> frozenset[str]:
    """What a handler of the application's does something with."""
    return frozenset(get_type_hints(handler._valid_params_class)) - NOT_DONE


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
                    num_blocks=-(-(config.cache_tokens or CACHE_TOKENS) // PAGE),  # else nearly all of the memory
                    max_batch_tokens=config.max_batch_tokens or BATCH_TOKENS[model.device.type],
                    auto_switch_to_flash=False,  # its kernels might come from the hub
                    per_request_processors=True,
                ),
            )
            if model.device.type == "cpu":  # on a GPU a step is one graph, and sorting takes no time
                self._cb.generation_config.do_sample = False  # the largest score is taken, which is the drawn one
                self._cb.logit_processor = _drawing(self._cb.logit_processor)
            self._add, self._cb.add_request = self._cb.add_request, self._add_sampled
            self._sampling: dict[str, Any] = dict(UNDRAWN)
            # Its thread is a daemon if the one that starts it is; else it would keep a worker alive whose frontend
            # has gone, and which ends by sys.exit (otf_message_handler.py:167).
            starter = threading.Thread(target=self._cb.start, daemon=True)
            starter.start()
            starter.join()

        def load(self) -> Load:
            """What it does; nothing before the first request has come."""
            if self._cb.batch_processor is None:
                return Load(0, 0, 0.0)
            used = 1 - self.scheduler.cache.compute_free_capacity()
            return Load(len(self.scheduler.active_requests), len(self.scheduler.waiting_requests), used)

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


def _drawing(stock: Any) -> Any:
    """The engine's processors, which judge and keep each request's sampling; the drawing is ours."""

    class Drawing(type(stock)):  # type: ignore[misc]
        def __call__(self, ids: torch.Tensor, scores: torch.Tensor, arguments: torch.Tensor) -> torch.Tensor:
            temperature, top_k, top_p = arguments[:, : len(scores)]  # as int32, whatever they are
            return choose(scores, temperature.view(torch.float32), top_k, top_p.view(torch.float32))

    drawing = Drawing.__new__(Drawing)
    drawing.__dict__ = stock.__dict__
    return drawing


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
    held = config.cache_tokens or CACHE_TOKENS
    return min(int(read or held), held)


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
        """Takes one prompt, and knows one model."""

        def _validate_request(self, body: dict[str, Any]) -> None:
            if not isinstance(body.get("prompt", ""), str):
                raise HTTPException(400, "prompt: expected a string; the transformers engine takes one at a time")
            if (most := body.pop("max_completion_tokens", None)) is not None:  # a name that it does not know
                body["max_tokens"] = most
            body.pop("stream_options", None)  # usage always comes with the last chunk
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
        _valid_params_class = ChatParameters

    class Completion(Strict, completion.CompletionHandler):  # type: ignore[misc]
        _valid_params_class = CompletionParameters

    return Chat(_Models(), state), Completion(_Models(), state)


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
