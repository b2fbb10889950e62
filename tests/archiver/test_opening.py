"""What a worker would stumble over is found before an archive is put in place."""

import zipfile

import pytest

from archiver import build as building
from archiver.errors import Refused
from archiver.recipe import Flags, read
from tests.archiver.conftest import ENTRY


@pytest.fixture
def build(model, store, room):
    lines = []

    def run(form="zip-store", task="text-classification", **flags):
        recipe = read(
            Flags(
                model=str(model),
                model_name="m",
                version="1",
                task=task,
                archive_format=form,
                **flags,
            )
        )
        return building.build(recipe, store, form, force=True, say=lines.append, handler_room=room)

    run.lines = lines
    return run


@pytest.mark.parametrize("form", ["zip-store", "default", "tgz", "no-archive"])
def test_a_good_one_opens(build, form):
    assert build(form).exists()
    assert build.lines == []


def test_the_real_handler_opens(model, store):
    recipe = read(Flags(model=str(model), model_name="m", version="1", task="text-classification"))
    assert building.build(recipe, store, "zip-store", force=False, say=print).exists()


@pytest.mark.parametrize(
    "case",
    [
        ("transformer_handler.py", ENTRY + "\n\nclass Second:\n    pass\n", "expected one class"),
        ("transformer_handler.py", '"""Nothing."""\n', "expected one class, found none"),
        (
            "transformer_handler.py",
            ENTRY + "\n\ndef handle(data, context):\n    pass\n",
            "module-level handle",
        ),
        ("transformer_handler.py", "import nothing_like_it\n" + ENTRY, "nothing_like_it"),
        ("transformer_handler.py", "from handler.gone import x\n" + ENTRY, "handler.gone"),
        ("transformer_handler.py", "def broken(:\n", "SyntaxError"),
        ("transformer_handler.py", "import sys\nsys.exit(3)\n", "SystemExit"),
        ("transformer_handler.py", "import os\nos._exit(3)\n", "ended with status 3"),
        ("transformer_handler.py", "from archiver import build\n" + ENTRY, "archiver"),
        ("unused.py", "from handler.gone import x\n", "handler.unused"),
        ("unused.py", "1 / 0\n", "ZeroDivisionError"),
        ("config.py", "def read_config(document):\n    raise ValueError('no')\n", "model-config.yaml: no"),
    ],
)
def test_a_bad_one_is_refused_and_nothing_is_left(build, room, store, case):
    name, content, word = case
    (room / name).write_text(content)
    with pytest.raises(Refused) as caught:
        build()
    assert word in "\n".join(caught.value.problems)
    assert list(store.iterdir()) == []


def test_the_old_one_stays_when_the_new_one_does_not_open(build, room):
    path = build()
    before = path.read_bytes()
    (room / "transformer_handler.py").write_text("1 / 0\n")
    with pytest.raises(Refused):
        build()
    assert path.read_bytes() == before


def test_a_module_that_lacks_an_optional_package_is_a_note(build, room):
    (room / "engine.py").write_text("import nothing_like_it\n")
    build()
    assert build.lines == ["note: handler.engine was not imported here: No module named 'nothing_like_it'"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"task": "text-classification"}, []),
        ({"task": "text-generation"}, ["generation.transformers_engine"]),
        ({"task": "text-generation", "overrides": ("handler.engine=vllm",)}, ["generation.vllm_engine"]),
    ],
)
def test_the_other_wing_and_the_other_engine_are_left_alone(build, room, settings, named):
    (room / "generation").mkdir()
    for name in ("__init__", "transformers_engine", "vllm_engine"):
        (room / "generation" / f"{name}.py").write_text("" if name == "__init__" else "import nothing_like_it\n")
    build(**settings)
    reason = "was not imported here: No module named 'nothing_like_it'"
    assert build.lines == [f"note: handler.{name} {reason}" for name in named]


def test_what_an_import_prints_does_no_harm(build, room):
    (room / "tasks" / "__init__.py").write_text("print('{}')\n")
    build()


@pytest.mark.parametrize("name", ["yaml.py", "json.py", "torch.py"])
def test_an_extra_file_that_hides_a_module_is_refused(build, tmp_path, store, name):
    (tmp_path / name).write_text("safe_load = loads = None\n")
    with pytest.raises(Refused):
        build(extra_files=(str(tmp_path / name),))
    assert list(store.iterdir()) == []


def test_an_extra_file_that_bears_a_name_of_torchserves_is_harmless(build, tmp_path):
    (tmp_path / "utils.py").write_text("1 / 0\n")
    assert "utils.py" in zipfile.ZipFile(build(extra_files=(str(tmp_path / "utils.py"),))).namelist()


def test_an_archive_that_is_not_what_was_loaded_is_refused(build, monkeypatch, store):
    write = building.pack.write_zip

    def spoil(file, members, *rest, **options):
        spoiled = [
            type(member)(member.name, b"#" * member.size, member.size)
            if member.name == "handler/rules.py"
            else member
            for member in members
            if member.name != "handler/errors.py"
        ]
        write(file, spoiled, *rest, **options)

    monkeypatch.setattr(building.pack, "write_zip", spoil)
    with pytest.raises(Refused) as caught:
        build()
    assert caught.value.problems == (
        "in a worker: handler/rules.py: is not in the archive as it was packed",
        "in a worker: handler/errors.py: is not in the archive",
    )
    assert list(store.iterdir()) == []
