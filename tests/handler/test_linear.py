"""Prepacked linear layers: as torch's own for every number of rows, with kernels made while loading."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from handler import linear
from handler.config import HandlerConfig
from handler.linear import SIZES, PrepackedLinear, in_sizes, prepack
from tests.support import frames, onednn, reference, tiny_models, worker

pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in linear.CPUS, reason=f"weights are prepacked for {linear.CPUS}"
)
WIDE = 512  # of a layer, both ways: 262,144 numbers
THREADS = {torch.get_num_threads()}
ROWS = [*range(1, 70), 97, 100, 128, 191, 257, 383, 511, 512, 513, 700, 1025, 1600]

KERNELS = """
import torch
from handler import devices, linear

devices.KEPT_KERNELS = 1
devices.bound_kernels()
layer = torch.nn.Sequential(torch.nn.Linear(512, 512))
assert linear.prepack(layer, {1, 2}) == 1
with torch.inference_mode():
    print("loaded", flush=True)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for rows in range(1, 1200):
            layer(torch.zeros(rows, 512))
"""

SERVED = """
import sys
from pathlib import Path
from tests.support import frames, worker

service = worker.start(Path(sys.argv[1]), None, task="feature-extraction", threads=2, lanes=2)
print("loaded", flush=True)
for size in (1, 2, 9, 40):
    texts = ["a wonderful story " * (1 + number * 7 % 15) for number in range(size)]
    for answered in frames.predict(service, [frames.ask(text=text) for text in texts]):
        assert answered.status == 200, answered.body
"""


def layers(dtype=torch.float32, bias=True):
    torch.manual_seed(7)
    own = nn.Sequential(nn.Linear(WIDE, WIDE, bias=bias)).to(dtype)
    packed = copy.deepcopy(own)
    assert prepack(packed, THREADS) == 1
    return own, packed


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_every_number_of_rows_is_as_torch_has_it(dtype, least, bias):
    if not linear.has_kernels(dtype):
        pytest.skip(f"this CPU has no kernels for {dtype}")
    own, packed = layers(dtype, bias)
    with torch.inference_mode():
        for rows in ROWS:
            given = torch.randn(rows, WIDE, dtype=dtype)
            torch.testing.assert_close(packed(given), own(given), atol=least, rtol=least)


@pytest.mark.parametrize("shape", [(WIDE,), (0, WIDE), (3, 0, WIDE), (2, 3, WIDE), (2, 1, 300, WIDE)])
def test_every_shape_is_as_torch_has_it(shape):
    own, packed = layers()
    given = torch.randn(shape)
    with torch.inference_mode():
        torch.testing.assert_close(packed(given), own(given), atol=1e-5, rtol=1e-5)
        turned = given.transpose(0, -2).contiguous().transpose(0, -2) if given.dim() > 2 else given
        torch.testing.assert_close(packed(turned), own(turned), atol=1e-5, rtol=1e-5)


def test_a_row_that_is_no_number_spoils_no_other():
    _, packed = layers()
    given = torch.randn(5, WIDE)  # of which three are filled up
    with torch.inference_mode():
        expected = packed(given)
        given[1] = torch.nan
        found = packed(given)
    assert found[1].isnan().all()
    torch.testing.assert_close(found[[0, 2, 3, 4]], expected[[0, 2, 3, 4]])


def test_sizes_are_known_and_waste_little():
    for rows in range(2000):
        sizes = in_sizes(rows)
        assert set(sizes) <= set(SIZES), rows
        assert sum(sizes[:-1]) < rows <= sum(sizes) or rows == 0 == sum(sizes), rows
        if rows > 2 * linear.FEW:
            assert sum(sizes) <= 1.15 * rows, rows


def made(*command):
    """Kernels of prepacked layers: how many are made, while loading and later, and whether some are used."""
    loading, _, serving = onednn.told(*command).partition("loaded")
    misses = [said.count("create:cache_miss,cpu,inner_product") for said in (loading, serving)]
    return *misses, "create:cache_hit,cpu,inner_product" in serving


def test_kernels_are_made_for_each_number_of_threads_while_loading():
    assert made(KERNELS) == (2 * len(SIZES), 0, True)


def test_a_worker_makes_none_once_it_is_ready(tmp_path):
    """Alone a text has all threads, in a batch each micro-batch has some."""
    tiny_models.encoder(tmp_path / "model", hidden_size=256, intermediate_size=1024)
    assert made(SERVED, str(tmp_path)) == (2 * 2 * len(SIZES), 0, True)


def test_only_large_layers_of_torchs_own_kind_are():
    class Other(nn.Linear):
        """Which may use its weight in ways of its own."""

    model = nn.ModuleList([nn.Linear(64, 64), Other(WIDE, WIDE), nn.Linear(WIDE, WIDE)])
    assert prepack(model, THREADS) == 1
    assert [type(layer) for layer in model] == [nn.Linear, Other, PrepackedLinear]
    assert prepack(model, THREADS) == 0


def test_a_weight_that_embeddings_share_stays_theirs():
    model = nn.ModuleDict({"embed": nn.Embedding(WIDE, WIDE), "head": nn.Linear(WIDE, WIDE, bias=False)})
    model["head"].weight = model["embed"].weight
    weight = model["embed"].weight.detach().clone()
    assert prepack(model, THREADS) == 1
    assert torch.equal(model["embed"].weight, weight)
    with torch.inference_mode():
        given = torch.randn(3, WIDE)
        torch.testing.assert_close(model["head"](given), given @ weight.T, atol=1e-4, rtol=1e-4)


def test_a_layer_that_stands_in_two_places_is_one():
    shared = nn.Linear(WIDE, WIDE)
    assert prepack(nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(shared)}), THREADS) == 1
    assert type(shared) is PrepackedLinear


def test_who_reads_its_weight_hears_that_it_cannot():
    _, packed = layers()
    assert packed[0].weight.shape == (WIDE, WIDE)
    assert packed[0].weight.dtype == torch.float32
    with pytest.raises(NotImplementedError):
        nn.functional.linear(torch.zeros(1, WIDE), packed[0].weight)


@pytest.mark.parametrize("wanted", [True, False])
def test_an_encoder_answers_the_same_with_and_without(tmp_path, wanted):
    tiny_models.encoder(tmp_path / "model", hidden_size=256, intermediate_size=1024)
    service = worker.start(tmp_path, None, task="feature-extraction", prepack=wanted)
    model = service.handler.pipeline.task.encoder.loaded.model
    packed = sum(isinstance(layer, PrepackedLinear) for layer in model.modules())
    assert packed == (2 * model.config.num_hidden_layers if wanted else 0)
    texts = ["a wonderful story", "the battery died", "a", "the acting is wonderful and the plot is not"]
    for text, expected in zip(texts, reference.mean_embeddings(tmp_path / "model", texts), strict=True):
        [found] = frames.answer(service, text=text)[1]["embeddings"]
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-5, rtol=1e-4)


def test_it_is_on_unless_it_is_said_otherwise():
    assert HandlerConfig("text-classification").prepack
