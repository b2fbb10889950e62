"""transformers' continuous batching behind its own serving application, for every model that transformers can run.

It knows one way of sampling for all requests, that of the first; here each has its own (sampling.py).
"""

from __future__ import annotations

import asyncio
import copy
import importlib
import logging
import random
import threading
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig

from handler import devices
from handler.config import HandlerConfig, ModelConfig
from handler.errors import LoadError
from handler.generation import formats
from handler.generation.application import Application, Asgi, note_accepted
from handler.generation.attention import attend_by_request, plan_steps
from handler.generation.engine import Engine, Load
from handler.generation.logprobs import counted
from handler.generation.sampling import NO_TOKEN, Sampler, Sampling
from handler.generation.stopping import Until
from handler.generation.tool_calls import Forgiving, Once
from handler.generation.tool_choice import Called
from handler.generation.transformers_application import make_application
from handler.linear import prepack
from handler.loading import DTYPES, OFFLINE, check_directory

logger = logging.getLogger(__name__)

CACHE_TOKENS = 32_768
PAGE = 256  # tokens that a request's memory is measured in
# Tokens of one step where the configuration does not say. A longer prompt is read in several, in each of which the
# streams that are under way get their token too; and the mask of a step, which has a row for each, stays small.
STEP_TOKENS = {"cpu": 512, "cuda": 2048}
# On a GPU a step is one graph, made for its size when it first comes, which takes some 0.1 s: few sizes, then.
LEAST_QUERIES, LEAST_READ = 16, 1024
KEPT_GRAPHS = 128  # with 28 layers a worker grew in steps of 12 MB while new ones were made
COLD = 0.01  # a temperature below which the likeliest token is taken: logits over it would leave float32


def build(directory: Path, whole: ModelConfig, device: torch.device, name: str) -> Engine:
    """Loads the model and its application. Raises LoadError."""
    check_directory(directory)
    devices.bound_kernels()
    config = whole.handler
    try:
        importlib.import_module("transformers.cli.serving.server")  # an extra, and slow to import
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
    if config.prepack:
        prepack(model, {torch.get_num_threads()})
    if undone := undone_processors(model):
        logger.warning("what the model's generation config asks for is not done by this engine: %s", undone)
    manager = _manager(model, config, whole.server.batchSize)
    kept = formats.find(tokenizer, model.config.get_text_config().vocab_size, _ends(model))
    app, fields = make_application(name, model, tokenizer, manager, kept)

    async def make() -> Asgi:
        return app

    application = Application(make, dead=lambda: not manager.is_alive())
    application.start()
    about = {"engine": "transformers", "dtype": config.dtype}
    return Engine(
        application,
        fields=fields,
        has_template=bool(tokenizer.chat_template),
        draws=bool(model.generation_config.do_sample),
        about=about,
        context_tokens=_context(model, config),
        load=manager.load,
    )


def undone_processors(model: Any) -> str:
    """What `generate` would do to scores by the model's own configuration, and continuous batching does not."""
    processors = model._get_logits_processor(copy.deepcopy(model.generation_config))
    done = (
        "TemperatureLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
        "MinPLogitsWarper",
        "RepetitionPenaltyLogitsProcessor",
    )
    return ", ".join(sorted({type(one).__name__ for one in processors} - {*done}))


def _manager(model: Any, config: HandlerConfig, most: int) -> Any:
    """Continuous batching for the model, in which every one of at most so many requests samples for itself."""
    from transformers.cli.serving.utils import CBGenerateManager, build_response_parser  # noqa: PLC0415

    class PerRequest(CBGenerateManager):  # type: ignore[misc]
        """Each request's own sampling, cap and cancellation."""

        def init_cb(self, model: Any, gen_config: GenerationConfig) -> None:
            """Nothing: it is there since loading."""

        def start(self) -> None:
            shared = copy.deepcopy(model.generation_config)
            # It has no processors: each request says its own.
            shared.update(do_sample=False, repetition_penalty=None, use_cache=False)
            on_cpu = model.device.type == "cpu"
            self._cb = self._batching(shared, graphs=not on_cpu)
            if not on_cpu and not self._capture():
                logger.warning("this model's steps cannot be made into CUDA graphs; each operation is launched")
                self._cb = self._batching(shared, graphs=False)
            self._add, self._cb.add_request = self._cb.add_request, self._add_sampled
            self._sampling = Sampling()
            # Its thread is a daemon if the one that starts it is; else it would keep a worker alive whose frontend
            # has gone, and which ends by sys.exit (otf_message_handler.py:167).
            starter = threading.Thread(target=self._cb.start, daemon=True)
            starter.start()
            starter.join()
            self._router = self._cb.output_router
            self._router._lock = threading.RLock()
            self._cancel, self._cb.cancel_request = self._cb.cancel_request, self._cancel_whole

        def _batching(self, shared: GenerationConfig, graphs: bool) -> Any:
            batching = model.init_continuous_batching(
                generation_config=shared,
                continuous_batching_config=ContinuousBatchingConfig(
                    page_size=PAGE,
                    num_blocks=-(-(config.cache_tokens or CACHE_TOKENS) // PAGE),  # else nearly all of the memory
                    max_batch_tokens=config.max_batch_tokens or STEP_TOKENS[model.device.type],
                    max_requests_per_batch=most,  # rows that are sampled, in a padded step
                    use_cuda_graph=graphs,
                    use_async_batching=False,  # it would for flash attention, which was not run here
                    auto_switch_to_flash=False,  # its kernels might come from the hub
                    per_request_processors=True,
                ),
            )
            batching.output_router.output_queue = _Nobody()
            planned = model.device.type == "cpu" and attend_by_request(model)
            vocabulary = model.config.get_text_config().vocab_size
            batching.logit_processor = sampler = Sampler(vocabulary, most, model.device)
            stock, body = batching._create_batch_processor, batching._generation_loop_body

            def create() -> Any:
                processor = stock()
                let_others_in(processor.scheduler)
                take_by(sampler, processor)
                if planned:
                    plan_steps(processor.model_runner)
                return processor

            def step(processor: Any, bootstrapping: bool) -> bool:
                try:
                    goes_on = bool(body(processor, bootstrapping))
                except FloatingPointError as error:
                    fail(processor, processor.scheduler.active_requests.values(), error)
                    goes_on = True
                if unkept := sampler.unkept():
                    fail(processor, unkept, ValueError(formats.UNFOLLOWED))
                return goes_on

            batching._create_batch_processor, batching._generation_loop_body = create, step
            return batching

        def _capture(self) -> bool:
            """Makes the largest graph, whose memory all others share; whether that worked. It raises nothing."""
            self._cb.batch_processor = self._cb._create_batch_processor()
            in_few_sizes(self._cb.batch_processor.model_runner)
            kept = kept_graphs(self._cb.logit_processor)
            self._cb.batch_processor.inputs_and_outputs.graphs = kept
            self._cb.warmup()
            return bool(kept._storage)

        def load(self) -> Load:
            """What it does; nothing before the first request has come."""
            if self._cb.batch_processor is None:
                return Load(0, 0, 0.0)
            used = 1 - self.scheduler.cache.compute_free_capacity()
            return Load(len(self.scheduler.active_requests), len(self.scheduler.waiting_requests), used)

        def _add_sampled(self, *arguments: Any, **options: Any) -> Any:
            return self._add(*arguments, **options, sampling=self._sampling)

        def cancel(self, request_id: str) -> None:
            """Ends a request that nobody reads yet."""
            self._cb.cancel_request(request_id)

        def _cancel_whole(self, request_id: str) -> None:
            """Its own leaves behind who was to be told of the output, with all of the stream."""
            with self._router._lock:
                self._router.result_handlers.pop(request_id, None)
            self._cancel(request_id)

        def generate_streaming(
            self,
            model: Any,
            processor: Any,
            inputs: Any,
            gen_config: Any,
            response_parser: Any = None,
            **more: Any,
        ) -> Any:
            self._prepare(model, inputs, gen_config)
            if gen_config.choice is not None:
                more["response_parser"] = Called(gen_config.choice)
            elif response_parser is not None:
                if gen_config.format is not None:  # in no thought that the prompt has begun
                    response_parser = build_response_parser(processor, model, [])
                parser = Forgiving(response_parser)
                more["response_parser"] = Once(parser) if gen_config.alone else parser
            with self._router._lock:  # it says whom to tell only after it has added the request
                queue, streamer = super().generate_streaming(model, processor, inputs, gen_config, **more)
                if gen_config.tops is not None:
                    gen_config.counts = counted(queue, streamer)
                if gen_config.stop_strings:
                    streamer._queue = Until(queue, gen_config.stop_strings, partial(_end, streamer, gen_config))
            return queue, streamer

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
            asked.sampling = self._sampling = _sampling(asked, model.config.get_text_config().vocab_size)
            note_accepted()

    manager = PerRequest()
    manager.start()
    return manager


def _end(streamer: Any, asked: GenerationConfig) -> None:
    """Ends a stream at its stop string."""
    asked.max_new_tokens = None  # at which the application would say `length`
    streamer.put = lambda output: None  # what is on its way; it would be counted
    streamer.cancel()


class _Nobody:
    """Reads the outputs of requests that nobody waits for any more: the engine would keep all of them."""

    def put(self, output: Any) -> None:
        """Forgets it."""


def let_others_in(scheduler: Any) -> None:
    """Has a scheduler begin new requests again once one was cancelled.

    It stops when its memory is full, and goes on when a request has ended (continuous_api.py:569); if all that
    were begun are cancelled instead, none ever would.
    """
    stock = scheduler.clear_cancelled_requests

    def clear_cancelled_requests() -> Any:
        if cancelled := stock():
            scheduler.block_new_requests = False
        return cancelled

    scheduler.clear_cancelled_requests = clear_cancelled_requests


def fail(processor: Any, states: Iterable[Any], error: Exception) -> None:
    """Fails requests that have begun; those that wait go on."""
    for state in tuple(states):
        if state.request_id in processor.scheduler.active_requests:  # it may have ended in the same step
            processor._handle_request_error(error, state)
            processor.scheduler.finish_request(state.request_id)
    processor.scheduler.block_new_requests = False


def in_few_sizes(runner: Any) -> None:
    """Has a model runner pad its steps by halves of powers of two: its own way is multiples of one size.

    Those would be either many or, for the few tokens that most steps have, a multiple of the work.
    """
    stock = runner.maybe_pad_inputs

    def pad(num_q_tokens: int, max_kv_read: int, use_decode_fast_path: bool) -> tuple[int, int]:
        if use_decode_fast_path or not runner.pad_inputs:
            return stock(num_q_tokens, max_kv_read, use_decode_fast_path)  # type: ignore[no-any-return]
        cache = runner.cache
        return (
            padded(num_q_tokens, LEAST_QUERIES, cache.max_batch_tokens),
            padded(max_kv_read, LEAST_READ, cache.max_tokens_read),
        )

    runner.maybe_pad_inputs = pad


def take_by(sampler: Sampler, processor: Any) -> None:
    """Has the engine's tokens taken by a sampler, and a step fail where the model gives no numbers."""
    runner, tensors = processor.model_runner, processor.inputs_and_outputs
    runner._sample = sampler.write
    compute, update = runner.compute_batch, tensors.prepare_batch_update

    def compute_batch(model: Any, batch_data: Any) -> None:
        if (stream := tensors.compute_stream) is not None:  # what it reads is written on the thread's own
            stream.wait_stream(torch.cuda.current_stream())
        compute(model, batch_data)

    def prepare_batch_update() -> Any:
        _, tokens, _ = found = update()
        if NO_TOKEN in tokens:
            raise FloatingPointError("the model's scores are no numbers")
        sampler.tell(tokens)
        return found

    runner.compute_batch, tensors.prepare_batch_update = compute_batch, prepare_batch_update


def kept_graphs(sampler: Sampler, most: int = KEPT_GRAPHS) -> Any:
    """The engine's store of graphs, which would keep all that were ever made, with those used last only.

    A step in which nobody draws, has a bias, penalizes or wants logprobs has a graph without that.
    """
    from transformers.generation.continuous_batching.utils import CudaGraphBuffer  # noqa: PLC0415

    class Kept(CudaGraphBuffer):  # type: ignore[misc]
        def get_graph(self, key: tuple[int, ...]) -> Any:
            key += sampler.kind
            if key in self._storage:
                self._storage[key] = self._storage.pop(key)  # the last one is the one used last
            return super().get_graph(key)

        def set_graph(self, key: tuple[int, ...], graph: Any) -> None:
            super().set_graph(key + sampler.kind, graph)
            if len(self._storage) > most:
                self._storage.pop(next(iter(self._storage))).reset()

    return Kept()


def padded(size: int, least: int, most: int) -> int:
    """The next of least, 1.5 least, 2 least, 3 least, 4 least, …, but no more than most; powers of two, both."""
    if size <= least:
        return min(least, most)
    step = 1 << (size - 1).bit_length() - 2  # half of the power of two that lies below
    return min(-(-size // step) * step, most)


def _fit(asked: GenerationConfig, size: int, context: int, cap: int) -> None:
    """Bounds what may be generated by the room that is left. Raises HTTPException where there is none."""
    from fastapi import HTTPException  # noqa: PLC0415

    if not size:
        raise HTTPException(400, "the prompt has no tokens")
    if size >= context:
        raise HTTPException(400, f"the prompt has {size} tokens; the model reads at most {context}")
    asked.max_new_tokens = min(asked.max_new_tokens or cap, cap, context - size)


def _sampling(asked: GenerationConfig, vocabulary: int) -> Sampling:
    """A request's own; none that would make the engine's numbers infinite."""
    greedy = Sampling(
        repetition=float(asked.repetition_penalty or 1.0),
        presence=float(getattr(asked, "presence_penalty", None) or 0.0),
        frequency=float(getattr(asked, "frequency_penalty", None) or 0.0),
        bias=asked.bias,
        format=asked.format,
        tops=asked.tops,
    )
    temperature = float(asked.temperature if asked.temperature is not None else 1.0)
    if not asked.do_sample or temperature < COLD:
        return greedy
    return replace(
        greedy,
        temperature=temperature,
        top_k=min(int(asked.top_k), vocabulary) if asked.top_k else vocabulary,
        top_p=float(asked.top_p if asked.top_p is not None else 1.0),
        min_p=float(asked.min_p or 0.0),
        random=random.Random(getattr(asked, "seed", None)),
    )


def _ends(model: Any) -> list[int]:
    """The tokens that end an answer."""
    ends = model.generation_config.eos_token_id
    return [] if ends is None else ends if isinstance(ends, list) else [ends]


def _context(model: Any, config: HandlerConfig) -> int:
    """Tokens that a request may have, its answer included: what the model reads, and what there is memory for."""
    read = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    held = config.cache_tokens or CACHE_TOKENS
    return min(int(read or held), held)
