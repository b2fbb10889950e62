from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file
from transformers import Mistral3ForConditionalGeneration

from handler import wire
from handler.errors import LoadError
from tests.support import archives, diffusion, frames, tiny_models, worker

TASK = "prompt-encoding"
LAYERS = [1, 2, 4]
SYSTEM = "You see images"
PROMPTS = ("a wonderful story", "", "the film [IMG]was not good" * 4, "a " * 200)
LENGTH = 48
KLEIN = {"add_generation_prompt": True, "enable_thinking": False}

LEFT = {"layers": LAYERS, "max_length": LENGTH, "system_message": SYSTEM, "remove": ["[IMG]"]}
RIGHT = {"layers": LAYERS, "max_length": LENGTH, "template_options": KLEIN}


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    directory = tmp_path_factory.mktemp("left")
    tiny_models.prompt_encoder(directory / "model")
    return directory


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    directory = tmp_path_factory.mktemp("right")
    tiny_models.right_prompt_encoder(directory / "model")
    return directory


def flux2(directory, prompts, length=LENGTH):
    """(prompts, length, width) and (prompts, length, 4): what diffusers' FLUX.2 [dev] makes of prompts."""
    options = {"max_sequence_length": length, "system_message": SYSTEM, "hidden_states_layers": LAYERS}
    return [part.numpy() for part in diffusion.encoded(diffusion.FLUX2, directory / "model", prompts, **options)]


def klein(directory, prompts, length=LENGTH):
    """The same of FLUX.2 [klein]."""
    options = {"max_sequence_length": length, "hidden_states_layers": LAYERS}
    return [part.numpy() for part in diffusion.encoded(diffusion.KLEIN, directory / "model", prompts, **options)]


def start(directory, **settings):
    return worker.start(directory, task=TASK, **settings)


@pytest.mark.parametrize("padding", ["fill", "compute"])
def test_as_flux2_does(left, padding):
    service = start(left, padding=padding, **LEFT)
    assert (service.handler.pipeline.task.padding is not None) == (padding == "fill")
    status, answered = frames.answer(service, prompts=list(PROMPTS))
    assert status == 200, answered
    embeds, ids = flux2(left, PROMPTS)
    np.testing.assert_allclose(np.array(answered["prompt_embeds"]), embeds, atol=1e-5 * np.abs(embeds).max())
    np.testing.assert_array_equal(np.array(answered["text_ids"]), ids)


def test_as_klein_does(right):
    service = start(right, **RIGHT)
    status, answered = frames.answer(service, prompts=list(PROMPTS))
    assert status == 200, answered
    embeds, ids = klein(right, PROMPTS)
    np.testing.assert_allclose(np.array(answered["prompt_embeds"]), embeds, atol=1e-5 * np.abs(embeds).max())
    np.testing.assert_array_equal(np.array(answered["text_ids"]), ids)


@pytest.mark.parametrize("side", ["left", "right"])
def test_alone_and_with_its_padding_computed_it_is_the_same_bit_for_bit(side, left, right):
    directory, settings, reference = (left, LEFT, flux2) if side == "left" else (right, RIGHT, klein)
    service = start(directory, padding="compute", **settings)
    for prompt in PROMPTS:
        response = predict(service, "application/octet-stream", prompt=prompt)
        found = np.frombuffer(response.body, np.float32).reshape(1, LENGTH, -1)
        wanted = reference(directory, [prompt])[0]
        rounding = 0 if worker.GPU_ID is None else 1e-5 * np.abs(wanted).max()  # of the reference, on the CPU
        np.testing.assert_allclose(found, wanted, rtol=0, atol=rounding)


@pytest.mark.parametrize("side", ["left", "right"])
def test_compact_answers_are_the_prompts_own_tokens(side, left, right):
    directory, settings, reference = (left, LEFT, flux2) if side == "left" else (right, RIGHT, klein)
    _, answered = frames.answer(start(directory, **settings), prompts=list(PROMPTS), compact=True)
    embeds, ids = reference(directory, PROMPTS)
    for index, count in enumerate(answered["tokens"]):
        own = slice(LENGTH - count, None) if side == "left" else slice(count)
        found = np.array(answered["prompt_embeds"][index])
        np.testing.assert_allclose(found, embeds[index, own], atol=1e-5 * np.abs(embeds).max())
        np.testing.assert_array_equal(np.array(answered["text_ids"][index]), ids[index, own])
    assert answered["truncated"] == [False, False, True, True]


def test_padding_that_attends_to_something_is_computed(left):
    """Eager attention gives a row that may see nothing the mean of everything."""
    service = start(left, attention="eager", **LEFT)
    assert service.handler.pipeline.task.padding is None
    assert service.handler.pipeline.describe()["padding"] == "computed"


def test_only_what_is_needed_is_read(left, tmp_path):
    """Every other weight is NaN, and of another size."""
    stored = load_file(left / "model" / "model.safetensors")
    (tmp_path / "model").mkdir()
    for path in (left / "model").iterdir():
        if path.name != "model.safetensors":
            (tmp_path / "model" / path.name).symlink_to(path)
    needed = [name for name in stored if "language_model" in name and ("embed" in name or ".layers." in name)]
    needed = [name for name in needed if ".layers.4." not in name]
    broken = {name: tensor if name in needed else torch.full((3,), torch.nan) for name, tensor in stored.items()}
    save_file(broken, tmp_path / "model" / "model.safetensors")
    service = start(tmp_path, **LEFT)
    assert frames.answer(service, prompt="a")[0] == 200
    layers = service.handler.pipeline.task.layers
    assert (
        layers.bytes_read == sum(stored[name].nbytes for name in needed) < sum(t.nbytes for t in stored.values())
    )


def test_the_last_layer_is_after_the_norm(left):
    service = start(left, **{**LEFT, "layers": [0, 5]})
    _, answered = frames.answer(service, prompt="a wonderful story", compact=True)
    model = Mistral3ForConditionalGeneration.from_pretrained(left / "model").eval()
    task = service.handler.pipeline.task
    with torch.inference_mode():
        states = model(
            torch.tensor(task._tokenize(["a wonderful story"])), output_hidden_states=True
        ).hidden_states
    expected = torch.cat([states[0], states[5]], dim=-1)
    np.testing.assert_allclose(np.array(answered["prompt_embeds"]), expected.numpy(), rtol=1e-4, atol=1e-4)


def test_one_poisoned_prompt_costs_only_itself(left):
    service = start(left, warm_up=False, padding="compute", **LEFT)
    embeddings = service.handler.pipeline.task.layers.model.embed_tokens
    [token] = service.handler.pipeline.task.tokenizer("Q", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        embeddings.weight[token] = float("nan")
    bad, good = frames.predict(service, [frames.ask(prompt="Q"), frames.ask(prompt="a")])
    assert (bad.status, good.status) == (500, 200)
    assert json.loads(bad.body)["error"]["type"] == "NonFiniteOutput"


@pytest.mark.parametrize(
    ("document", "status", "says"),
    [
        ({"prompts": ["a", 7]}, 422, "prompts[1]: expected a string"),
        ({"prompts": []}, 422, "at least one"),
        ({"prompt": ["a", None]}, 422, "prompt[1]: expected a string"),
        ({"prompt": []}, 422, "prompt: expected a list of at least one string"),
        ({"prompt": ["a"] * 300}, 422, "prompt[256]"),
        ({"prompt": "a", "max_sequence_length": LENGTH + 1}, 413, f"the limit is {LENGTH}"),
        ({"prompt": "a " * 200, "truncation": False}, 413, "its template included"),
        ({"prompt": "a", "compact": 1}, 422, "compact: expected true or false"),
    ],
)
def test_bad_input(left, document, status, says):
    found, answered = frames.answer(start(left, **LEFT), document)
    assert found == status and says in answered["error"]["message"]


def test_a_list_may_be_called_prompt(left):
    service = start(left, **LEFT)
    one, other = (
        predict(service, "application/octet-stream", **{key: ["a", "b"]}) for key in ("prompt", "prompts")
    )
    assert one.status == 200 and one.body == other.body


def test_a_shorter_answer(left):
    _, answered = frames.answer(start(left, **LEFT), prompts=list(PROMPTS), max_sequence_length=40)
    embeds, _ = flux2(left, PROMPTS, 40)
    np.testing.assert_allclose(np.array(answered["prompt_embeds"]), embeds, atol=1e-5 * np.abs(embeds).max())


def test_layers_outside_the_model(left):
    with pytest.raises(LoadError, match="asks for 6, but the model has 5 layers"):
        start(left, **{**LEFT, "layers": [6]})


def test_a_tokenizer_without_a_template(tmp_path):
    tiny_models.prompt_encoder(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    with pytest.raises(LoadError, match="no chat template"):
        start(tmp_path, **LEFT)


@pytest.mark.parametrize(
    ("layers", "template", "says"),
    [([1, 6], True, "handler.layers: [6]: the model has 5 layers"), ([1], False, "has no chat template")],
)
def test_what_does_not_fit_is_refused_when_the_archive_is_built(tmp_path, layers, template, says):
    tiny_models.prompt_encoder(tmp_path / "model")
    if not template:
        (tmp_path / "model" / "chat_template.jinja").unlink()
    built = archives.build(
        *("--model", str(tmp_path / "model"), "--task", TASK, "--model-name", "p", "--version", "1.0"),
        *("--export-path", str(tmp_path), f"--set=handler.layers={layers}"),
    )
    assert built.returncode == 1 and says in built.stderr
    assert not list(tmp_path.glob("*.mar"))


# -- other ways of writing an answer


def predict(service, accept, **document):
    request = frames.post(json.dumps(document).encode(), Accept=accept)
    [response] = frames.predict(service, [request])
    return response


def test_safetensors(left):
    service = start(left, **LEFT)
    response = predict(service, "application/x-safetensors", prompts=list(PROMPTS))
    assert (response.status, response.content_type) == (200, "application/x-safetensors")
    embeds, ids = flux2(left, PROMPTS)
    found = safetensors.torch.load(response.body)
    np.testing.assert_allclose(found["prompt_embeds"].numpy(), embeds, atol=1e-5 * np.abs(embeds).max())
    np.testing.assert_array_equal(found["text_ids"].numpy(), ids)
    header = json.loads(response.body[8 : 8 + int.from_bytes(response.body[:8], "little")])
    assert json.loads(header["__metadata__"]["truncated"]) == [False, False, True, True]


def test_raw_bytes_as_diffusers_reads_them(left):
    response = predict(start(left, dtype="bfloat16", **LEFT), "application/octet-stream", prompt="a")
    assert response.headers["dtype"] == "bfloat16"
    shape = json.loads(response.headers["shape"])
    found = torch.frombuffer(bytearray(response.body), dtype=torch.bfloat16).reshape(shape)
    embeds, _ = flux2(left, ["a"])
    cosine = torch.nn.functional.cosine_similarity(found.float(), torch.from_numpy(embeds), dim=-1)
    assert shape == [1, LENGTH, 96] and cosine.min() > 0.99


def test_different_lengths_in_one_answer(left):
    service = start(left, **LEFT)
    response = predict(service, "application/x-safetensors", prompts=["a", "a wonderful story"], compact=True)
    assert {"prompt_embeds.0", "prompt_embeds.1"} < set(safetensors.torch.load(response.body))
    response = predict(service, "application/octet-stream", prompts=["a", "a wonderful story"], compact=True)
    assert response.status == 406 and "safetensors holds all" in response.body.decode()


@pytest.mark.parametrize(
    ("accept", "status", "content_type"),
    [
        ("", 200, "application/json"),
        ("*/*", 200, "application/json"),
        ("application/*;q=0.5, application/octet-stream", 200, "application/octet-stream"),
        ("application/x-safetensors;q=0.9, application/json;q=0.2", 200, "application/x-safetensors"),
        ("application/json;q=0, */*", 200, "application/x-safetensors"),
        ("text/html", 406, "application/json"),
        ("application/json;q=0", 406, "application/json"),
        ("application/json;q=x", 406, "application/json"),
    ],
)
def test_accept(left, accept, status, content_type):
    response = predict(start(left, **LEFT), accept, prompt="a")
    assert (response.status, response.content_type) == (status, content_type)
    if status == 406:
        assert "application/x-safetensors" in response.body.decode()


def test_a_large_answer_comes_in_frames_and_leaves_others_alone(left, monkeypatch):
    monkeypatch.setattr(wire, "FRAME_BYTES", 1000)
    service = start(left, **LEFT)
    large = frames.post(json.dumps({"prompt": "a"}).encode(), Accept="application/octet-stream")
    small = frames.ask(prompt=7)
    first, second, third = frames.predict(service, [large, small, large])
    assert (first.status, second.status, third.status) == (200, 422, 200)
    assert len(first.body) == LENGTH * 96 * 4 and first.body == third.body
    assert json.loads(first.headers["shape"]) == [1, LENGTH, 96]
    named = frames.post(json.dumps({"prompt": "a"}).encode(), via="1.1 a")
    whole, pieces = frames.predict(service, [named, large])
    assert (whole.status, pieces.body) == (200, first.body)


def test_too_large_an_answer_is_refused_before_it_is_computed(left, monkeypatch):
    service = start(left, max_response_bytes=LENGTH * 96 * 4, **LEFT)
    assert predict(service, "application/octet-stream", prompt="a").status == 200
    monkeypatch.setattr(service.handler.pipeline.task, "forward", None)
    response = predict(service, "application/octet-stream", prompts=["a", "b"])
    assert response.status == 413 and f"the limit is {LENGTH * 96 * 4}" in response.body.decode()


def test_prompts_are_remembered(left):
    service = start(left, cache_bytes=1_000_000, **LEFT)
    first = predict(service, "application/octet-stream", prompt="")
    service.handler.pipeline.task.forward = None
    assert predict(service, "application/octet-stream", prompt="").body == first.body
