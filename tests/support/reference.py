"""What transformers and sentence-transformers answer run directly: one text at a time, no padding."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from sentence_transformers import CrossEncoder
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Pipeline,
    pipeline,
)

from tests.support import tiny_models

GOLDEN = Path(__file__).parent.parent / "handler" / "golden"


def probabilities(model: Path, texts: Sequence[str], multi_label: bool = False) -> np.ndarray:
    """(texts, labels) float32."""
    classifier = AutoModelForSequenceClassification.from_pretrained(model).eval()
    logits = torch.cat([classifier(**inputs).logits for inputs in _inputs(model, texts)])
    return (torch.sigmoid(logits) if multi_label else torch.softmax(logits, dim=-1)).numpy()


def mean_embeddings(model: Path, texts: Sequence[str]) -> np.ndarray:
    """(texts, size) float32: the mean over tokens."""
    encoder = AutoModel.from_pretrained(model).eval()
    return torch.cat([encoder(**inputs).last_hidden_state.mean(1) for inputs in _inputs(model, texts)]).numpy()


def ranked(model: Path, fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What CrossEncoder.rank answers to a request."""
    texts = [fields["text"]] if "text" in fields else list(fields["texts"])
    return cross_encoder(model).rank(
        fields["query"],
        texts,
        top_k=int(fields.get("top_k", len(texts))),
        return_documents=bool(fields.get("return_texts")),
        activation_fn=torch.nn.Identity() if fields.get("raw_scores") else None,
        show_progress_bar=False,
    )


def judged(model: Path, fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the pipeline for zero-shot classification answers to a request, one for each text."""
    return zero_shot(model)(
        [fields["text"]] if "text" in fields else list(fields["texts"]),
        fields["candidate_labels"],
        multi_label=fields.get("multi_label") in (True, "true"),
        hypothesis_template=fields.get("hypothesis_template", "This example is {}."),
    )


@cache
def zero_shot(model: Path) -> Pipeline:
    return pipeline("zero-shot-classification", str(model), device="cpu")


@cache
def cross_encoder(model: Path) -> CrossEncoder:
    return CrossEncoder(str(model), device="cpu", local_files_only=True)


def entities(model: Path, texts: Sequence[str], stride: int | None = None, **parameters: Any) -> list:
    """The pipeline's entities of each text."""
    pipeline = _pipeline("token-classification", model)
    options = {"aggregation_strategy": "simple", **({} if stride is None else {"stride": stride}), **parameters}
    return [pipeline(text, **options) for text in texts]


def fillings(model: Path, texts: Sequence[str], **parameters: Any) -> list:
    """The pipeline's fillings of each text, which is cut where it is too long."""
    pipeline = _pipeline("fill-mask", model)
    return [pipeline(text, tokenizer_kwargs={"truncation": True}, **parameters) for text in texts]


def last_hidden_state(model: Path, text: str) -> np.ndarray:
    """(size,) float32, of unit length: the last token's, as vLLM pools a decoder."""
    tokenizer, loaded = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    with torch.inference_mode():
        state = loaded(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1]
    return torch.nn.functional.normalize(state, dim=0).numpy()


def generated(model: Path, prompt: str, new: int, chat: bool = True, **more: Any) -> tuple[str, int, int]:
    """What `generate` makes of a prompt, greedily and alone: the text, and its tokens in and out."""
    tokenizer, loaded = _generator(model)
    if chat:
        messages = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=not chat)
    size = inputs["input_ids"].shape[1]
    with torch.inference_mode():
        ids = loaded.generate(**inputs, max_new_tokens=new, do_sample=False, **more)[0, size:]
    return tokenizer.decode(ids, skip_special_tokens=True), size, len(ids)


def continued(model: Path, inputs: Any, **parameters: Any) -> Any:
    """What the pipeline for text generation answers, greedily where nothing is said."""
    return _pipeline("text-generation", model)(inputs, **{"do_sample": False, **parameters})


@cache
def _generator(model: Path) -> tuple[Any, Any]:
    return AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model).eval()


@cache
def golden_answers(model: Path) -> dict[str, list[dict[str, Any]]]:
    """Case -> what transformers 4 answered, the best first: version 5 has no such pipeline."""
    recorded = json.loads((GOLDEN / "question-answering.json").read_text())
    assert recorded["weights"] == tiny_models.digest(model), "the answers were recorded with another model"
    return {
        case["name"]: case["answer"] if isinstance(case["answer"], list) else [case["answer"]]
        for case in recorded["cases"]
    }


@cache
def _pipeline(task: str, model: Path) -> Any:
    return transformers.pipeline(task, model=str(model), device="cpu")


def _inputs(model: Path, texts: Sequence[str]) -> list:
    torch.set_grad_enabled(False)
    tokenizer = AutoTokenizer.from_pretrained(model)
    return [tokenizer(text, truncation=True, return_tensors="pt") for text in texts]


# Task -> (model, scenario) -> what the scenario's answer is held against.
REFERENCES: dict[str, Callable[[Path, Any], Any]] = {
    "text-classification": lambda model, scenario: probabilities(model, scenario.texts),
    "feature-extraction": lambda model, scenario: mean_embeddings(model, scenario.texts),
    "text-ranking": lambda model, scenario: ranked(model, scenario.fields()),
    "zero-shot-classification": lambda model, scenario: judged(model, scenario.fields()),
    "token-classification": lambda model, scenario: entities(model, scenario.texts, **scenario.parameters),
    "fill-mask": lambda model, scenario: fillings(model, scenario.texts, **scenario.parameters),
    "question-answering": lambda model, scenario: [golden_answers(model)[name] for name in scenario.raw["golden"]],
}
