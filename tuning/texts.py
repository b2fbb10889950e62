"""The texts that are sent, and the requests that each task makes of them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from tuning.errors import CannotTune

COUNT = 512
SHORTEST, LONGEST = 4, 120  # words
SEED = 7
QUESTION_WORDS = 12
WORDS = """the of and to in is was for that it with as on be at by this had not are but from or have an they which
one you were her all she there would their we him been has when who will more no if out so said what up its about
into than them can only other new some could time these two may then do first any my now such like our over man me
even most made after also did many before must through years where much your way well down should because each
just those people how too little state good very make world still own see men work long get here between both life
being under never day same another know while last might us great old year off come since against go came right
used take three story film house water small place found night large often room head paper city company family
problem service hand party school week question money music business letter light street morning table market"""

Maker: TypeAlias = Callable[[Sequence[str], int, Path], dict[str, Any]]  # texts, which of them, the model


def built_in(count: int = COUNT) -> list[str]:
    """Different texts of 4 to 120 common English words, the same on every machine."""
    draw, words = random.Random(SEED), WORDS.split()
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts[" ".join(draw.choices(words, k=draw.randint(SHORTEST, LONGEST)))] = None
    return list(texts)


def read(path: Path) -> list[str]:
    """The texts of a file, one a line.

    Raises:
        CannotTune: it cannot be read, or holds none.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as err:
        raise CannotTune(f"--texts {path}: {err.strerror}") from err
    except UnicodeDecodeError as err:
        raise CannotTune(f"--texts {path}: is not UTF-8") from err
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise CannotTune(f"--texts {path}: holds no text; one a line is expected")
    return texts


def bodies(task: str, texts: Sequence[str], model: Path) -> list[str]:
    """A JSON request of each text.

    Raises:
        CannotTune: nobody has said what this task's requests look like, or they cannot be made.
    """
    if task not in MAKERS:
        known = ", ".join(MAKERS)
        raise CannotTune(f"{task}: no requests can be made for this task; there are {known}")
    return [json.dumps(MAKERS[task](texts, index, model)) for index in range(len(texts))]


def _text(texts: Sequence[str], index: int, model: Path) -> dict[str, Any]:
    return {"text": texts[index]}


def _ranking(texts: Sequence[str], index: int, model: Path) -> dict[str, Any]:
    return {"query": _question(texts, index), "texts": [texts[index]]}


def _answering(texts: Sequence[str], index: int, model: Path) -> dict[str, Any]:
    return {"question": _question(texts, index), "context": texts[index]}


def _zero_shot(texts: Sequence[str], index: int, model: Path) -> dict[str, Any]:
    return {"text": texts[index], "candidate_labels": ["business", "family", "music"]}


def _masked(texts: Sequence[str], index: int, model: Path) -> dict[str, Any]:
    """The mask stands first, so that no text is cut before it."""
    return {"text": f"{mask_token(model)} {texts[index]}"}


def _prompt(texts: Sequence[str], index: int, model: Path) -> dict[str, Any]:
    return {"prompt": texts[index], "compact": True}


def _question(texts: Sequence[str], index: int) -> str:
    return " ".join(texts[index - 1].split()[:QUESTION_WORDS]) + "?"


def mask_token(model: Path) -> str:
    """What the model's tokenizer calls its mask."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = model / name
        token = json.loads(path.read_text()).get("mask_token") if path.is_file() else None
        if token:
            return str(token["content"] if isinstance(token, dict) else token)
    raise CannotTune("fill-mask: the model's tokenizer names no mask token")


MAKERS: dict[str, Maker] = {
    "text-classification": _text,
    "feature-extraction": _text,
    "token-classification": _text,
    "text-ranking": _ranking,
    "question-answering": _answering,
    "zero-shot-classification": _zero_shot,
    "fill-mask": _masked,
    "prompt-encoding": _prompt,
}
