"""A native request to the answer that the reference implementation gives, task by task.

Nothing of the handler is used. One text at a time, nothing padded but what the reference itself pads; in float32,
but prompts in the recipe's dtype, as diffusion pipelines encode them. Only what has to hold of an answer is given:
no times, no names.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
import transformers

OFFLINE = {"local_files_only": True, "trust_remote_code": False}


class NoReference(Exception):
    """There is no reference for this, or it cannot be run here; the message is for the user."""


@dataclass(frozen=True)
class Answer:
    """What has to hold of an answer."""

    document: Mapping[str, Any] = field(default_factory=dict)  # what JSON can say
    tensors: Mapping[str, Sequence[torch.Tensor]] = field(default_factory=dict)  # name -> one for each input


Handler: TypeAlias = Mapping[str, Any]  # the `handler:` section, every default written out
Ask: TypeAlias = Callable[..., Answer]  # called with a request's fields by name


def text_classification(model: Path, handler: Handler) -> Ask:
    """Transformers' pipeline."""
    pipeline = _pipeline("text-classification", model, handler, top_k=None)
    ids: Mapping[str, int] = pipeline.model.config.label2id

    def each(text: str) -> dict[str, Any]:
        [found] = pipeline([text], truncation=True)
        best = found[0]
        answer = {"prediction": ids[best["label"]], "label": best["label"], "confidence": best["score"]}
        if handler.get("top_k") is None:
            scores = {ids[entry["label"]]: entry["score"] for entry in found}
            answer["probabilities"] = [scores[index] for index in sorted(scores)]
        return answer

    return lambda *, text=None, texts=None: _predictions(each, text, texts)


def feature_extraction(model: Path, handler: Handler) -> Ask:
    """sentence-transformers, with the recipe's pooling and unit length where it has them."""
    sentences = _sentence_transformers()
    stages = sentences.SentenceTransformer(str(model), device="cpu", local_files_only=True)
    stages.max_seq_length = min(filter(None, (handler.get("max_tokens"), stages.max_seq_length)), default=None)
    pooling, normalize = handler.get("pooling"), handler.get("normalize")
    if pooling is not None or normalize is not None:
        kept = list(stages)
        if pooling is not None:
            size = kept[0].get_word_embedding_dimension()
            kept[1] = sentences.models.Pooling(size, pooling_mode=pooling)
        if normalize is not None:
            kept = kept[:2] + [sentences.models.Normalize()] * normalize
        stages = sentences.SentenceTransformer(modules=kept, device="cpu")

    def ask(*, text: str | None = None, texts: Sequence[str] | None = None) -> Answer:
        vectors = [stages.encode(one, show_progress_bar=False).tolist() for one in _inputs(text, texts)]
        return Answer({"embeddings": vectors})

    return ask


def text_ranking(model: Path, handler: Handler) -> Ask:
    """sentence-transformers' CrossEncoder."""
    encoder = _sentence_transformers().CrossEncoder(
        str(model), device="cpu", local_files_only=True, max_length=handler.get("max_tokens")
    )

    def ask(
        *, query: str, text: str | None = None, texts: Sequence[str] | None = None, top_k: int | None = None
    ) -> Answer:
        found = encoder.rank(
            query, _inputs(text, texts), top_k=top_k or handler.get("top_k"), show_progress_bar=False
        )
        return Answer({"results": [{"index": one["corpus_id"], "score": float(one["score"])} for one in found]})

    return ask


def zero_shot_classification(model: Path, handler: Handler) -> Ask:
    """Transformers' pipeline."""
    pipeline = _pipeline("zero-shot-classification", model, handler)
    if (label := handler.get("entailment_label")) is not None:  # the pipeline takes what begins with `entail`
        ids = pipeline.model.config.label2id
        pipeline.model.config.label2id = {
            ("entailment" if name == label else f"not {name}"): ids[name] for name in ids
        }

    def each(text: str, **options: Any) -> dict[str, Any]:
        found = pipeline(text, **options)
        return {"labels": found["labels"], "scores": found["scores"]}

    def ask(
        *,
        candidate_labels: Sequence[str] | str,
        text: str | None = None,
        texts: Sequence[str] | None = None,
        multi_label: bool = False,
        hypothesis_template: str = "This example is {}.",
    ) -> Answer:
        options: dict[str, Any] = {
            "candidate_labels": candidate_labels,
            "multi_label": multi_label,
            "hypothesis_template": hypothesis_template,
        }
        return _predictions(partial(each, **options), text, texts)

    return ask


def token_classification(model: Path, handler: Handler) -> Ask:
    """Transformers' pipeline."""
    stride = {} if handler.get("stride") is None else {"stride": handler["stride"]}
    strategy = handler["aggregation_strategy"]
    pipeline = _pipeline("token-classification", model, handler, aggregation_strategy=strategy, **stride)

    def each(text: str) -> dict[str, Any]:
        return {"entities": [{**entity, "score": float(entity["score"])} for entity in pipeline(text)]}

    return lambda *, text=None, texts=None: _predictions(each, text, texts)


def question_answering(model: Path, handler: Handler) -> Ask:
    """The model alone and the most probable span: transformers 5 has no such pipeline any more."""
    tokenizer = _tokenizer(model, handler)
    reader = transformers.AutoModelForQuestionAnswering.from_pretrained(model, dtype="float32", **OFFLINE).eval()
    context_first = tokenizer.padding_side == "left"

    def ask(*, question: str, context: str, align_to_words: bool, max_answer_len: int = 15) -> Answer:
        if align_to_words:
            raise NoReference("there is a reference for align_to_words: false only")
        pair = (context, question) if context_first else (question, context)
        inputs = tokenizer(*pair, return_tensors="pt", truncation=False)
        tokens = inputs.encodings[0]
        if len(tokens) > min(tokenizer.model_max_length, handler.get("max_tokens") or 384):
            raise NoReference(f"there is a reference for one window only, and this has {len(tokens)} tokens")
        own = torch.tensor([place == (0 if context_first else 1) for place in tokens.sequence_ids])
        counted = own | (inputs["input_ids"][0] == tokenizer.cls_token_id)  # no answer is one, and shares
        with torch.inference_mode():
            output = reader(**inputs)
        first, last = (
            torch.softmax(logits[0].masked_fill(~counted, -10_000.0), -1) * own
            for logits in (output.start_logits, output.end_logits)
        )
        spans = torch.outer(first, last).triu().tril(max_answer_len - 1)
        begin, end = divmod(int(spans.argmax()), len(tokens))
        start, stop = tokens.offsets[begin][0], tokens.offsets[end][1]
        return Answer({"answer": context[start:stop], "start": start, "end": stop, "score": float(spans.max())})

    return ask


def fill_mask(model: Path, handler: Handler) -> Ask:
    """Transformers' pipeline."""
    pipeline = _pipeline("fill-mask", model, handler)

    def ask(
        *,
        text: str | None = None,
        texts: Sequence[str] | None = None,
        top_k: int | None = None,
        targets: Sequence[str] | None = None,
    ) -> Answer:
        options = {"top_k": top_k or handler.get("top_k") or 5, **({"targets": targets} if targets else {})}
        options["tokenizer_kwargs"] = {"truncation": True}
        found = [pipeline(one, **options) for one in _inputs(text, texts)]
        return Answer({"predictions": found if text is None else found[0]})

    return ask


def prompt_encoding(model: Path, handler: Handler) -> Ask:
    """What diffusers' FLUX.2 pipelines do: template, padding to the maximum, every layer of the whole model."""
    tokenizer = prompt_tokenizer(model)
    attention = {"attn_implementation": handler["attention"]} if handler.get("attention") else {}
    whole = transformers.AutoModel.from_pretrained(
        model, dtype=handler["dtype"], use_safetensors=True, **attention, **OFFLINE
    ).eval()

    def each(prompt: str, length: int, compact: bool) -> tuple[torch.Tensor, torch.Tensor, int, bool]:
        text = templated(tokenizer, prompt, handler)
        size = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        states, mask = hidden_states(whole, tokenizer, text, length, handler["layers"])
        ids = torch.zeros((length, 4), dtype=torch.int64)
        ids[:, 3] = torch.arange(length)
        kept = mask.bool() if compact else torch.ones_like(mask, dtype=torch.bool)
        return states[kept], ids[kept], int(mask.sum()), size > length

    def ask(
        *, prompt: str | Sequence[str], max_sequence_length: int | None = None, compact: bool = False
    ) -> Answer:
        length = max_sequence_length or handler["max_length"]
        found = [each(one, length, compact) for one in ([prompt] if isinstance(prompt, str) else prompt)]
        states, ids, tokens, truncated = (list(column) for column in zip(*found, strict=True))
        document = {"tokens": tokens, "truncated": truncated, "dtype": handler["dtype"]}
        return Answer(document, {"prompt_embeds": states, "text_ids": ids})

    return ask


def prompt_tokenizer(model: Path) -> Any:
    """The model's, with the chat template of its processor where it has none of its own."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model, **OFFLINE)
    if not tokenizer.chat_template:
        tokenizer.chat_template = json.loads((model / "chat_template.json").read_text())["chat_template"]
    return tokenizer


def templated(tokenizer: Any, prompt: str, handler: Handler) -> str:
    """A prompt in its chat template."""
    for removed in handler.get("remove") or ():
        prompt = prompt.replace(removed, "")
    messages = [{"role": "user", "content": prompt}]
    if handler.get("system_message") is not None:
        messages.insert(0, {"role": "system", "content": handler["system_message"]})
    options: Mapping[str, Any] = handler.get("template_options") or {}
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))


def hidden_states(
    model: Any, tokenizer: Any, text: str, length: int, layers: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(length, layers x width) in the model's dtype, padding included; (length,) int64, 0 where padding is."""
    inputs = tokenizer(
        text,
        add_special_tokens=False,
        return_tensors="pt",
        return_token_type_ids=False,
        padding="max_length",
        truncation=True,
        max_length=length,
    )
    with torch.inference_mode():
        states = model(**inputs, output_hidden_states=True, use_cache=False).hidden_states
    return torch.cat([states[layer][0] for layer in layers], dim=-1), inputs["attention_mask"][0]


def own(task: str, module: Path, model: Path, handler: Handler) -> Ask:
    """The function `reference(directory, options, texts)` of the recipe's own module.

    Raises:
        NoReference: it has none.
    """
    name = task.partition(":")[2]
    spec = importlib.util.spec_from_file_location(module.stem, module)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[module.stem] = loaded
    spec.loader.exec_module(loaded)
    if not callable(function := getattr(loaded, "reference", None)):
        raise NoReference(f"{module.name} has no function reference(directory, options, texts)")
    singular = getattr(getattr(loaded, name), "field", "text")

    def ask(**fields: Any) -> Answer:
        if fields.keys() not in ({singular}, {f"{singular}s"}):
            raise NoReference(f"expected {singular} or {singular}s")
        single = singular in fields
        texts = [fields[singular]] if single else list(fields[f"{singular}s"])
        results = function(model, dict(handler.get("options") or {}), texts)
        named = {name for name, value in results[0].items() if isinstance(value, torch.Tensor)}
        tensors = {name: [result[name].cpu() for result in results] for name in sorted(named)}
        plain = [{name: value for name, value in result.items() if name not in named} for result in results]
        if tensors:
            return Answer({name: [one[name] for one in plain] for name in plain[0]}, tensors)
        return Answer(plain[0] if single else {"predictions": plain})

    return ask


# Task -> what makes its reference of a model's directory and the handler's configuration.
REFERENCES: dict[str, Callable[[Path, Handler], Ask]] = {
    "text-classification": text_classification,
    "feature-extraction": feature_extraction,
    "text-ranking": text_ranking,
    "zero-shot-classification": zero_shot_classification,
    "token-classification": token_classification,
    "question-answering": question_answering,
    "fill-mask": fill_mask,
    "prompt-encoding": prompt_encoding,
}


def quiet() -> None:
    """No progress bars and no advice on stderr, which is for what the user has to know."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _pipeline(task: str, model: Path, handler: Handler, **options: Any) -> Any:
    tokenizer = _tokenizer(model, handler)
    return transformers.pipeline(
        task, model=str(model), tokenizer=tokenizer, dtype="float32", device="cpu", **options
    )


def _tokenizer(model: Path, handler: Handler) -> Any:
    """The model's, which cuts at the recipe's max_tokens."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model, **OFFLINE)
    if handler.get("max_tokens"):
        tokenizer.model_max_length = min(tokenizer.model_max_length, handler["max_tokens"])
    return tokenizer


def _sentence_transformers() -> Any:
    try:
        import sentence_transformers  # noqa: PLC0415  the reference of two tasks; the others do without
    except ImportError as error:
        raise NoReference("its reference is sentence-transformers, which is not installed") from error
    return sentence_transformers


def _inputs(text: str | None, texts: Sequence[str] | None) -> list[str]:
    if (text is None) == (texts is None):
        raise NoReference("expected either text or texts")
    return [text] if text is not None else list(texts or ())


def _predictions(each: Callable[[str], dict[str, Any]], text: str | None, texts: Sequence[str] | None) -> Answer:
    found = [each(one) for one in _inputs(text, texts)]
    return Answer(found[0] if text is not None else {"predictions": found})
