"""A recipe's own task: the seed's prompt encoder as one, and what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from handler.config import ConfigError, read_config
from handler.errors import LoadError
from tests.support import archives, diffusion, frames, tiny_models, worker

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "own-task.md").read_text()
ENCODER = GUIDE.partition("```python\n")[2].partition("```")[0]
PROMPTS = ("a wonderful story", "", "the film [IMG]was not good", "a " * 600)

SCORER = """
import numpy
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


class Nested(Scorer):
    odd = {"nan": float("nan"), "single": numpy.float32("inf"), "deep": {"a": [1, (numpy.array([numpy.inf]),)]}}
    runs = []

    def run(self, texts):
        self.runs.extend(texts)
        return [{"score": self.odd.get(text, 0.5), "more": {"list": [1, None, "a"]}} for text in texts]


class Short(Scorer):
    def run(self, texts):
        return []


class Long(Scorer):
    runs = []

    def length(self, text):
        return 300

    def run(self, texts):
        self.runs.append(len(texts))
        return super().run(texts)
"""


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A directory with a tiny model and modules, importable as an archive's are."""
    tiny_models.prompt_encoder(tmp_path / "model")
    (tmp_path / "own_scorer.py").write_text(SCORER)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_the_guides_encoder_does_what_diffusers_does(tmp_path, monkeypatch):
    assert len(ENCODER.strip().splitlines()) < 40
    tiny_models.prompt_encoder(tmp_path / "model", layers=40)
    (tmp_path / "my_encoder.py").write_text(ENCODER)
    monkeypatch.syspath_prepend(tmp_path)
    config = yaml.safe_load(GUIDE.partition("```yaml\n")[2].partition("```")[0])["handler"]
    service = worker.start(tmp_path, **{**config, "options": {**config["options"], "dtype": "float32"}})
    safetensors_ = "application/x-safetensors"
    embeds, ids = diffusion.encoded(diffusion.FLUX2, tmp_path / "model", PROMPTS)
    for body in ({"prompts": list(PROMPTS)}, {"prompt": list(PROMPTS)}):
        [response] = frames.predict(service, [frames.post(json.dumps(body).encode(), Accept=safetensors_)])
        assert response.status == 200, response.body
        found = safetensors.torch.load(response.body)
        torch.testing.assert_close(found["prompt_embeds"], embeds, rtol=0, atol=1e-5 * float(embeds.abs().max()))
        assert torch.equal(found["text_ids"], ids)


def test_in_isolation(tmp_path, monkeypatch):
    """As the guide says: no server, no handler."""
    tiny_models.prompt_encoder(tmp_path / "model", layers=40)
    space = {}
    exec(ENCODER, space)
    lines = GUIDE.partition("## In isolation")[2].partition("\n\n")[2].partition("## ")[0]
    encoder, shown = (line.strip() for line in lines.strip().splitlines()[-2:])
    exec(encoder.replace("path/of/the/model", str(tmp_path / "model")), space)
    with torch.inference_mode():
        assert eval(shown, space) == (64, 96)


def test_one_texts_failure_is_its_requests_alone(room):
    service = worker.start(room, task="own_scorer:Scorer", options={"factor": 2})
    texts = ("abc", "bad", "worse", "abcd")
    answers = frames.predict(service, [frames.ask(text=text) for text in texts])
    assert [answer.status for answer in answers] == [200, 422, 500, 200]
    assert [json.loads(answers[place].body) for place in (0, 3)] == [{"score": 6}, {"score": 8}]
    assert b"secret" not in answers[2].body
    _, listed = frames.answer(service, texts=["a", "ab"])
    assert listed["predictions"] == [{"score": 2}, {"score": 4}]


def test_what_is_no_number_is_no_answer(room):
    service = worker.start(room, task="own_scorer:Nested")
    texts = ("nan", "good", "single", "deep")
    answers = frames.predict(service, [frames.ask(text=text) for text in texts])
    assert [answer.status for answer in answers] == [500, 200, 500, 500]
    assert b"NonFiniteOutput" in answers[0].body


def test_results_are_remembered(room):
    service = worker.start(room, task="own_scorer:Nested", cache_bytes=100_000)
    runs = service.handler.pipeline.task.task.runs
    runs.clear()
    answers = [frames.answer(service, texts=["nan"]), *(frames.answer(service, text="good") for _ in range(3))]
    assert [status for status, _ in answers] == [500, 200, 200, 200]
    assert answers[1][1] == answers[3][1] == {"score": 0.5, "more": {"list": [1, None, "a"]}}
    assert runs == ["nan", "good"]


@pytest.mark.parametrize("unread", [{"quantize": "int8"}, {"compile": True}, {"attention": "eager"}])
def test_keys_that_would_do_nothing_are_refused(unread):
    [name] = unread
    with pytest.raises(ConfigError, match=f"handler.{name}.*own"):
        read_config({"handler": {"task": "own_scorer:Scorer", **unread}})


def test_a_parameter_that_nobody_reads_is_refused(room):
    service = worker.start(room, task="own_scorer:Scorer")
    status, answered = frames.answer(service, text="a", truncation=False)
    assert status == 422 and "truncation: unknown key" in answered["error"]["message"]


def test_as_many_results_as_texts(room):
    service = worker.start(room, task="own_scorer:Short", warm_up=False)
    assert frames.answer(service, text="a")[0] == 500


def test_what_is_long_warms_up_with_a_few(room):
    """Texts that count as one token each would be 512 at once."""
    scorer = worker.start(room, task="own_scorer:Long").handler.pipeline.task.task
    assert set(scorer.runs) == {1} and len(scorer.runs) < 20


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
