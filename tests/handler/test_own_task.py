"""A recipe's own task: the seed's prompt encoder as one, and what goes wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch

from handler.config import ConfigError, read_config
from handler.errors import LoadError
from tests.handler.test_prompt_encoding import LAYERS, LENGTH, PROMPTS, SYSTEM, flux2
from tests.support import archives, frames, tiny_models, worker

ENCODER = f'''
import torch
from transformers import AutoTokenizer, Mistral3ForConditionalGeneration


class Encoder:
    """Hidden states of three layers, and an id of four numbers for each token."""

    field = "prompt"

    def __init__(self, directory, options, device):
        self.model = Mistral3ForConditionalGeneration.from_pretrained(directory).to(device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.length_ = options["length"]

    def run(self, texts):
        chats = [
            [{{"role": "system", "content": "{SYSTEM}"}}, {{"role": "user", "content": text.replace("[IMG]", "")}}]
            for text in texts
        ]
        inputs = self.tokenizer.apply_chat_template(
            chats, return_dict=True, return_tensors="pt",
            padding="max_length", truncation=True, max_length=self.length_,
        ).to(self.model.device)
        states = self.model(**inputs, output_hidden_states=True, use_cache=False).hidden_states
        embeds = torch.cat([states[layer] for layer in {LAYERS}], dim=-1)
        ids = torch.zeros(self.length_, 4, dtype=torch.int64)
        ids[:, 3] = torch.arange(self.length_)
        return [{{"prompt_embeds": own, "text_ids": ids}} for own in embeds]
'''

SCORER = """
from handler.errors import InvalidRequest


class Scorer:
    def __init__(self, directory, options, device):
        self.factor = options.get("factor", 1)

    def run(self, texts):
        if "bad" in texts:
            raise InvalidRequest("bad is not scored")
        if "worse" in texts:
            raise KeyError("secret")
        return [{"score": self.factor * len(text)} for text in texts]


class Short(Scorer):
    def run(self, texts):
        return []
"""


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A directory with a tiny model and modules, importable as an archive's are."""
    tiny_models.prompt_encoder(tmp_path / "model")
    (tmp_path / "own_encoder.py").write_text(ENCODER)
    (tmp_path / "own_scorer.py").write_text(SCORER)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_the_seeds_encoder_in_forty_lines(room):
    assert len(ENCODER.strip().splitlines()) < 40
    service = worker.start(room, task="own_encoder:Encoder", options={"length": LENGTH})
    request = frames.post(json.dumps({"prompts": list(PROMPTS)}).encode(), Accept="application/x-safetensors")
    [response] = frames.predict(service, [request])
    assert response.status == 200, response.body
    found = safetensors.torch.load(response.body)
    embeds, ids = flux2(room, PROMPTS)
    np.testing.assert_allclose(found["prompt_embeds"].numpy(), embeds, atol=1e-5 * np.abs(embeds).max())
    np.testing.assert_array_equal(found["text_ids"].numpy(), ids)


def test_one_texts_failure_is_its_requests_alone(room):
    service = worker.start(room, task="own_scorer:Scorer", options={"factor": 2})
    texts = ("abc", "bad", "worse", "abcd")
    answers = frames.predict(service, [frames.ask(text=text) for text in texts])
    assert [answer.status for answer in answers] == [200, 422, 500, 200]
    assert [json.loads(answers[place].body) for place in (0, 3)] == [{"score": 6}, {"score": 8}]
    assert b"secret" not in answers[2].body
    _, listed = frames.answer(service, texts=["a", "ab"])
    assert listed["predictions"] == [{"score": 2}, {"score": 4}]


def test_a_parameter_that_nobody_reads_is_refused(room):
    service = worker.start(room, task="own_scorer:Scorer")
    status, answered = frames.answer(service, text="a", truncation=False)
    assert status == 422 and "truncation: unknown key" in answered["error"]["message"]


def test_as_many_results_as_texts(room):
    service = worker.start(room, task="own_scorer:Short", warm_up=False)
    assert frames.answer(service, text="a")[0] == 500


@pytest.mark.parametrize(("task", "says"), [("nowhere:Encoder", "nowhere"), ("own_scorer:Encoder", "Encoder")])
def test_what_is_not_there(room, task, says):
    with pytest.raises(LoadError, match=says):
        worker.start(room, task=task)


def test_keys_of_other_tasks_are_refused():
    with pytest.raises(ConfigError, match=r"handler\.top_k"):
        read_config({"handler": {"task": "own_scorer:Scorer", "top_k": 2}})
    with pytest.raises(ConfigError, match="or MODULE:CLASS"):
        read_config({"handler": {"task": "own_scorer.Scorer"}})


def test_its_module_goes_into_the_archive(room, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    (room / "model-config.yaml").write_text("handler:\n  task: own_scorer:Scorer\n")
    (room / "recipe.yaml").write_text('name: scorer\nversion: "1.0"\n')
    built = archives.build(str(room), "--export-path", str(store), "--archive-format", "no-archive")
    assert built.returncode == 0, built.stderr
    assert (store / "scorer" / "own_scorer.py").read_text() == SCORER


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("elsewhere:Scorer", "there is no elsewhere.py"),
        ("own_scorer:Nobody", "Nobody"),
    ],
)
def test_a_class_that_is_not_there_is_refused_when_the_archive_is_built(room, tmp_path_factory, task, says):
    (room / "model-config.yaml").write_text(f"handler:\n  task: {task}\n")
    (room / "recipe.yaml").write_text('name: scorer\nversion: "1.0"\n')
    built = archives.build(str(room), "--export-path", str(tmp_path_factory.mktemp("store")))
    assert built.returncode == 1 and says in built.stderr
