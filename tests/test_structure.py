"""The house: which room may import what, and what TorchServe asks of a handler."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import ts
from ts.utils.util import list_classes_from_module

from handler import config
from handler.generation.engine import ENGINES
from tests.support import scenarios

ROOT = Path(__file__).parent.parent
HANDLER = sorted((ROOT / "handler").rglob("*.py"))
HEAVY = {"torch", "transformers", "ts"}

# Nothing looks up: a room imports from its own floor or from one below.
FLOORS = [
    {"errors", "rules", "reading"},
    {"config", "draining", "batch", "measures", "linear"},
    {"wire", "request", "devices", "lanes", "loading", "pooling", "memory", "layers", "tensors"},
    {"text_encoder", "protocols", "spans", "golden", "provenance"},
    {"tasks"},
    {"pipeline", "generation"},
    {"wings"},
    {"transformer_handler"},
]
LIGHT = {
    "errors",
    "rules",
    "reading",
    "config",
    "draining",
    "batch",
    "measures",
    "wire",
    "request",
    "protocols",
    "spans",
}


def imports(path: Path, *, top: bool = False) -> set[str]:
    """Everything that a module imports, or what it imports before anything of it is called."""
    found = set()
    tree = ast.parse(path.read_text())
    for node in tree.body if top else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path: Path) -> str:
    return path.relative_to(ROOT / "handler").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", HANDLER, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_looks_up(path):
    floor = {name: level for level, names in enumerate(FLOORS) for name in names}
    if room(path) == "__init__":
        return
    for name in imports(path):
        if name.startswith("handler."):
            assert floor[name.split(".")[1]] <= floor[room(path)], f"{path.name} imports {name}"
        if room(path) in LIGHT:
            assert name.split(".")[0] not in HEAVY, f"{path.name} imports {name}"
        if name.split(".")[0] == "ts":
            assert room(path) == "transformer_handler"


def test_the_handler_imports_nothing_of_the_other_rooms():
    for path in HANDLER:
        assert not {name.split(".")[0] for name in imports(path)} & {"archiver", "client", "serving", "tests"}


def test_the_archiver_uses_the_configuration_and_nothing_else_of_the_handler():
    allowed = {"handler.config", "handler.rules", "handler.errors"}
    for path in (ROOT / "archiver").glob("*.py"):
        names = {".".join(name.split(".")[:2]) for name in imports(path) if name.startswith("handler.")}
        if path.stem in ("worker", "runner"):  # whose handler is the archive's
            names -= {"handler.wings", "handler.wire"}
        assert names <= allowed, path
        assert not {name.split(".")[0] for name in imports(path)} & {"torch", "transformers"}, path


def test_the_reference_uses_nothing_that_it_is_to_judge():
    for path in (ROOT / "reference").glob("*.py"):
        assert not {name.split(".")[0] for name in imports(path)} & {"handler", "archiver", "client"}, path


def test_the_client_uses_neither():
    """What needs torch imports it when it is asked for: no other command has to have it."""
    for path in (ROOT / "client").glob("*.py"):
        names = {name.split(".")[0] for name in imports(path)}
        assert not names & {"handler", "archiver"}
        assert not names & HEAVY or path.stem in ("prompts", "verify")
        assert not {name.split(".")[0] for name in imports(path, top=True)} & HEAVY, path


def test_torchserve_finds_one_class_and_no_function_called_handle():
    module = importlib.import_module("handler.transformer_handler")
    assert [found.__name__ for found in list_classes_from_module(module)] == ["TransformerHandler"]
    assert not hasattr(module, "handle")


def test_no_module_bears_a_name_that_is_taken():
    taken = set(sys.stdlib_module_names) | {path.stem for path in Path(ts.__file__).parent.glob("*.py")}
    for path in (ROOT / "handler").glob("*.py"):
        assert path.stem == "__init__" or path.stem not in taken, path


def test_the_handler_prints_nothing():
    for path in HANDLER:
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [func for func in calls if isinstance(func, ast.Name) and func.id == "print"], path


@pytest.mark.parametrize("task", config.TASKS)
def test_a_task_is_a_module_a_line_and_scenarios(task):
    assert importlib.import_module(config.TASKS[task]).build
    own = ROOT / "tests" / "handler" / f"test_{task.replace('-', '_')}.py"  # where answers are no JSON
    assert own.exists() if task == "prompt-encoding" else scenarios.load(task)


MODULES = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path for path in HANDLER}


def reached(*names):
    """These modules of the handler's, and all that they import, whenever they do."""
    found, new = set(), set(names)
    while new:
        found |= new
        new = {name for module in new for name in imports(MODULES[module])}
        new = {kept for name in new for kept in (name, name.rpartition(".")[0]) if kept in MODULES} - found
    return found


@pytest.mark.parametrize(
    ("settings", "roots"),
    [
        *(({"task": task}, ("handler.pipeline", room)) for task, room in config.TASKS.items()),
        ({"task": "own:Own"}, ("handler.pipeline", "handler.tasks.own")),
        *(
            ({"task": "text-generation", "engine": engine}, ("handler.generation.rounds", room))
            for engine, room in ENGINES.items()
        ),
    ],
)
def test_what_is_left_unopened_is_not_needed(settings, roots):
    """An archive's modules are imported before it takes its place, less those that it has no use for."""
    unused = config.unused(config.HandlerConfig(**settings))
    needed = reached("handler.transformer_handler", *roots)
    assert any(name.startswith(unused) for name in MODULES) and len(needed) > 10
    assert not {name for name in needed if name.startswith(unused)}


def test_a_start_waits_for_no_library_that_transformers_has_for_other_things():
    others = ("sklearn", "scipy")  # which are here: sentence-transformers needs them
    assert all(map(importlib.util.find_spec, others))
    names = "transformers.AutoModelForSequenceClassification, transformers.ContinuousBatchingConfig"
    left = f"print([name for name in {others} if name in sys.modules])"
    code = f"import sys, transformers, handler.loading; {names}; {left}"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_no_task_imports_another():
    for path in (ROOT / "handler" / "tasks").glob("*.py"):
        others = {name for name in imports(path) if name.startswith("handler.tasks.")}
        assert all(name.startswith("handler.tasks.base") for name in others), path
