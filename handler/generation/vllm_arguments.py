"""vLLM's arguments: `handler.vllm`, named as on its command line, judged by its own parser."""

from __future__ import annotations

import json
from argparse import Action, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from handler.config import ConfigError, ModelConfig
from handler.errors import LoadError
from handler.generation.vllm_formats import choose_backend
from handler.rules import Problem, nearest

# Its arguments that are said elsewhere.
SAID = {
    "model": "the archive's model",
    "model_tag": "the archive's model",
    "tokenizer": "the archive's model",
    "served_model_name": "the name that TorchServe knows",
    "dtype": "handler.dtype",
    "generation_config": "the model's own, with handler.max_new_tokens",
    "override_generation_config": "handler.max_new_tokens",
    "load_format": "safetensors",
}
# Those that would run code from elsewhere, read files for clients, log what they say, or start what is no engine.
REFUSED = frozenset(
    {
        "allowed_local_media_path",
        "allowed_media_domains",
        "api_server_count",
        "code_revision",
        "config",
        "download_dir",
        "enable_log_outputs",
        "enable_log_requests",
        "enable_prompt_embeds",
        "enable_scale_out",
        "grpc",
        "grpc_port",
        "headless",
        "hf_config_path",
        "hf_token",
        "io_processor_plugin",
        "log_error_stack",
        "logits_processors",
        "middleware",
        "reasoning_parser_plugin",
        "scheduler_cls",
        "tokens_only",
        "tool_parser_plugin",
        "tool_server",
        "trust_remote_code",
        "trust_request_chat_template",
        "trust_request_mm_kwargs",
        "worker_cls",
        "worker_extension_cls",
    }
)
# How its workers are started; any other word would be a class, from wherever Python finds it.
EXECUTORS = ("mp", "uni", "ray", "external_launcher")
FRONT = "Frontend"  # the parser's group of what concerns the HTTP server
# Of that group, what the application is made with.
FRONTEND = frozenset(
    {
        "chat_template_content_format",
        "default_chat_template_kwargs",
        "enable_auto_tool_choice",
        "enable_prompt_tokens_details",
        "exclude_tools_when_tool_choice_none",
        "lora_modules",
        "response_role",
        "return_tokens_as_token_ids",
        "tool_call_parser",
        "tool_strict_level",
    }
)


def read_arguments(given: Mapping[str, Any], directory: Path, config: ModelConfig, name: str) -> Namespace:
    """The configuration's arguments, and ours. Raises LoadError, ConfigError."""
    from vllm.entrypoints.launchers import cli_args  # noqa: PLC0415
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        """Raises where argparse would end the process."""

        def error(self, message: str) -> NoReturn:
            raise ValueError(message)

    parser = cli_args.make_arg_parser(Parser())
    front = next(group for group in parser._action_groups if group.title == FRONT)
    closed = REFUSED | ({action.dest for action in front._group_actions} - FRONTEND)
    known = {action.dest: action for action in parser._actions if action.dest not in (*SAID, "help", *closed)}
    problems = []
    words = []
    for key, value in given.items():
        where = f"handler.vllm.{key}"
        if key in SAID:
            problems.append(Problem(where, f"is said elsewhere: {SAID[key]}", repr(value)))
        elif key in closed:
            problems.append(Problem(where, "is refused here", repr(value)))
        elif key == "distributed_executor_backend" and value not in EXECUTORS:
            problems.append(Problem(where, f"expected one of {', '.join(EXECUTORS)}", repr(value)))
        elif key not in known:
            close = nearest(str(key), known)
            reason = "vLLM has no such argument" + (f"; did you mean {close}?" if close else "")
            problems.append(Problem(where, reason, repr(value)))
        else:
            said = []
            try:
                said = _words(known[key], value, directory)
                parser.parse_args(said)
            except (ValueError, TypeError) as error:
                problems.append(Problem(where, str(error), repr(value)))
            words += said
    if given.get("lora_modules") and not given.get("enable_lora"):  # vLLM says so when it has loaded the model
        problems.append(Problem("handler.vllm.enable_lora", "expected true, because there are lora_modules"))
    if problems:
        raise ConfigError(problems)
    ours = [
        *("--model", str(directory), "--served-model-name", name, "--dtype", config.handler.dtype),
        *("--load-format", "safetensors", "--disable-uvicorn-access-log"),
        *("--override-generation-config", json.dumps({"max_new_tokens": config.handler.max_new_tokens})),
    ]
    if "max_num_seqs" not in given:
        ours += ["--max-num-seqs", str(config.server.batchSize)]
    try:
        arguments = parser.parse_args([*ours, *words])
        cli_args.validate_parsed_serve_args(arguments)
    except (ValueError, TypeError) as error:
        raise LoadError(f"handler.vllm: {error}") from error
    choose_backend(arguments)
    return arguments  # type: ignore[no-any-return]


def _words(action: Action, value: Any, directory: Path) -> list[str]:
    """One argument as it would stand on the command line."""
    flag = max(action.option_strings, key=len) if not isinstance(value, bool) else _switch(action, value)
    if isinstance(value, bool) and action.nargs == 0:
        return [flag] if flag else []
    if action.dest == "lora_modules":
        value = [_in_archive(module, directory) for module in (value if isinstance(value, list) else [value])]
    values = value if isinstance(value, list) and action.nargs in ("+", "*") else [value]
    return [flag, *(one if isinstance(one, str) else json.dumps(one) for one in values)]


def _switch(action: Action, value: bool) -> str:
    """The option that turns it on or off; an empty string where off cannot be said, and is the default."""
    off = [option for option in action.option_strings if option.startswith("--no-")]
    on = [option for option in action.option_strings if option.startswith("--") and option not in off]
    return on[0] if value else (*off, "")[0]


def _in_archive(module: Any, directory: Path) -> Any:
    """An adapter, whose path is one of the archive's model. Raises ValueError."""
    if not isinstance(module, Mapping) or not isinstance(path := module.get("path"), str):
        raise ValueError("expected a list of mappings with name and path")
    if not (directory / path).resolve().is_relative_to(directory.resolve()):
        raise ValueError(f"{path} is not in the archive's model")
    if not (directory / path / "adapter_config.json").is_file():
        raise ValueError(f"{path} has no adapter_config.json, as PEFT writes it")
    return {**module, "path": str(directory / path)}
