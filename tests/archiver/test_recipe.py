from pathlib import Path

import pytest
import yaml

from archiver.errors import Refused
from archiver.recipe import Flags, read


@pytest.fixture
def recipe(model):
    """A recipe directory with its model inside."""
    folder = model.parent
    (folder / "model-config.yaml").write_text("batchSize: 8\nhandler:\n  task: text-classification\n")
    (folder / "recipe.yaml").write_text("name: mood\nversion: 1.10\nmodel: model\n")
    return folder


def refusal(flags):
    with pytest.raises(Refused) as caught:
        read(flags)
    return caught.value.problems


def any_model(model, **more):
    return Flags(model=str(model), task="text-classification", model_name="m", version="1.0", **more)


def test_reads_a_recipe(recipe):
    found = read(Flags(recipe=recipe))
    assert (found.name, found.version, found.model) == (
        "mood",
        "1.10",
        recipe / "model",
    )  # not the number 1.1
    assert found.config.server.batchSize == 8


def test_a_flag_beats_the_recipe(recipe):
    found = read(
        Flags(
            recipe=recipe,
            model_name="other",
            version="2",
            overrides=("handler.max_tokens=256", "batchSize=4"),
        )
    )
    assert (found.name, found.version) == ("other", "2")
    assert (found.config.handler.max_tokens, found.config.server.batchSize) == (256, 4)


def test_a_recipe_without_recipe_yaml_is_called_as_its_directory(recipe):
    (recipe / "recipe.yaml").unlink()
    found = read(Flags(recipe=recipe))
    assert (found.name, found.version) == (recipe.name, "1.0")


def test_any_model_by_flags(model):
    found = read(any_model(model))
    assert found.config.handler.task == "text-classification"


def test_says_every_missing_flag():
    (nothing,) = refusal(Flags())
    assert nothing.startswith("nothing to build: name a recipe")
    assert [line.split()[0] for line in refusal(Flags(task="text-classification"))] == [
        "--model",
        "--model-name",
        "--version",
    ]


def test_says_every_wrong_key_at_once_with_value_expectation_and_nearest_key(recipe):
    (recipe / "model-config.yaml").write_text(
        "batchsize: 8\nmaxBatchDelay: '1'\nasyncCommunication: true\n"
        "handler:\n  task: text-classification\n  max_token: 3\n"
    )
    (recipe / "recipe.yaml").write_text("name: mood\nversion: '1'\nmodle: model\n")
    problems = refusal(Flags(recipe=recipe))
    assert len(problems) == 5
    joined = "\n".join(problems)
    assert "modle: 'model': unknown key; did you mean model?" in joined
    assert "batchsize: 8: unknown key; did you mean batchSize?" in joined
    assert "maxBatchDelay: '1': expected a whole number from 1 to 60000" in joined
    assert "asyncCommunication: True: expected false or no such key" in joined
    assert "handler.max_token: 3: unknown key; did you mean max_tokens?" in joined


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("", "expected a mapping"),
        ("[1]", "expected a mapping"),
        ("a: [", "is not YAML"),
        ("handler:\n  task: text-classification\nbatchSize: 1\nbatchSize: 2\n", "is there twice"),
        ("handler:\n  task: [text-classification]\n", "expected one of"),
        ("handler: !!python/object:os.system {}\n", "is not YAML"),
        ("\x00", "is not YAML"),
    ],
)
def test_refuses_a_configuration_that_is_none(recipe, content, word):
    (recipe / "model-config.yaml").write_text(content)
    assert word in refusal(Flags(recipe=recipe))[0]


@pytest.mark.parametrize("text", ["batchSize", "=1", "handler.=1", "a.b=1", "handler.a.b=1", "batchSize=["])
def test_refuses_an_override_that_is_none(model, text):
    assert any(f"--set {text}" in line for line in refusal(any_model(model, overrides=(text,))))


@pytest.mark.parametrize(
    "name", ["a/b", "a b", ".a", "-a", "ä", "a..b", "a\n", "token-classifier", "x" * 201, "a=b", "a,b"]
)
def test_refuses_a_name_that_cannot_be_served(model, name):
    flags = Flags(model=str(model), task="text-classification", model_name=name, version="1")
    (problem,) = refusal(flags)
    assert problem.startswith(f"model name: {name!r}: ")


@pytest.mark.parametrize("version", ["1/2", "1 0", "all", "token", "v\n", "é"])
def test_refuses_a_version_that_cannot_be_served(model, version):
    flags = Flags(model=str(model), task="text-classification", model_name="m", version=version)
    (problem,) = refusal(flags)
    assert problem.startswith(f"version: {version!r}: ")


def test_all_is_no_name_for_a_directory_but_one_for_a_file(model):
    flags = {"model": str(model), "task": "text-classification", "model_name": "all", "version": "1"}
    assert read(Flags(**flags)).name == "all"
    assert "load_models=all" in refusal(Flags(**flags, archive_format="no-archive"))[0]


@pytest.mark.parametrize("place", ["./gone", "/gone", "a/b/c"])
def test_a_directory_that_is_not_there_is_not_looked_for_on_the_hub(place):
    assert "no such model directory" in refusal(any_model(place))[0]


def test_a_revision_may_have_slashes(monkeypatch):
    asked = []
    monkeypatch.setattr("archiver.recipe.fetch", lambda text, **_: asked.append(text) or (Path("m"), None, []))
    flags = Flags(model="org/mood@refs/pr/1", model_name="m", version="1", task="text-classification")
    assert read(flags).model == Path("m") and asked == ["org/mood@refs/pr/1"]


def test_a_recipe_that_is_not_there(tmp_path):
    assert refusal(Flags(recipe=tmp_path / "gone")) == (f"{tmp_path / 'gone'}: there is no such recipe directory",)


def test_the_packed_configuration_says_every_default(model):
    document = read(any_model(model)).config.document()
    assert yaml.safe_load(yaml.safe_dump(document)) == document
    assert document["asyncCommunication"] is False
