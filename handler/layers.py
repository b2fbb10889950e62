"""The lower layers of a decoder: built and read without what lies above them.

A prompt's hidden states need no final norm, no output head, no vision tower and no layer above the highest one
asked for, so none of their weights is read: of Mistral-Small-3's 48 GB in bfloat16 34.7 for 30 of 40 layers.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open

from handler.errors import LoadError
from handler.loading import OFFLINE, read_json

EMBEDDINGS = "embed_tokens.weight"  # what the weights' names end in; all before it is where the decoder sits
INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"


class LowerLayers:
    """A decoder cut above its highest wanted layer.

    Args:
        directory: the archive's `model/`.
        layers: the hidden states that are wanted, counted as transformers does: 0 are the embeddings, k what layer
            k gives to the next. The model's last one is after its final norm.
        dtype: of weights and hidden states.
        device: where it goes.
        attention: how it is computed; None: as transformers chooses.

    Raises:
        LoadError: the model has no such layers, or is of a kind that cannot be cut.
    """

    def __init__(
        self,
        directory: Path,
        layers: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        attention: str | None = None,
    ) -> None:
        self.layers = tuple(layers)
        self.device = device
        whole = transformers.AutoConfig.from_pretrained(directory, **OFFLINE).get_text_config(decoder=True)
        self.depth = int(whole.num_hidden_layers)
        if too_high := [layer for layer in layers if layer > self.depth]:
            raise LoadError(f"handler.layers asks for {too_high[0]}, but the model has {self.depth} layers")
        config = _cut(whole, max(layers))
        self.model, self.bytes_read = _build(
            directory, config, self.depth, dtype=dtype, device=device, attention=attention
        )
        self.model.to(device).eval()
        self.width = int(whole.hidden_size)
        self._seen = threading.local()  # lanes run the same model side by side
        for number, layer in enumerate(self.model.layers, start=1):
            if number in self.layers and number != self.depth:
                layer.register_forward_hook(self._keeper(number))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The wanted hidden states side by side.

        Args:
            ids: (rows, tokens) int64.
            mask: (rows, tokens) int64; 0 for what no token may attend to.
            positions: (rows, tokens) int64.

        Returns:
            (rows, tokens, layers x width), the layers in the order in which they were asked for.
        """
        self._seen.states = states = {}
        with torch.inference_mode():
            output = self.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
            ).last_hidden_state
            if 0 in self.layers:
                states[0] = self.model.embed_tokens(ids)
            states.setdefault(self.depth, output)
            return torch.cat([states[layer] for layer in self.layers], dim=-1)

    def _keeper(self, number: int) -> Any:
        def keep(layer: Any, inputs: Any, output: Any) -> None:
            self._seen.states[number] = output[0] if isinstance(output, tuple) else output

        return keep


def _cut(whole: Any, top: int) -> Any:
    """The configuration of the layers up to this one."""
    config = copy.deepcopy(whole)
    config.num_hidden_layers = top
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[:top]
    return config


def _build(
    directory: Path, config: Any, depth: int, *, dtype: torch.dtype, device: torch.device, attention: str | None
) -> tuple[Any, int]:
    """The model with its weights, and the bytes of them that were read."""
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config, dtype=dtype, attn_implementation=attention)
    if not all(hasattr(model, part) for part in ("embed_tokens", "layers", "norm", "rotary_emb")):
        raise LoadError(f"prompts are encoded by decoders such as Mistral and Qwen3, not by {config.model_type}")
    if config.num_hidden_layers < depth:
        model.norm = torch.nn.Identity()
    model.rotary_emb = type(model.rotary_emb)(config=config)  # its numbers are computed, not read
    weights, read = _read(directory, model.state_dict().keys(), dtype, device)
    model.load_state_dict(weights, strict=True, assign=True)
    return model, read


def _read(
    directory: Path, names: Any, dtype: torch.dtype, device: torch.device
) -> tuple[dict[str, torch.Tensor], int]:
    """The named weights of the decoder, wherever in the model it sits, and their bytes. Raises LoadError.

    Each goes to its device by itself, so that the host never holds the model.
    """
    files = _files(directory)
    prefixes = [name.removesuffix(EMBEDDINGS) for name in files if name.endswith(EMBEDDINGS)]
    if len(prefixes) != 1:
        raise LoadError(f"the model's weights hold {len(prefixes)} decoders; prompts are encoded by one")
    wanted = {name: prefixes[0] + name for name in names}
    if missing := [full for full in wanted.values() if full not in files]:
        raise LoadError(f"the model's weights lack {len(missing)} that its layers need, such as {missing[0]}")
    weights: dict[str, torch.Tensor] = {}
    read = 0
    for file in sorted({files[full] for full in wanted.values()}):
        with safe_open(directory / file, "pt", device=str(device)) as opened:
            for name in [name for name, full in wanted.items() if files[full] == file]:
                stored = opened.get_tensor(wanted[name])
                read += stored.nbytes
                weights[name] = stored.to(dtype)
    return weights, read


def _files(directory: Path) -> Mapping[str, str]:
    """Weight -> the file that holds it."""
    if index := read_json(directory / INDEX):
        return dict(index["weight_map"])
    with safe_open(directory / WHOLE, "pt") as opened:
        return dict.fromkeys(opened.keys(), WHOLE)
