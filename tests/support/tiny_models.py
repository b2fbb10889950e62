"""Models of a real architecture with random weights from a fixed seed; their tokenizer knows a few words."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    Phi3Config,
    Phi3ForCausalLM,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForQuestionAnswering,
    RobertaForTokenClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)

CORPUS = (
    "the film was not good at all and I would not see it again",
    "a wonderful story, well told and well played by everybody in it",
    "the battery died after a week; they sent another one, which works",
)
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def classifier(directory: Path, labels: int = 3, names: Sequence[str] = (), **config: Any) -> Path:
    """A BERT classifier with `labels` labels, or with these."""
    tokenizer = _tokenizer(directory)
    by_id = dict(enumerate(names or [f"LABEL_{index}" for index in range(labels)]))
    ids = {name: index for index, name in by_id.items()}
    model = BertForSequenceClassification(_config(tokenizer, id2label=by_id, label2id=ids, **config))
    return _spread(model, directory)


def decoder_classifier(directory: Path, kind: str, pad_id: int | None, pad_token: str | None) -> Path:
    """A GPT-2 or a Qwen2 that classifies by the last token, and whose config and tokenizer pad with these."""
    tokenizer = _byte_tokenizer(directory)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.pad_token, tokenizer.eos_token, tokenizer.padding_side = pad_token, "<sep>", "right"
    tokenizer.save_pretrained(directory)
    torch.manual_seed(7)
    shared = {"vocab_size": len(tokenizer), "num_labels": 3, "pad_token_id": pad_id, "initializer_range": 0.3}
    shared |= {"bos_token_id": 2, "eos_token_id": 3}
    if kind == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        model: Any = GPT2ForSequenceClassification(GPT2Config(**sizes, **shared))
    else:
        sizes = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 64}
        model = Qwen2ForSequenceClassification(Qwen2Config(**sizes, **shared))
    model.eval().save_pretrained(directory)
    return directory


def pad_on_the_left(directory: Path) -> Path:
    """Has a model's tokenizer say so."""
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "padding_side": "left"}))
    return directory


def last_classifier(directory: Path) -> Path:
    """An XLNet, which classifies by the row's very last token."""
    tokenizer = _tokenizer(directory)
    torch.manual_seed(7)
    sizes = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "initializer_range": 0.3}
    config = XLNetConfig(vocab_size=len(tokenizer), num_labels=3, pad_token_id=tokenizer.pad_token_id, **sizes)
    XLNetForSequenceClassification(config).eval().save_pretrained(directory)
    return directory


def ranker(directory: Path, **config: Any) -> Path:
    """A BERT cross-encoder: a classifier with one label."""
    return classifier(directory, labels=1, **config)


def entailment(directory: Path, names: Sequence[str] = ("contradiction", "neutral", "entailment")) -> Path:
    """A BERT that judges whether one text follows from another."""
    return classifier(directory, names=names)


def encoder(
    directory: Path, pooling: str | None = None, normalize: bool = False, cased: bool = False, **config: Any
) -> Path:
    """A BERT encoder; with `pooling`, in the layout of sentence-transformers."""
    tokenizer = _tokenizer(directory, cased)
    BertModel(_config(tokenizer, **config)).eval().save_pretrained(directory)
    if pooling:
        stages = [("", "Transformer"), ("1_Pooling", "Pooling")] + ([("2_Normalize", "Normalize")] * normalize)
        modules = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(stages)
        ]
        (directory / "modules.json").write_text(json.dumps(modules))
        (directory / "1_Pooling").mkdir()
        flags = {f"pooling_mode_{name}": name == pooling for name in FLAGS}
        pooling_config = {"word_embedding_dimension": 32, **flags}
        (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling_config))
    return directory


def tagger(directory: Path, **config: Any) -> Path:
    """A BERT token classifier with labels in the B-, I- manner."""
    model = BertForTokenClassification(_config(_tokenizer(directory), id2label=dict(enumerate(TAGS)), **config))
    return _spread(model, directory)


def left_tagger(directory: Path) -> Path:
    """A RoBERTa token classifier over pieces of bytes, padded on the left (which RoBERTa's positions allow)."""
    config = _byte_config(_byte_tokenizer(directory), id2label=dict(enumerate(TAGS)))
    return _spread(RobertaForTokenClassification(config), directory)


def reader(directory: Path, positions: int = 64) -> Path:
    """A BERT that answers questions."""
    config = _config(_tokenizer(directory), max_position_embeddings=positions)
    return _spread(BertForQuestionAnswering(config), directory, "qa_outputs")


def left_reader(directory: Path) -> Path:
    """A RoBERTa that answers questions, padded on the left."""
    return _spread(RobertaForQuestionAnswering(_byte_config(_byte_tokenizer(directory))), directory, "qa_outputs")


def filler(directory: Path) -> Path:
    """A BERT that fills masks."""
    return _spread(BertForMaskedLM(_config(_tokenizer(directory))), directory, "cls.predictions.transform.dense")


def left_filler(directory: Path) -> Path:
    """A RoBERTa that fills masks, padded on the left."""
    return _spread(RobertaForMaskedLM(_byte_config(_byte_tokenizer(directory))), directory, "lm_head.dense")


# As Mistral's and Qwen's own: a content may be a string or a list of parts.
CHAT_TEMPLATE = """{%- for message in messages -%}
{%- if message.content == "wizardry" %}{{ raise_exception("no wizardry") }}{% endif -%}
<{{ message.role }}{% if message.name %} {{ message.name }}{% endif -%}
>{{ message.content if message.content is string else message.content[0].text }}
{%- endfor -%}
{%- if add_generation_prompt %}<assistant>{% if enable_thinking is false %}<quiet>{% endif %}{% endif -%}"""


def prompt_encoder(directory: Path, layers: int = 5, hidden: int = 32) -> Path:
    """A Mistral3 with its vision tower; its tokenizer pads on the left."""
    tokenizer = _chat_tokenizer(directory, "left")
    torch.manual_seed(7)
    config = Mistral3Config(
        text_config=MistralConfig(**_decoder(tokenizer, layers, hidden)),
        vision_config=PixtralVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=32
        ),
    )
    return _with_padding(Mistral3ForConditionalGeneration(config), directory)


def right_prompt_encoder(directory: Path, layers: int = 5, hidden: int = 32) -> Path:
    """A Qwen3, which pads on the right."""
    tokenizer = _chat_tokenizer(directory, "right")
    torch.manual_seed(7)
    return _with_padding(Qwen3ForCausalLM(Qwen3Config(**_decoder(tokenizer, layers, hidden))), directory)


def chatter(directory: Path, layers: int = 2, hidden: int = 64, positions: int = 512) -> Path:
    """A Llama that chats about nothing; the likeliest next tokens are far apart."""
    tokenizer = _chat_tokenizer(directory, "left")
    torch.manual_seed(7)
    sizes = {**_decoder(tokenizer, layers, hidden), "max_position_embeddings": positions}
    config = LlamaConfig(**sizes, bos_token_id=None, eos_token_id=tokenizer.sep_token_id)
    return _spread(LlamaForCausalLM(config), directory, "lm_head")


def decoder(directory: Path, kind: Callable[..., Any]) -> Path:
    """A decoder of any kind, of which no answer ends before its cap; the likeliest next tokens are far apart."""
    tokenizer = _chat_tokenizer(directory, "left")
    torch.manual_seed(7)
    return _spread(kind(**_decoder(tokenizer, 2, 64), bos_token_id=None, eos_token_id=None), directory, "lm_head")


def shown_tools(model: Path) -> Path:
    """A model whose chat template shows it tools, and whose calls of them are read as Qwen's are."""
    call = {"open_pattern": r"\s*<tool_call>", "close": "</tool_call>", "repeats": True, "content": "json"}
    fields = {
        "tool_calls": {**call, "transform": {"type": "function", "function": "{content}"}},
        "content": {"close": "<sep>", "content": "text"},
    }
    path = model / "chat_template.jinja"
    path.write_text("{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}" + path.read_text())
    return parsed(model, fields)


def parsed(model: Path, fields: dict[str, Any]) -> Path:
    """A model with a response template, which tells transformers what is what in its answers."""
    template = {"defaults": {"role": "assistant"}, "start_anchor": "<assistant>", "fields": fields}
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "response_template": template}))
    return model


def endless(model: Path) -> Path:
    """A model, none of whose answers ends before its cap any more."""
    for path in (model / "config.json", model / "generation_config.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": None}))
    return model


def adapter(model: Path, directory: Path, rank: int = 4, alpha: int = 8) -> Path:
    """A LoRA adapter of a chatter's attention, as PEFT writes it."""
    modules = ("q_proj", "v_proj", "o_proj")
    weights, draw = {}, torch.Generator().manual_seed(7)
    for name, weight in load_file(model / "model.safetensors").items():
        if name.split(".")[-2] in modules:
            place = f"base_model.model.{name.removesuffix('.weight')}"
            high, wide = weight.shape
            weights[f"{place}.lora_A.weight"] = 0.5 * torch.randn(rank, wide, generator=draw)
            weights[f"{place}.lora_B.weight"] = 0.5 * torch.randn(high, rank, generator=draw)
    directory.mkdir(parents=True)
    save_file(weights, directory / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha}
    (directory / "adapter_config.json").write_text(
        json.dumps({**about, "target_modules": modules, "bias": "none"})
    )
    return directory


def merged(model: Path, adapted: Path, directory: Path) -> Path:
    """The model with an adapter's weights added to its own: what a request for the adapter is answered by."""
    shutil.copytree(model, directory)
    about = json.loads((adapted / "adapter_config.json").read_text())
    weights, low = load_file(model / "model.safetensors"), load_file(adapted / "adapter_model.safetensors")
    for place in {name.rpartition(".lora_")[0] for name in low}:
        product = low[f"{place}.lora_B.weight"] @ low[f"{place}.lora_A.weight"]
        weights[f"{place.removeprefix('base_model.model.')}.weight"] += about["lora_alpha"] / about["r"] * product
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return directory


def phi_chatter(directory: Path) -> Path:
    """A Phi-3, whose configuration names code of its own as the hub's does."""
    tokenizer = _chat_tokenizer(directory, "left")
    torch.manual_seed(7)
    sizes = _decoder(tokenizer, 2, 64) | {"bos_token_id": None, "eos_token_id": tokenizer.sep_token_id}
    _spread(Phi3ForCausalLM(Phi3Config(**sizes)), directory, "lm_head")
    config = json.loads((directory / "config.json").read_text())
    named = {
        "AutoConfig": "configuration_phi3.Phi3Config",
        "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
    }
    (directory / "config.json").write_text(json.dumps({**config, "auto_map": named}))
    for name in ("configuration_phi3", "modeling_phi3"):
        (directory / f"{name}.py").write_text("raise SystemExit('code of the model was run')\n")
    return directory


TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def digest(directory: Path) -> str:
    """SHA-256 of a model's weights: names, shapes and values."""
    found = hashlib.sha256()
    for name, tensor in sorted(load_file(directory / "model.safetensors").items()):
        found.update(f"{name} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return found.hexdigest()


# Task -> what makes a model for it in a directory.
MODELS: dict[str, Callable[[Path], Path]] = {
    "text-classification": classifier,
    "feature-extraction": encoder,
    "text-ranking": ranker,
    "zero-shot-classification": entailment,
    "token-classification": tagger,
    "question-answering": reader,
    "fill-mask": filler,
}

FLAGS = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def _config(tokenizer: PreTrainedTokenizerFast, **config: Any) -> BertConfig:
    torch.manual_seed(7)
    sizes = {**SIZES, "max_position_embeddings": 64, **config}
    return BertConfig(vocab_size=len(tokenizer), initializer_range=0.2, **sizes)


def _byte_config(tokenizer: PreTrainedTokenizerFast, **config: Any) -> RobertaConfig:
    torch.manual_seed(7)
    return RobertaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=66,  # RoBERTa's begin behind the padding's index, 0
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
        **SIZES,
        **config,
    )


def _spread(model: Any, directory: Path, head: str = "classifier") -> Path:
    """Saves a model whose head is spread: random ones answer nearly the same for everything."""
    with torch.no_grad():
        model.get_submodule(head).weight.mul_(4)
    model.eval().save_pretrained(directory)
    return directory


def _with_padding(model: Any, directory: Path) -> Path:
    """Saves a model whose padding is not zero: transformers begins with zero, and real models have something."""
    embeddings = model.get_input_embeddings()
    with torch.no_grad():
        embeddings.weight[embeddings.padding_idx].normal_(std=0.2)
    model.eval().save_pretrained(directory)
    return directory


def _decoder(tokenizer: PreTrainedTokenizerFast, layers: int, hidden: int) -> dict[str, Any]:
    """Few layers' weights are spread, so that each counts; many such layers would multiply every rounding."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden // 4,
        "max_position_embeddings": 512,
        "initializer_range": 0.2 if layers < 10 else 0.02,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }


def _chat_tokenizer(directory: Path, padding_side: str) -> PreTrainedTokenizerFast:
    tokenizer = _byte_tokenizer(directory)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.padding_side = padding_side
    tokenizer.model_max_length = 512
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(directory)
    return tokenizer


def _byte_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """Knows no words, but pieces of bytes; pads on the left."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    names = {name: f"<{name}>" for name in ("pad", "unk", "cls", "sep", "mask")}
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=[*names.values()], initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(CORPUS, trainer)
    raw.post_processor = processors.RobertaProcessing(("<sep>", 3), ("<cls>", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="left",
        **{f"{name}_token": token for name, token in names.items()},
    )
    tokenizer.save_pretrained(directory)
    return tokenizer


def _tokenizer(directory: Path, cased: bool = False) -> PreTrainedTokenizerFast:
    directory.mkdir(parents=True, exist_ok=True)
    words = sorted({word for line in CORPUS for word in line.replace(",", " ").replace(";", " ").split()})
    letters = sorted({letter for word in words for letter in word.lower()} | set(",;."))
    pieces = [
        *SPECIAL,
        *letters,
        *(f"##{letter}" for letter in letters),
        *(word for word in words if len(word) > 1),
    ]
    raw = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = ("pad", "unk", "cls", "sep", "mask")
    special = {f"{name}_token": token for name, token in zip(names, SPECIAL, strict=True)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **special,
    )
    tokenizer.save_pretrained(directory)
    return tokenizer
