"""Models of real sizes with random weights from a fixed seed, and their archives, built by our own archiver."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import BertConfig, BertModel

from benchmarks.gpu.settings import TOKENIZER_FILES, Architecture
from benchmarks.processes import Failed

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = 30522
MAX_TOKENS = 512
SPREAD = 0.05  # of the weights; with BERT's own 0.02, untrained, all texts would come out much alike


@dataclass(frozen=True)
class Deployment:
    """One archive: a model, the number format it runs in, and its workers."""

    model: str
    dtype: str
    workers: int

    @property
    def name(self) -> str:
        """The archive's name, and the model's in URLs."""
        return f"{self.model}-{self.dtype}-w{self.workers}"


def make_model(directory: Path, sizes: Architecture, tokenizer: Path, seed: int) -> int:
    """Writes a model with the tokenizer's files; how many parameters it has."""
    directory.mkdir(parents=True)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=sizes.hidden_size,
        num_hidden_layers=sizes.num_hidden_layers,
        num_attention_heads=sizes.num_attention_heads,
        intermediate_size=sizes.intermediate_size,
        max_position_embeddings=MAX_TOKENS,
        initializer_range=SPREAD,
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(directory)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, directory / name)
    return sum(parameter.numel() for parameter in model.parameters())


def build_all(
    deployments: Sequence[Deployment], models: Path, store: Path, settings: Sequence[str], parallel: int
) -> None:
    """Builds an archive for each deployment, several at a time.

    Args:
        deployments: what to build.
        models: the directory with a model's directory under each model's name.
        store: the model store; it gets directories whose `model` is a link, so that weights are not copied.
        settings: KEY=VALUE for all of them.
        parallel: archives at a time.

    Raises:
        Failed: what the archiver said.
    """
    store.mkdir(exist_ok=True)
    with ThreadPoolExecutor(parallel) as threads:
        for done in [threads.submit(_build, each, models, store, settings) for each in deployments]:
            done.result()


def _build(deployment: Deployment, models: Path, store: Path, settings: Sequence[str]) -> None:
    line = [sys.executable, "-P", "-m", "archiver", "build", "--model", str(models / deployment.model)]
    line += ["--task", "feature-extraction", "--model-name", deployment.name, "--version", "1.0"]
    line += ["--archive-format", "no-archive", "--export-path", str(store)]
    for setting in (
        f"minWorkers={deployment.workers}",
        f"maxWorkers={deployment.workers}",
        f"handler.dtype={deployment.dtype}",
        "handler.pooling=mean",
        *settings,
    ):
        line += ["--set", setting]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise Failed(f"{deployment.name}: {done.stderr.strip()}")
