"""model-config.yaml: TorchServe's keys on top, ours under `handler:`; read once, validated whole.

The archiver judges a recipe with this same code, so what loads was checked when it was packed.
TorchServe itself only warns about a value of the wrong type and goes on with its default
(frontend ModelConfig.java), and ignores keys that it does not know: both are refused here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from handler.rules import BOOLEAN, TEXT, Problem, Rule, check, integer, key, number, one_of, optional, strings

# Task name -> the module that does it. Adding a task is one module, one line here, one scenario file.
TASKS = {
    "text-classification": "handler.tasks.text_classification",
    "feature-extraction": "handler.tasks.feature_extraction",
    "text-ranking": "handler.tasks.text_ranking",
    "zero-shot-classification": "handler.tasks.zero_shot_classification",
    "token-classification": "handler.tasks.token_classification",
    "question-answering": "handler.tasks.question_answering",
    "fill-mask": "handler.tasks.fill_mask",
    "prompt-encoding": "handler.tasks.prompt_encoding",
}
GENERATION = ("text-generation",)  # done by the other wing, handler/generation/
ENGINES = ("transformers", "vllm")

OWN = "MODULE:CLASS"  # a task of the recipe's own, whose module lies beside it
OWN_NAME = re.compile(r"[A-Za-z_]\w*:[A-Za-z_]\w*", re.ASCII)

MAX_INT = 2**31 - 1  # TorchServe reads Java ints
DEADLINE_SHARE = 0.8  # of responseTimeout, after which TorchServe kills the worker (WorkerThread.java:203)

CLASSIFIERS = ("text-classification",)
EMBEDDERS = ("feature-extraction",)
RANKERS = ("text-ranking",)
ZERO_SHOT = ("zero-shot-classification",)
TAGGERS = ("token-classification",)
READERS = ("question-answering",)
MASKED = ("fill-mask",)
PROMPTS = ("prompt-encoding",)

AGGREGATION_STRATEGIES = ("none", "simple", "first", "average", "max")  # as transformers' pipeline calls them


class ConfigError(ValueError):
    """A configuration that cannot be used; carries every problem, not the first."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("; ".join(map(str, problems)))


def refused(why: str) -> Rule:
    """A switch that may only be off."""
    return Rule(f"false or no such key: {why}", lambda value: value is False)


def is_own(task: object) -> bool:
    """Whether a task is a class of the recipe's own."""
    return isinstance(task, str) and OWN_NAME.fullmatch(task) is not None


def unused(handler: HandlerConfig) -> tuple[str, ...]:
    """What the names of modules begin with that a worker with this configuration never imports."""
    if handler.task not in GENERATION:
        return ("handler.generation.",)
    return tuple(f"handler.generation.{engine}_" for engine in ENGINES if engine != handler.engine)


def _is_options(value: object) -> bool:
    plain = (bool, int, float, str)
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(option, plain) for name, option in value.items()
    )


SERVED_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,255}")  # as models' names on the hub, adapters' as well
SERVED_NAMES = Rule(
    "a list of names such as org/model",
    lambda v: isinstance(v, list) and all(isinstance(name, str) and SERVED_NAME.fullmatch(name) for name in v),
)
OPTIONS = Rule("a mapping of names to true, false, numbers or strings", _is_options)


@dataclass(frozen=True)
class ServerConfig:
    """TorchServe's own keys, spelled as it spells them. All are written out in every archive.

    An archive's model-config.yaml beats config.properties and the register API, down to the built-in default
    of a key that it leaves out (ModelManager.java:392), so nothing is left to be guessed.
    """

    minWorkers: int = key(integer(1, 1024), "worker processes to start with", 1)
    maxWorkers: int = key(integer(1, 1024), "worker processes that scaling may reach", 1)
    batchSize: int = key(integer(1, 4096), "requests that one worker is handed at once", 64)
    maxBatchDelay: int = key(
        integer(1, 60_000), "ms that a batch may wait to fill; 1 is greedy, 0 cannot be expressed", 1
    )
    responseTimeout: int = key(integer(1, MAX_INT), "s after which TorchServe kills a worker that is silent", 60)
    startupTimeout: int = key(integer(1, MAX_INT), "s that loading and warming up may take", 300)
    maxRetryTimeoutInSec: int = key(integer(1, MAX_INT), "s during which a failing worker is started again", 60)
    jobQueueSize: int = key(integer(1, MAX_INT), "requests that may wait; the next one gets 503", 1000)
    deviceType: str | None = key(optional(one_of("cpu", "gpu")), "where workers run; null: a GPU if any", None)
    deviceIds: list[int] | None = key(
        Rule(
            "a list of GPU numbers, or null",
            lambda v: v is None or (isinstance(v, list) and bool(v) and all(type(i) is int and i >= 0 for i in v)),
        ),
        "GPUs that the workers share",
        None,
    )
    asyncCommunication: bool = key(
        refused("it leaks requests, broadcasts errors and hangs clients in TorchServe 0.12"),
        "refused",
        False,
    )
    continuousBatching: bool | None = key(
        optional(BOOLEAN), "as the task needs it: true for text-generation, false for all others", None
    )
    sequenceBatching: bool = key(refused("a crashed worker is never started again"), "refused", False)
    useJobTicket: bool = key(refused("it undoes batching"), "refused", False)
    useVenv: bool = key(refused("it installs packages while the server starts"), "refused", False)


@dataclass(frozen=True)
class HandlerConfig:
    """The `handler:` section."""

    task: str = key(
        Rule(
            f"one of {', '.join((*TASKS, *GENERATION))}, or {OWN} of a module in the recipe",
            lambda v: isinstance(v, str) and (v in TASKS or v in GENERATION or is_own(v)),
        ),
        "what the model does",
    )
    dtype: str = key(
        one_of("float32", "bfloat16", "float16"), "the number format that the model runs in", "float32"
    )
    quantize: str | None = key(
        optional(one_of("int8")), "linear layers in 8-bit integers, activations as they come; on a CPU only", None
    )
    compile: bool = key(BOOLEAN, "torch.compile, done before the worker is READY; needs a C++ compiler", False)
    attention: str | None = key(
        optional(one_of("sdpa", "eager")), "how attention is computed; null: as transformers chooses", None
    )
    max_tokens: int | None = key(
        optional(integer(1)),
        "tokens of one text, special ones included; null: the model's limit (question-answering: 384 at most)",
        None,
    )
    max_items: int = key(integer(1), "texts in one request, or pairs of a text and a label", 256)
    max_text_bytes: int = key(integer(1), "UTF-8 bytes of one text", 100_000)
    max_body_bytes: int = key(
        integer(1), "bytes of one request, and of all pairs of texts that it asks for", 1_048_576
    )
    max_response_bytes: int = key(
        integer(1_000), "bytes of one answer; below max_response_size of config.properties", 10_000_000
    )
    max_batch_tokens: int | None = key(
        optional(integer(1)),
        "tokens, padding included, that go through the model at once; null: 512 on a CPU, up to 2048 for a small "
        "encoder, 16384 on a GPU, 2048 there for text-generation",
        None,
    )
    deadline_seconds: float | None = key(
        optional(number(0.001, 86_400)),
        "s after which a batch's remaining requests get 504; null: 0.8 of responseTimeout",
        None,
    )
    threads: int | None = key(
        optional(integer(1, 1024)),
        "CPU threads of one worker; null: the cores shared among the workers",
        None,
    )
    lanes: int | None = key(
        optional(integer(1, 64)),
        "micro-batches that run at once, the threads shared among them; null: one a thread up to 4, on a GPU 1",
        None,
    )
    cache_bytes: int = key(
        integer(0), "bytes of answers that a worker remembers, for texts that come again; 0: none", 0
    )
    warm_up: bool = key(BOOLEAN, "run the model before the worker is READY", True)
    golden_tolerance: float | None = key(
        optional(number(1e-9, 2)),
        "how far an answer may be from the archive's golden one: numbers by so much, vectors by so much of their"
        " length; null: 0.0001 in float32, 0.01 in float16, 0.05 in bfloat16",
        None,
    )
    top_k: int | None = key(
        optional(integer(1)),
        "answer with the k best; null: all labels or texts, one answer to a question, five tokens for a mask",
        None,
        CLASSIFIERS + RANKERS + READERS + MASKED,
    )
    threshold: float = key(
        number(0, 1), "probability from which a multi-label model's label holds", 0.5, CLASSIFIERS
    )
    pooling: str | None = key(
        optional(one_of("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")),
        "how token vectors become one; null: as the model's sentence-transformers files say, else mean",
        None,
        EMBEDDERS,
    )
    normalize: bool | None = key(
        optional(BOOLEAN),
        "unit length; null: as the model's sentence-transformers files say",
        None,
        EMBEDDERS,
    )
    entailment_label: str | None = key(
        optional(TEXT),
        "the model's label that says that one text follows from another; null: the one that begins with entail",
        None,
        ZERO_SHOT,
    )
    aggregation_strategy: str = key(
        one_of(*AGGREGATION_STRATEGIES), "how tokens become entities", "simple", TAGGERS
    )
    stride: int | None = key(
        optional(integer(0)),
        "tokens that neighbouring windows of a long text share; null: it is cut,"
        " but a context is read in windows that share half of max_tokens, at most 128",
        None,
        TAGGERS + READERS,
    )
    layers: list[int] | None = key(
        Rule(
            "a list of different layers, counted from 0, the embeddings",
            lambda v: (
                isinstance(v, list)
                and bool(v)
                and len(set(map(str, v))) == len(v)
                and all(type(i) is int and 0 <= i <= 1000 for i in v)
            ),
        ),
        "whose hidden states are wanted, side by side in this order; needed",
        None,
        PROMPTS,
    )
    max_length: int = key(integer(1), "tokens of an answer, to which prompts are padded or cut", 512, PROMPTS)
    system_message: str | None = key(
        optional(TEXT), "what the chat template puts before every prompt; null: nothing", None, PROMPTS
    )
    template_options: dict[str, Any] | None = key(
        optional(OPTIONS),
        "what else the chat template is given",
        None,
        PROMPTS,
    )
    remove: list[str] | None = key(
        optional(strings(1)), "what is taken out of prompts before they are tokenized", None, PROMPTS
    )
    padding: str = key(
        one_of("fill", "compute"),
        "padding: filled in where that was seen to be exact, else computed; or always computed",
        "fill",
        PROMPTS,
    )
    options: dict[str, Any] | None = key(
        optional(OPTIONS),
        "what the class of the recipe's own task is given",
        None,
        (OWN,),
    )
    prepack: bool = key(
        BOOLEAN,
        "weights of large linear layers in the order of a CPU's kernels, where it has AVX2 or AVX-512: faster; but"
        " they are each worker's own then, and no pages of a file that all share",
        True,
        (*CLASSIFIERS, *EMBEDDERS, *RANKERS, *ZERO_SHOT, *TAGGERS, *READERS, *MASKED, *GENERATION),
    )
    served_model_names: list[str] | None = key(
        optional(SERVED_NAMES),
        "what else a request's `model` may say in OpenAI's protocol, beside the archive's name",
        None,
        EMBEDDERS + GENERATION,
    )
    engine: str = key(one_of(*ENGINES), "what generates", "transformers", GENERATION)
    max_new_tokens: int = key(integer(1), "the most tokens of an answer, whatever is asked for", 1024, GENERATION)
    cache_tokens: int | None = key(
        optional(integer(512)),
        "tokens, prompts included, that all live requests may hold together; null: 32768; vLLM has its own",
        None,
        GENERATION,
    )
    vllm: dict[str, Any] | None = key(
        optional(Rule("a mapping of vLLM's arguments, as max_model_len: 4096", lambda v: isinstance(v, dict))),
        "arguments of vLLM, named as on its command line, for engine vllm",
        None,
        GENERATION,
    )
    truncation: bool = key(
        BOOLEAN, "cut a prompt that is longer than the answer; false: refuse it with 413", True, PROMPTS
    )


@dataclass(frozen=True)
class ModelConfig:
    """A whole model-config.yaml."""

    server: ServerConfig
    handler: HandlerConfig

    @property
    def deadline_seconds(self) -> float:
        """How long one batch may take."""
        return self.handler.deadline_seconds or DEADLINE_SHARE * self.server.responseTimeout

    def document(self) -> dict[str, Any]:
        """The file's content with every default written out; what is unset is left out."""
        server = _written(self.server)
        handler = _written(self.handler)
        return {**server, "handler": handler}


def read_config(document: object) -> ModelConfig:
    """Validates the parsed YAML of a model-config.yaml.

    Raises:
        ConfigError: with every wrong key, its value, what was expected and the nearest known key.
    """
    if not isinstance(document, Mapping):
        raise ConfigError([Problem("model-config.yaml", "expected a mapping with a handler section")])
    top = {name: value for name, value in document.items() if name != "handler"}
    section = document.get("handler")
    problems = check(top, ServerConfig, quote=True)
    if not isinstance(section, Mapping):
        raise ConfigError([*problems, Problem("handler", "expected a section with at least a task")])
    task = section.get("task")
    problems += check(section, HandlerConfig, "handler.", quote=True, task=_kind(task))
    if problems:
        raise ConfigError(problems)
    server = ServerConfig(**top)
    if server.continuousBatching is None:
        server = replace(server, continuousBatching=task in GENERATION)
    config = ModelConfig(server, HandlerConfig(**section))
    if problems := _contradictions(config):
        raise ConfigError(problems)
    return config


def _contradictions(config: ModelConfig) -> list[Problem]:
    server, handler = config.server, config.handler
    problems = []
    if server.minWorkers > server.maxWorkers:
        problems.append(
            Problem("minWorkers", f"expected at most maxWorkers, {server.maxWorkers}", str(server.minWorkers))
        )
    if config.deadline_seconds >= server.responseTimeout:
        expected = f"expected less than responseTimeout, {server.responseTimeout}"
        problems.append(Problem("handler.deadline_seconds", expected, str(handler.deadline_seconds)))
    if handler.quantize:
        clashes = {
            "handler.dtype": (handler.dtype, "float32"),
            "handler.compile": (handler.compile, False),
            "deviceType": (server.deviceType or "cpu", "cpu"),
        }
        problems += [
            Problem(
                name,
                f"expected {str(allowed).lower()}, because handler.quantize is {handler.quantize}",
                str(value),
            )
            for name, (value, allowed) in clashes.items()
            if value != allowed
        ]
    if server.continuousBatching != (handler.task in GENERATION):
        needed = str(handler.task in GENERATION).lower()
        problems.append(
            Problem("continuousBatching", f"expected {needed} for {handler.task}", str(server.continuousBatching))
        )
    problems += _not_for_own(handler)
    if handler.task in GENERATION:
        problems += _not_for_generation(server, handler)
    if handler.task in PROMPTS:
        if handler.layers is None:
            problems.append(
                Problem("handler.layers", f"is missing; {handler.task} needs a list such as [10, 20, 30]")
            )
        for name in ("quantize", "max_tokens"):
            if (value := getattr(handler, name)) is not None:
                problems.append(Problem(f"handler.{name}", f"is not for {handler.task}", str(value)))
        if handler.compile:
            problems.append(Problem("handler.compile", f"expected false for {handler.task}", "True"))
    if handler.compile and not handler.warm_up:
        problems.append(Problem("handler.warm_up", "expected true, because handler.compile is true", "False"))
    if handler.stride is not None and handler.aggregation_strategy == "none":
        expected = "expected an aggregation_strategy other than none"  # as transformers' pipeline does
        problems.append(Problem("handler.stride", expected, str(handler.stride)))
    return problems


def _not_for_own(handler: HandlerConfig) -> list[Problem]:
    """What would do nothing, because nothing here loads its model, may not be set."""
    unread = {"quantize": None, "compile": False, "attention": None} if is_own(handler.task) else {}
    return [
        Problem(f"handler.{name}", "is not for a task of the recipe's own", str(getattr(handler, name)))
        for name, unset in unread.items()
        if getattr(handler, name) != unset
    ]


def _not_for_generation(server: ServerConfig, handler: HandlerConfig) -> list[Problem]:
    """What the generation wing does not look at may not be set, and its worker is alone."""
    alone = "two workers of a continuous batch stall each other (Model.java:438)"
    needed: dict[str, tuple[object, object, str]] = {
        "minWorkers": (server.minWorkers, 1, alone),
        "maxWorkers": (server.maxWorkers, 1, alone),
    }
    defaults = {field.name: field.default for field in fields(HandlerConfig)}
    for name in (
        "quantize",
        "compile",
        "max_tokens",
        "max_text_bytes",
        "lanes",
        "cache_bytes",
        "deadline_seconds",
        "golden_tolerance",
    ):
        needed[f"handler.{name}"] = (getattr(handler, name), defaults[name], "it has no meaning here")
    other = f"it is not for engine {handler.engine}"
    for name in ("cache_tokens", "max_batch_tokens", "attention") if handler.engine == "vllm" else ("vllm",):
        needed[f"handler.{name}"] = (getattr(handler, name), None, other)
    return [
        Problem(name, f"is to be left out for {handler.task}: {why}", str(value))
        for name, (value, allowed, why) in needed.items()
        if value != allowed
    ]


def _kind(task: object) -> str | None:
    """What keys that are not for every task call this one; None for what is no task."""
    if is_own(task):
        return OWN
    return task if isinstance(task, str) and (task in TASKS or task in GENERATION) else None


def _written(config: ServerConfig | HandlerConfig) -> dict[str, Any]:
    kind = _kind(getattr(config, "task", None))
    return {
        field.name: getattr(config, field.name)
        for field in fields(config)
        if getattr(config, field.name) is not None
        and (not field.metadata["tasks"] or kind in field.metadata["tasks"])
    }
