"""A model directory: which of its files are packed, which are left out, and why one is refused."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from archiver.errors import Refused
from archiver.weights import INDEX_SUFFIX, pointer_problem, safetensors_problem, shard_problems

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"})
OTHER_WEIGHTS = frozenset({".h5", ".msgpack", ".onnx", ".onnx_data", ".ot", ".gguf", ".tflite", ".mlmodel", ".pb"})
KEPT = (
    ".safetensors",
    ".json",
    ".txt",
    ".model",
    ".tiktoken",
    ".jinja",
    ".vocab",
    ".bpe",
    ".codes",
    ".spm",
    ".md",
)
KEPT_NAMES = re.compile(r"(LICEN[CS]E|NOTICE|COPYING|README|USE_POLICY|merges|vocab)([._-].*)?", re.IGNORECASE)
LEFT_DIRECTORIES = {
    "onnx": "weights in another format",
    "openvino": "weights in another format",
    "coreml": "weights in another format",
    "__pycache__": "not a model file",
}
CHECKPOINT = re.compile(r"checkpoint-\d+")  # the Trainer leaves them beside the model: weights of an earlier step
# Pickles that hold no weights, so that their loss changes no answer.
TRAINING_STATE = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state(_\d+)?|global_step.*)\.(bin|pth?)"
)
TEKKEN = "tekken.json"  # Mistral's own form of a tokenizer, which transformers reads by another library
TOKENIZER_FILES = frozenset(
    {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "tokenizer.model",
        "spiece.model",
        TEKKEN,
    }
)
CONSOLIDATED = re.compile(r"consolidated.*\.safetensors")  # the same weights as Mistral's own library reads them
WEIGHTS = frozenset({"model.safetensors", "model" + INDEX_SUFFIX})  # what transformers looks for
MAX_JSON = 4_000_000  # bytes; settings are small, vocabularies are not and name no code


@dataclass(frozen=True)
class Snapshot:
    """What goes under model/."""

    root: Path  # absolute
    files: dict[str, int]  # path under root, with slashes, sorted -> bytes
    left_out: dict[str, str]  # path -> why; a directory's ends in a slash
    sources: dict[str, Path]  # path -> where the file lies: under root, but for another tokenizer's

    @property
    def is_root(self) -> bool:
        """Whether it is the directory as it stands, with nothing left out and nothing from elsewhere."""
        return not self.left_out and all(path == self.root / name for name, path in self.sources.items())

    @property
    def size(self) -> int:
        """Bytes that are packed."""
        return sum(self.files.values())


def choose(root: Path, tokenizer: Path | None = None) -> Snapshot:
    """Decides on every file of a model directory.

    Args:
        root: the directory.
        tokenizer: where given, the directory whose tokenizer takes the place of the model's own.

    Raises:
        Refused: the model cannot be packed; every file that is in the way, and why.
    """
    root = root.resolve()
    sources: dict[str, Path] = {}
    left_out: dict[str, str] = {}
    problems: list[str] = []
    for name, path in _walk(root, left_out, problems):
        reason = why_left_out(name)
        if reason is not None:
            left_out[name] = reason
        elif problem := not_a_file(path) or file_name_problem(name):
            problems.append(f"{name}: {problem}")
        else:
            sources[name] = path
    if tokenizer:
        left_out.update({name: "another tokenizer is asked for" for name in sources if name in TOKENIZER_FILES})
        sources = {name: path for name, path in sources.items() if name not in TOKENIZER_FILES}
        sources.update(_tokenizer(tokenizer.resolve(), problems))
    sources = dict(sorted(sources.items()))
    files = {name: path.stat().st_size for name, path in sources.items()}
    problems += [*_missing(files, left_out), *_broken(sources, files), *_remote_code(sources, files)]
    if problems:
        raise Refused(*problems)
    return Snapshot(root, files, dict(sorted(left_out.items())), sources)


def _tokenizer(root: Path, problems: list[str]) -> dict[str, Path]:
    """The files of another model's tokenizer, but those that transformers does not read."""
    found = {}
    for name in sorted(TOKENIZER_FILES - {TEKKEN}):
        if os.path.lexists(root / name):
            found[name] = root / name
            if problem := not_a_file(found[name]):
                problems.append(f"tokenizer: {name}: {problem}")
                del found[name]
    if "tokenizer.json" not in found:
        problems.append(f"tokenizer: {root}: holds no tokenizer.json")
    return found


def why_left_out(name: str) -> str | None:
    """Why a file is not packed, or None for one that is."""
    last = PurePosixPath(name)
    suffix = last.suffix.lower()
    if last.name.startswith("."):
        return "hidden"
    if suffix in PICKLES:
        return "a pickle"
    if suffix in OTHER_WEIGHTS or CONSOLIDATED.fullmatch(last.name):
        return "weights in another format"
    if suffix == ".py":
        return "code"
    if suffix in KEPT or KEPT_NAMES.fullmatch(last.name):
        return None
    return "not a model file"


def _walk(root: Path, left_out: dict[str, str], problems: list[str]) -> Iterator[tuple[str, Path]]:
    """Every file but those in directories that are left out whole. The order depends on the file system."""

    def unreadable(error: OSError) -> None:
        raise error

    for folder, folders, names in os.walk(root, onerror=unreadable):
        for directory in list(folders):
            path = Path(folder, directory)
            name = path.relative_to(root).as_posix()
            if reason := _why_directory_left_out(directory):
                left_out[name + "/"] = reason
                folders.remove(directory)
            elif path.is_symlink():
                problems.append(f"{name}: is a link to a directory; links are followed to files only")
                folders.remove(directory)
        for file in names:
            yield Path(folder, file).relative_to(root).as_posix(), Path(folder, file)


def _why_directory_left_out(name: str) -> str | None:
    if name.startswith("."):
        return "hidden"
    if CHECKPOINT.fullmatch(name):
        return "a training checkpoint"
    return LEFT_DIRECTORIES.get(name)


def not_a_file(path: Path) -> str | None:
    """Why it is no file to read; None for one. A hub cache is made of links to blobs, so links are followed."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return f"is a link to {os.readlink(path)}, which is not there"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not stat.S_ISREG(mode):
        return "is not a regular file"
    return None if os.access(path, os.R_OK) else "cannot be read: no permission"


def file_name_problem(name: str) -> str | None:
    """Why a file of this name cannot be packed, or None."""
    plain = name.isprintable() and "\\" not in name
    return None if plain else "has a name that not every machine can unpack"


def _missing(files: dict[str, int], left_out: dict[str, str]) -> Iterator[str]:
    if "config.json" not in files:
        yield "config.json: is missing; expected a Hugging Face model directory"
    pickled = False
    # Where a config.json lies a model or a layer of it lies (sentence-transformers' 2_Dense/); if its weights
    # were left out as a pickle, the model would load without them and answer wrongly.
    for folder in sorted(
        {PurePosixPath(name).parent for name in files if PurePosixPath(name).name == "config.json"}
    ):
        if any(name.endswith(".safetensors") and PurePosixPath(name).parent == folder for name in files):
            continue
        for name in _pickled_weights(folder, left_out):
            pickled = True
            yield f"{name}: the weights exist only as a pickle, which can run code; save them as safetensors"
    if not pickled and not WEIGHTS & files.keys():
        yield "model.safetensors: is missing, and so is an index of shards: there are no weights to pack"


def _pickled_weights(folder: PurePosixPath, left_out: dict[str, str]) -> Iterator[str]:
    for name, reason in left_out.items():
        path = PurePosixPath(name)
        if path.parent == folder and reason == "a pickle" and not TRAINING_STATE.fullmatch(path.name):
            yield name


def _broken(sources: dict[str, Path], files: dict[str, int]) -> Iterator[str]:
    for name, size in files.items():
        problem = pointer_problem(sources[name], size)
        if problem is None and name.endswith(".safetensors"):
            problem = safetensors_problem(sources[name], size)
        if problem is not None:
            yield f"{name}: {problem}"
        elif name.endswith(INDEX_SUFFIX):
            yield from shard_problems(name, sources[name], files)


def _remote_code(sources: dict[str, Path], files: dict[str, int]) -> Iterator[str]:
    for name, size in files.items():
        if not name.endswith(".json") or size > MAX_JSON or pointer_problem(sources[name], size):
            continue
        try:
            document = json.loads(sources[name].read_bytes())
        except (ValueError, RecursionError):
            yield f"{name}: is not JSON"
            continue
        if name == "config.json" and _is_transformers_own(document):
            document = {key: value for key, value in document.items() if key != "auto_map"}
        if found := _auto_map(document):
            yield f"{name}: auto_map asks for code of the model's own, which is never run: {found}"
        if name == "modules.json" and isinstance(document, list):
            for module in document:
                kind = module.get("type") if isinstance(module, dict) else None
                if isinstance(kind, str) and not kind.startswith("sentence_transformers."):
                    yield f"{name}: asks for code of the model's own, which is never run: {kind}"


def _is_transformers_own(document: Any) -> bool:
    """Whether transformers has a class for the model, which it takes in place of the code that auto_map names.

    Found by the folder of that name, without importing transformers; the worker asks transformers itself.
    """
    kind = document.get("model_type") if isinstance(document, dict) else None
    found = find_spec("transformers")
    if not isinstance(kind, str) or not re.fullmatch(r"[\w-]+", kind) or found is None or found.origin is None:
        return False
    return Path(found.origin).with_name("models").joinpath(kind.replace("-", "_"), "__init__.py").is_file()


def _auto_map(document: Any) -> str | None:
    """The value of the first auto_map anywhere in a document, shortened. A vocabulary's entry is a number."""
    waiting = [document]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            value = node.get("auto_map")
            if value and not isinstance(value, int | float):
                return json.dumps(value)[:120]
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return None
