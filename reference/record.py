"""Records golden answers: requests, and what the reference answers to them.

    python -m reference.record JOB.json

The job names the model's directory, the handler's configuration, the requests (null: four made for the task), the
module of the recipe's own task, and the directory to write to. archive.sh --golden runs it.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from reference.answers import REFERENCES, Answer, Ask, NoReference, own, quiet
from tuning.texts import bodies

CASES, TENSORS = "cases.json", "tensors.safetensors"
TEXTS = (
    "The harbour lay still at dawn.",
    "Not good at all.",
    "Who took the last train?",
    "",
)


def main() -> int:
    """One job; 1 and a line on stderr where there is no reference for it."""
    job = json.loads(Path(sys.argv[1]).read_text())
    quiet()
    module = Path(job["module"]) if job["module"] else None
    try:
        record(Path(job["model"]), job["handler"], job["requests"], Path(job["to"]), module)
    except NoReference as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def record(
    model: Path,
    handler: Mapping[str, Any],
    requests: Sequence[Mapping[str, Any]] | None,
    to: Path,
    module: Path | None = None,
) -> None:
    """Writes cases.json, and tensors.safetensors where answers hold tensors.

    Raises:
        NoReference: the reference cannot answer a request, or there is none.
    """
    task = handler["task"]
    if module is None and task not in REFERENCES:
        raise NoReference(f"{task} has no golden answers")
    requests = requests or made_up(task, model, handler)
    ask = own(task, module, model, handler) if module else REFERENCES[task](model, handler)
    answers = []
    for index, request in enumerate(requests):
        print(f"golden answers: {index + 1} of {len(requests)}", file=sys.stderr, flush=True)
        answers.append(_answer(ask, request, index))
    cases = [
        {"request": request, "answer": answer.document} for request, answer in zip(requests, answers, strict=True)
    ]
    said = {"reference": _versions(), "cases": cases}
    (to / CASES).write_text(json.dumps(said, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    tensors = {
        f"{index}/{name}/{part}": tensor.contiguous()
        for index, answer in enumerate(answers)
        for name, parts in answer.tensors.items()
        for part, tensor in enumerate(parts)
    }
    if any(not torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise NoReference("the reference itself answers NaN or infinity")
    if tensors:
        save_file(tensors, to / TENSORS)


def made_up(task: str, model: Path, handler: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Requests for a recipe that has none of its own. Raises NoReference for an own task."""
    if task not in REFERENCES:
        raise NoReference(f"{task}: nobody but its recipe knows its requests: give them in golden.jsonl")
    if task == "prompt-encoding":
        return [
            {"prompt": TEXTS[0], "max_sequence_length": handler["max_length"]},
            {"prompt": list(TEXTS), "compact": True},
        ]
    texts = [text for text in TEXTS if text]
    found = [json.loads(body) for body in bodies(task, texts, model)]
    if task == "question-answering":
        return [{**request, "align_to_words": False} for request in found]
    return found


def _answer(ask: Ask, request: Mapping[str, Any], index: int) -> Answer:
    place = f"golden request {index + 1}"
    try:
        inspect.signature(ask).bind(**request)
    except TypeError as error:
        raise NoReference(f"{place}: the reference cannot answer it: {error}") from error
    try:
        return ask(**request)
    except NoReference as error:
        raise NoReference(f"{place}: {error}") from error


def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "sentence_transformers")
    return {name: version(name) for name in names if name in sys.modules}


if __name__ == "__main__":
    sys.exit(main())
