"""model/ directory -> model and tokenizer on the right device; offline, safetensors only, no remote code.

transformers' names are reached through the package, where they are used: importing the Auto classes takes seconds,
which the check of every archive would pay.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import normalizers

from handler import devices
from handler.config import EMBEDDERS, RANKERS, HandlerConfig
from handler.errors import LoadError
from handler.linear import prepack

logger = logging.getLogger(__name__)

# Where they are installed, assisted generation imports scikit-learn, and the losses of object detection SciPy, for
# every model: 1.7 of the 8.3 s of processor time that a start takes, and 75 MB (transformers'
# generation/candidate_generator.py:30, loss/loss_for_object_detection.py:26).
transformers.utils.is_sklearn_available = transformers.utils.is_scipy_available = lambda: False

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OFFLINE = {"local_files_only": True, "trust_remote_code": False}  # for everything that reads model/
NO_LIMIT = 10**9  # tokenizers without a limit say 1e30

# sentence-transformers' own, in its order, and the keys in them that need nothing done or are done.
SENTENCE_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
SENTENCE_KEYS = (
    "max_seq_length",
    "do_lower_case",
    "transformer_task",
    "modality_config",
    "module_output_name",
    "unpad_inputs",
)
DONE = ("feature-extraction", "sequence-classification")  # of its transformer_task


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to run."""

    model: Any  # transformers.PreTrainedModel, in eval mode, on `device`
    tokenizer: Any  # transformers.PreTrainedTokenizerFast
    device: torch.device
    directory: Path
    max_tokens: int  # that one text may have, special ones included
    pad_id: int  # what stands beside shorter texts
    vocabulary: int  # the model's tokens; the tokenizer may have more
    quantized: bool


def load(
    directory: Path,
    config: HandlerConfig,
    auto_class: Any,
    device: torch.device,
    optional: tuple[str, ...] = (),
) -> Loaded:
    """Loads a snapshot.

    Args:
        directory: the archive's `model/`.
        config: the `handler:` section.
        auto_class: transformers' Auto class for the task.
        device: where the model goes.
        optional: beginnings of the names of weights that the task does not use, and which may be missing.

    Raises:
        LoadError: one line says what is wrong with the model.
    """
    check_directory(directory)
    model_config = transformers.AutoConfig.from_pretrained(directory, **OFFLINE)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, **OFFLINE)
    if not tokenizer.is_fast:
        raise LoadError("the model has no fast tokenizer (tokenizer.json)")
    said = read_sentence_config(directory, config.task)
    if said.get("do_lower_case"):
        own = tokenizer.backend_tokenizer.normalizer
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Lowercase(), *([own] if own else [])]
        )
    model, report = auto_class.from_pretrained(
        directory,
        config=model_config,
        dtype=DTYPES[config.dtype],
        attn_implementation=config.attention,
        use_safetensors=True,
        output_loading_info=True,
        **OFFLINE,
    )
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(optional or ("\0",)))
    if missing:  # transformers fills them with random numbers and goes on
        raise LoadError(
            f"model.safetensors lacks {len(missing)} weights that {config.task} needs, such as {missing[0]}"
        )
    size = int(model.get_input_embeddings().num_embeddings)
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= size:
        logger.warning(
            "texts with some tokens are refused: the tokenizer's reach %d, the model's %d", highest, size - 1
        )
    pad_id = _settle_padding(model, tokenizer, size)
    model = _faster(model.to(device).eval(), config)
    most = _max_tokens(said, config, model, tokenizer)
    return Loaded(model, tokenizer, device, directory, most, pad_id, size, bool(config.quantize))


def check_directory(directory: Path) -> None:
    """Raises LoadError where there is no model, or one that asks for remote code; quiets transformers."""
    if not (directory / "config.json").is_file():
        raise LoadError("the archive has no model/config.json")
    config = read_json(directory / "config.json")
    # Where transformers has a class of its own, that is taken: OFFLINE trusts no remote code.
    if "auto_map" in config and config.get("model_type") not in transformers.CONFIG_MAPPING:
        raise LoadError("model/config.json asks for remote code (auto_map), which is never run")
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()


def _faster(model: Any, config: HandlerConfig) -> Any:
    """The model as the configuration wants it computed."""
    if config.quantize:
        _quantize(model)
    if config.compile:
        if not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
            raise LoadError("handler.compile needs a C++ compiler, and there is none: install g++, or set CXX")
        model.compile(dynamic=True)  # shapes as variables: one program for all lengths, not one for each
    elif config.prepack:
        threads = torch.get_num_threads()
        lanes = devices.lanes(model.device, threads, config.lanes)
        prepack(model, {threads, devices.lane_threads(threads, lanes)})
    return model


def _quantize(model: Any) -> None:
    """Replaces the linear layers of the encoder; a task's own head is small, and its numbers are the answer."""
    if next(model.parameters()).device.type != "cpu":
        raise LoadError("handler.quantize is for CPUs, and this worker has a GPU; set deviceType to cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao.quantization is to move to torchao, which has no such kernels
        torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
            model.base_model,
            {torch.nn.Linear: torch.ao.quantization.per_channel_dynamic_qconfig},
            dtype=torch.qint8,
            inplace=True,
        )


def read_json(path: Path) -> dict[str, Any]:
    """One of the model's JSON objects; empty where the file is not there."""
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def _settle_padding(model: Any, tokenizer: Any, size: int) -> int:
    """The token that pads: the model's own, whatever the tokenizer's is. Raises LoadError.

    Decoders classify by a text's last token, which they find as the last that is not their config's pad_token_id
    (transformers' modeling_layers.py); a config without one takes no two texts at once, so it is given one here.
    """
    config = model.config.get_text_config()
    own = getattr(config, "pad_token_id", None)
    if own is not None and 0 <= own < size:
        return int(own)
    # Without one, it is the very last token that classifies: what ends every text must not pass for padding.
    ends = tokenizer("a", verbose=False)["input_ids"][-1:]
    for found in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if found is not None and found < size and found not in ends:
            config.pad_token_id = found
            return int(found)
    if type(model).__name__.endswith("ForSequenceClassification"):
        raise LoadError("model/config.json has no pad_token_id, and the tokenizer no token to pad with")
    return 0


def read_sentence_config(directory: Path, task: str) -> dict[str, Any]:
    """What sentence-transformers would read of how texts are tokenized, where it would read anything.

    It takes the first file that says something, and only beside a modules.json; CrossEncoder only where it has
    written them itself (sentence_transformers/base/modules/transformer.py, `load_config`, and base/model.py).

    Returns:
        `max_seq_length` and `do_lower_case`, if they are said.

    Raises:
        LoadError: it says something that is not done here.
    """
    about = read_json(directory / "config_sentence_transformers.json")
    read = task in EMBEDDERS or (task in RANKERS and about.get("model_type") == "CrossEncoder")
    if not read or not (directory / "modules.json").is_file():
        return {}
    for name in SENTENCE_CONFIGS:
        if said := read_json(directory / name):
            break
    processor = dict(said.pop("tokenizer_args", None) or said.pop("processor_kwargs", None) or {})
    limit = processor.pop("model_max_length", None) or said.get("max_seq_length")
    for key in ("model_args", "model_kwargs", "config_args", "config_kwargs"):
        said[key] = {each: value for each, value in (said.get(key) or {}).items() if each != "trust_remote_code"}
    processor.pop("trust_remote_code", None)
    more = [f"tokenizer's {key}" for key in processor] + [
        key for key, value in said.items() if value and key not in SENTENCE_KEYS
    ]
    if said.get("transformer_task", DONE[0]) not in DONE:
        more.append("transformer_task")
    if more:
        raise LoadError(f"model/{name} has {more[0]}, which is not supported")
    return {"max_seq_length": limit, "do_lower_case": said.get("do_lower_case")}


def _max_tokens(said: Mapping[str, Any], config: HandlerConfig, model: Any, tokenizer: Any) -> int:
    limits = [said.get("max_seq_length") or tokenizer.model_max_length, NO_LIMIT]
    positions = getattr(model.config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        limits.append(positions - _position_offset(model))
    limit = int(min(limits))
    if config.max_tokens is not None and config.max_tokens > limit:
        raise LoadError(f"handler.max_tokens is {config.max_tokens}, but the model reads at most {limit}")
    limit = config.max_tokens or limit
    if limit >= NO_LIMIT:
        raise LoadError("neither model nor tokenizer says how long a text may be; set handler.max_tokens")
    return limit


def _position_offset(model: Any) -> int:
    """RoBERTa's kind counts positions from behind the padding index, so the first are never used."""
    embeddings = getattr(getattr(model, "base_model", None), "embeddings", None)
    padding = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
    return 0 if padding is None else int(padding) + 1
