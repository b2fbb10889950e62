"""What a run measures: the sizes of the models, how hard they are driven, and how long."""

from __future__ import annotations

from dataclasses import dataclass

PUBLISHED_MODEL = "bert-base"  # the size of the encoder that the published figure is about
PUBLISHED = (
    1_600_000  # tokens/s, Arctic Inference on one GPU of the H200's class, arctic-embed-m (109 M parameters)
)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
KIT_PARTS = ("java", "torchserve", "packages", "tokenizer")  # a .tar.xz each

PARTS = ("correctness", "speed", "latency", "generation")
ENCODER_PARTS = frozenset(PARTS[:3])
MODELS = ("minilm", "bert-base", "bert-large")
TOLERANCE = {"float32": 1e-3}  # largest difference to float32 on the CPU; TF32 is off unless it is asked for
COSINE = 0.999  # least cosine to float32 of what runs in a shorter format


@dataclass(frozen=True)
class Architecture:
    """The sizes of a BERT, as transformers' BertConfig calls them."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int


FULL_SIZE = {
    "minilm": Architecture(384, 6, 12, 1536),
    "bert-base": Architecture(768, 12, 12, 3072),
    "bert-large": Architecture(1024, 24, 16, 4096),
}
SMALL_SIZE = {
    "minilm": Architecture(48, 2, 4, 96),
    "bert-base": Architecture(64, 3, 4, 128),
    "bert-large": Architecture(96, 4, 4, 192),
}


@dataclass(frozen=True)
class Words:
    """How many words a text has, drawn evenly from these bounds."""

    least: int
    most: int


LENGTHS = {
    "short": Words(28, 50),  # about 50 tokens
    "long": Words(480, 560),  # over 512 tokens, and cut there
}
CORRECTNESS = Words(4, 400)
LATENCY = Words(10, 20)


@dataclass(frozen=True)
class Settings:
    """How hard a run drives the server, and how long."""

    device: str  # cpu or cuda
    parts: tuple[str, ...]
    models: tuple[str, ...]
    small: bool
    dtype: str  # of the speed and latency parts
    workers: tuple[int, ...]
    lengths: tuple[str, ...]
    seconds: float  # of one measurement, after its warm-up
    warm_up: float
    connections: int
    texts_per_request: int
    batch_size: int  # requests that a worker is handed at once
    budgets: tuple[int, ...]  # padded tokens at once of the bare model; the best is kept
    correctness_texts: int
    rounds: int  # of generation: each server once in each
    streams: int  # of generation, of which one in three is left midway
    time_limit: float | None  # s after the start, after which no further measurement is begun
    overrides: tuple[str, ...]  # KEY=VALUE of the archives' configuration
    seed: int = 7

    @property
    def device_type(self) -> str:
        """The device as an archive's deviceType names it."""
        return {"cuda": "gpu", "cpu": "cpu"}[self.device]

    @property
    def architectures(self) -> dict[str, Architecture]:
        """The models of this run."""
        sizes = SMALL_SIZE if self.small else FULL_SIZE
        return {name: sizes[name] for name in self.models}
