"""The recipes for FLUX.2, with tiny models of the same kind and depth in place of what the hub's cache holds."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
import yaml
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE

from archiver.snapshot import TOKENIZER_FILES
from client import InferenceClient
from tests.support import archives, diffusion, tiny_models
from tests.support.serving import ROOT, served

pytestmark = pytest.mark.server

RECIPES = {"flux2-prompt": diffusion.FLUX2, "flux2-klein-prompt": diffusion.KLEIN}
SLOW = [pytest.param("flux2-prompt", marks=pytest.mark.slow), "flux2-klein-prompt"]
PROMPTS = ["a wonderful story", "", "the film [IMG]was not good"]


@pytest.fixture(scope="module", params=SLOW)
def name(request):
    """A recipe."""
    return request.param


@pytest.fixture(scope="module")
def model(name, tmp_path_factory):
    """A model directory as transformers writes it."""
    folder = tmp_path_factory.mktemp("models")
    if name == "flux2-prompt":
        return tiny_models.prompt_encoder(folder / "mistral", layers=40, hidden=128)
    return tiny_models.right_prompt_encoder(folder / "qwen", layers=36, hidden=128)


@pytest.fixture(scope="module")
def store(name, model, tmp_path_factory):
    """The recipe's archive, with golden answers."""
    folder, home = tmp_path_factory.mktemp("store"), tmp_path_factory.mktemp("hub")
    recipe = yaml.safe_load((ROOT / "recipes" / name / "recipe.yaml").read_text())
    place = cached(home, recipe["model"])
    shutil.copytree(model, place, dirs_exist_ok=True)
    if "tokenizer" in recipe:
        split_as_mistral_does(place, cached(home, recipe["tokenizer"]))
    flags = ("--golden", "--export-path", str(folder))
    built = archives.build(str(ROOT / "recipes" / name), *flags, HF_HOME=str(home), HF_HUB_OFFLINE="1")
    assert built.returncode == 0, built.stderr
    warnings = [line for line in built.stderr.splitlines() if line.startswith("warning")]
    assert all("files are what the cache has of it" in line for line in warnings), warnings
    return folder


def cached(home, source):
    """Where the hub's cache has a model."""
    name, revision = source.split("@")
    place = home / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / revision
    place.mkdir(parents=True)
    return place


def split_as_mistral_does(model, tokenizer):
    """3.2 has Mistral's own tokenizer, and its weights twice; 3.1 the tokenizer, with a processor's template."""
    for name in TOKENIZER_FILES:
        if (model / name).exists():
            shutil.move(model / name, tokenizer / name)
    template = (tokenizer / "chat_template.jinja").read_text()
    (tokenizer / "chat_template.jinja").unlink()
    (tokenizer / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    (tokenizer / "config.json").write_text("{}")
    (model / "tekken.json").write_text("{}")
    shutil.copy(model / "model.safetensors", model / "consolidated.safetensors")


def reference(name, model):
    """What diffusers makes of the prompts, by its own defaults, in bfloat16."""
    return diffusion.encoded(RECIPES[name], model, PROMPTS, torch.bfloat16)[0]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipe_says_what_diffusers_does(recipe):
    handler = yaml.safe_load((ROOT / "recipes" / recipe / "model-config.yaml").read_text())["handler"]
    defaults = inspect.signature(RECIPES[recipe]).parameters
    assert handler["layers"] == list(defaults["hidden_states_layers"].default)
    assert handler["max_length"] == defaults["max_sequence_length"].default
    if recipe == "flux2-prompt":
        assert handler["system_message"] == SYSTEM_MESSAGE
    width = 5120 if recipe == "flux2-prompt" else 2560  # of Mistral-Small-3 and of Qwen3-4B
    answer = handler["max_items"] * 512 * (3 * width * 2 + 4 * 8)
    assert answer < handler["max_response_bytes"] < answer * 1.25


def test_only_what_is_read_is_packed(name, store):
    with zipfile.ZipFile(store / f"{name}.mar") as archive:
        names = set(archive.namelist())
    assert {"model/tokenizer.json", "golden/cases.json"} <= names
    assert names & {"model/chat_template.json", "model/chat_template.jinja"}
    assert not {"model/tekken.json", "model/consolidated.safetensors"} & names


@pytest.fixture(scope="module")
def server(name, store):
    with served(store, [f"{name}.mar"]) as running:
        yield running


def test_verify_knows_what_bfloat16_does_to_forty_layers(name, server, model):
    command = [sys.executable, "-m", "client", "verify", name, "--model", str(model)]
    urls = ["--inference-url", server.inference_url, "--management-url", server.management_url]
    ended = subprocess.run([*command, *urls], capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr


def test_it_serves_what_diffusers_computes(name, server, model):
    with InferenceClient(server.inference_url) as client:
        found = client.encode_prompt(name, PROMPTS).prompt_embeds
    wanted = reference(name, model)
    assert found.dtype == torch.bfloat16 and found.shape == wanted.shape
    assert torch.nn.functional.cosine_similarity(found.float(), wanted.float(), dim=-1).min() >= 0.9999
