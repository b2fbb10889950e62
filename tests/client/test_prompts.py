"""Encoded prompts as the client reads them, with torch and without."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from client.errors import BadReply
from client.prompts import read
from client.replies import Reply

SAID = {"tokens": "[2, 1]", "truncated": "[false, true]"}
WITHOUT_TORCH = """
import json
import sys
sys.modules["torch"] = None
from client.prompts import read
from client.replies import Reply
embeds = read(Reply("", 200, "", sys.stdin.buffer.read()), 2).prompt_embeds
print(json.dumps([type(embeds).__name__, embeds.dtype.name, embeds.tolist()]))
"""


def body(dtype, **tensors):
    embeds = torch.tensor([[[1.5, -2.0]], [[0.0, 3.25]]], dtype=dtype)
    tensors = tensors or {"prompt_embeds": embeds, "text_ids": torch.zeros(2, 1, 4, dtype=torch.int64)}
    return safetensors.torch.save(tensors, SAID)


def reply(content):
    return Reply("http://x", 200, "OK", content)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_of_every_kind(dtype):
    found = read(reply(body(dtype)), 2)
    assert found.prompt_embeds.dtype == dtype and found.prompt_embeds.tolist() == [[[1.5, -2.0]], [[0.0, 3.25]]]
    assert found.text_ids.shape == (2, 1, 4) and (found.tokens, found.truncated) == ((2, 1), (False, True))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_without_torch_they_are_arrays(dtype):
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], input=body(getattr(torch, dtype)), capture_output=True, check=True
    )
    kind, name, values = json.loads(ended.stdout)
    assert (kind, name) == ("ndarray", "float32" if dtype == "bfloat16" else dtype)
    assert values == [[[1.5, -2.0]], [[0.0, 3.25]]]


PADDED = """
found = read(Reply("", 200, "", sys.stdin.buffer.read()), 2).padded()
print(json.dumps([found.prompt_embeds.tolist(), found.text_ids.tolist()]))
"""


def compact(**more):
    """Two prompts of one and of two tokens, three with padding."""
    parts = {f"prompt_embeds.{place}": torch.full((place + 1, 2), 7.0) for place in (0, 1)}
    ids = {f"text_ids.{place}": torch.ones(place + 1, 4, dtype=torch.int64) for place in (0, 1)}
    return safetensors.torch.save({**parts, **ids, **more}, {**SAID, "length": "3"})


def test_padding_a_compact_answer():
    content = compact(padding=torch.tensor([[1.0, 2.0]]))
    found = read(reply(content), 2).padded()
    assert found.prompt_embeds.tolist() == [[[1, 2], [1, 2], [7, 7]], [[1, 2], [7, 7], [7, 7]]]
    ids = [[[0, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 2]], [[0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 2]]]
    assert found.text_ids.tolist() == ids
    script = WITHOUT_TORCH.partition("embeds = ")[0] + PADDED
    ended = subprocess.run([sys.executable, "-c", script], input=content, capture_output=True, check=True)
    assert json.loads(ended.stdout) == [found.prompt_embeds.tolist(), found.text_ids.tolist()]


def test_padding_that_nobody_has_told_is_not_made_up():
    with pytest.raises(ValueError, match="ask it without compact"):
        read(reply(compact()), 2).padded()


def test_different_lengths_are_a_list():
    parts = {
        f"{name}.{place}": torch.ones(place + 1, 2) for name in ("prompt_embeds", "text_ids") for place in (0, 1)
    }
    found = read(reply(body(None, **parts)), 2)
    assert [tuple(part.shape) for part in found.prompt_embeds] == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        body(torch.float32)[:20],
        body(torch.float32)[:-8],
        safetensors.torch.save({"prompt_embeds": torch.ones(1)}, SAID),
        safetensors.torch.save({"prompt_embeds": torch.ones(1), "text_ids": torch.ones(1)}),
        json.dumps({"error": 1}).encode(),
    ],
)
def test_what_is_no_such_answer(content):
    with pytest.raises(BadReply, match="no encoded prompts"):
        read(reply(content), 2)
