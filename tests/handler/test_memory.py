"""Answers for equal texts remembered across batches."""

from __future__ import annotations

import json
import tracemalloc
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import handler.memory
from handler.config import HandlerConfig
from handler.errors import InternalError
from handler.measures import Measures
from handler.memory import ENTRY_BYTES, Memory, fingerprint
from handler.request import TextItem
from handler.text_encoder import Tokens
from tests.support import frames, scenarios, worker

CONFIG = HandlerConfig(task="text-classification")
LARGE = 1_000_000


@dataclass(frozen=True)
class WithTopK(TextItem):
    top_k: int = 1


class OfAnotherKind(TextItem):
    pass


@dataclass(frozen=True)
class Tagged:
    tokens: Tokens
    logits: Any


def item(text="a") -> TextItem:
    return TextItem(text, True)


def row(*numbers: float) -> tuple[Any, ...]:
    return (np.array(numbers, np.float32),)


def size_of(outputs) -> int:
    memory = Memory(LARGE, b"")
    memory.put(item(), outputs)
    return memory.size


# -- what is remembered


def test_what_was_put_is_found():
    memory = Memory(LARGE, b"model")
    memory.put(item(), row(1, 2))
    np.testing.assert_array_equal(memory.get(item())[0], [1, 2])
    assert memory.get(item("b")) is None


OTHERS = [
    TextItem("b", True, "b"),
    TextItem("a", False, "b"),
    TextItem("a", True, None),
    TextItem("ab", True, ""),
    TextItem("", True, "ab"),
    TextItem("a", True, "None"),
    TextItem("aTrue", True, "b"),
    TextItem("a", True, "Trueb"),
    OfAnotherKind("a", True, "b"),
    WithTopK("a", True, "b"),
    WithTopK("a", True, "b", 2),
]


@pytest.mark.parametrize("index", range(len(OTHERS)))
def test_every_field_tells_items_apart(index):
    memory = Memory(LARGE, b"model")
    for number, other in enumerate([TextItem("a", True, "b"), *OTHERS]):
        if number != index + 1:
            memory.put(other, row(number))
    assert memory.get(OTHERS[index]) is None
    assert memory.get(TextItem("a", True, "b")) is not None


@given(
    *[st.builds(TextItem, st.text(max_size=3), st.booleans(), st.none() | st.text(max_size=3)) for _ in range(2)]
)
def test_two_items_share_an_entry_only_if_they_are_equal(first, second):
    memory = Memory(LARGE, b"model")
    memory.put(first, row(1))
    assert (memory.get(second) is not None) == (first == second)


def test_models_do_not_share():
    first, second = Memory(LARGE, b"first"), Memory(LARGE, b"second")
    first.put(item(), row(1))
    second._entries = first._entries
    assert first.get(item()) is not None and second.get(item()) is None


@pytest.mark.parametrize(
    "outputs", [row(np.nan), row(np.inf), ({1},), ({"a": [np.nan]},), (np.array(["a"], object),), (float("nan"),)]
)
def test_what_is_not_finite_or_cannot_be_sized_is_not_remembered(outputs):
    memory = Memory(LARGE, b"")
    memory.put(item(), outputs)
    memory.put(item("nested"), (Tagged(Tokens([1], None, None), outputs),))
    assert memory.get(item()) is None and memory.get(item("nested")) is None and memory.size == 0


def test_a_copy_that_nobody_can_change_is_remembered():
    memory, batch = Memory(LARGE, b""), np.zeros((1000, 3), np.float32)
    ids = [1, 2]
    memory.put(item(), (Tagged(Tokens(ids, None, None), batch[1]),))
    batch[1] = 7
    ids.append(3)
    [found] = memory.get(item())
    np.testing.assert_array_equal(found.logits, [0, 0, 0])
    assert found.logits.base is None, "the whole micro-batch would be kept"
    assert found.tokens.ids == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        found.logits[0] = 7


# -- how much


def test_the_least_recently_used_is_forgotten_first():
    memory = Memory(3 * size_of(row(1)), b"")
    for text in "abc":
        memory.put(item(text), row(1))
    memory.get(item("a"))
    memory.put(item("d"), row(1))
    assert [text for text in "abcd" if memory.get(item(text))] == ["a", "c", "d"]


def test_putting_again_replaces():
    memory = Memory(LARGE, b"")
    memory.put(item(), row(*range(100)))
    memory.put(item(), row(2))
    assert memory.size == size_of(row(2)) and memory.get(item())[0] == [2]


def test_what_is_larger_than_the_budget_costs_nobody_their_place():
    memory = Memory(size_of(row(1)), b"")
    memory.put(item("small"), row(1))
    memory.put(item("large"), row(*range(10)))
    assert memory.get(item("large")) is None and memory.get(item("small")) is not None


@given(
    st.integers(0, 3000),
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 200), st.booleans()), max_size=40),
)
def test_the_budget_is_never_exceeded_and_the_order_is_that_of_use(budget, steps):
    memory, model = Memory(budget, b""), OrderedDict()
    for text, length, reads in steps:
        if reads:
            assert (memory.get(item(text)) is not None) == (text in model)
            if text in model:
                model.move_to_end(text)
            continue
        memory.put(item(text), row(*range(length)))
        size = size_of(row(*range(length)))
        if size <= budget:
            model.pop(text, None)
            while sum(model.values()) + size > budget:
                model.popitem(last=False)
            model[text] = size
        assert memory.size == sum(model.values()) <= budget


@pytest.mark.parametrize("length", [2, 384])
@pytest.mark.parametrize("count", [1000, 2000, 12_000])
def test_the_count_of_bytes_is_honest(count, length):
    batch = np.zeros((100, length), np.float32)
    tracemalloc.start()
    memory = Memory(10**9, b"")
    for number in range(count):
        memory.put(item(str(number)), (batch[number % 100],))
    traced = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, handler.memory.__file__)])
    tracemalloc.stop()
    taken = sum(trace.size for trace in traced.traces)  # by that file: other threads of the process allocate too
    assert 0.7 * memory.size < taken <= memory.size


def test_an_encoding_counts_with_all_that_was_cut_off(services):
    tokenizer = services["text-classification"].handler.pipeline.task.encoder.loaded.tokenizer

    def size(words):
        encoding = tokenizer(["film " * words], truncation=True, max_length=64).encodings[0]
        return size_of((Tagged(Tokens([1], None, encoding), np.zeros(1)),))

    assert size(10) > ENTRY_BYTES + 12 * 84
    assert size(600) - size(60) > 540 * 84


# -- the model's digest


def test_the_digest_is_of_the_archives_files_and_the_section(tmp_path: Path):
    model, sums = tmp_path / "model", tmp_path / "MAR-INF" / "SHA256SUMS"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"1")
    seen = [fingerprint(model, CONFIG), fingerprint(model, replace(CONFIG, dtype="bfloat16"))]
    assert fingerprint(model, CONFIG) == seen[0]
    (model / "model.safetensors").write_bytes(b"12")
    seen.append(fingerprint(model, CONFIG))
    sums.parent.mkdir()
    for content in (b"0" * 64 + b"  model/x\n", b"1" * 64 + b"  model/x\n"):
        sums.write_bytes(content)
        seen.append(fingerprint(model, CONFIG))
    seen.append(fingerprint(model, replace(CONFIG, max_tokens=8)))
    assert len(set(seen)) == len(seen)


# -- a batch


def test_only_what_is_missing_is_computed_and_errors_are_tried_again():
    memory, asked = Memory(LARGE, b""), []

    def compute(items):
        asked.append([item.text for item in items])
        return [InternalError("no") if item.text == "bad" else row(ord(item.text)) for item in items]

    memory.complete([item("a"), item("bad")], compute, Measures())
    measures = Measures()
    slots = memory.complete([item("b"), item("bad"), item("a")], compute, measures)
    assert asked == [["a", "bad"], ["b", "bad"]]
    assert isinstance(slots[1], InternalError) and (slots[0][0], slots[2][0]) == ([98], [97])
    assert (measures.hits, measures.misses, measures.cache_bytes) == (1, 2, memory.size)
    memory.complete([item("a")], compute, Measures())
    assert len(asked) == 2, "nothing was missing"


def test_what_a_batch_pushes_out_is_still_in_its_answer():
    memory = Memory(size_of(row(1)), b"")
    memory.put(item("a"), row(1))
    slots = memory.complete([item("b"), item("a")], lambda items: [row(2) for _ in items], Measures())
    assert [slot[0] for slot in slots] == [[2], [1]]


# -- the worker


def counted(service, monkeypatch) -> list[int]:
    task, rows = service.handler.pipeline.task, []
    forward = task.forward
    monkeypatch.setattr(task, "forward", lambda chosen: rows.append(len(chosen)) or forward(chosen))
    return rows


@pytest.mark.parametrize(("cache_bytes", "forwards"), [(LARGE, 2), (0, 4)])
@pytest.mark.parametrize("task", ["text-classification", "feature-extraction"])
def test_the_second_batch(tiny, monkeypatch, task, cache_bytes, forwards):
    service = worker.start(tiny[task], task=task, cache_bytes=cache_bytes)
    rows = counted(service, monkeypatch)
    requests = [frames.ask(text="a"), frames.ask(text="a wonderful story")]
    first, second = frames.predict(service, requests), frames.predict(service, requests)
    assert sum(rows) == forwards
    assert [response.status for response in first] == [200, 200]
    assert [response.body for response in first] == [response.body for response in second]


def test_equal_texts_share_whatever_else_is_asked(tiny, monkeypatch):
    service = worker.start(tiny["text-classification"], task="text-classification", cache_bytes=LARGE)
    rows = counted(service, monkeypatch)
    [first], [second] = (
        frames.predict(service, [r]) for r in (frames.ask(text="a"), frames.ask(text="a", top_k=1))
    )
    assert sum(rows) == 1
    assert "top_k" not in json.loads(first.body)
    assert json.loads(second.body)["confidence"] == json.loads(first.body)["confidence"]
    frames.predict(service, [frames.ask(text="a", truncation=False)])
    assert sum(rows) == 2


def test_nan_is_computed_again(tiny, monkeypatch):
    service = worker.start(tiny["text-classification"], task="text-classification", cache_bytes=LARGE)
    with torch.no_grad():
        service.handler.pipeline.task.encoder.loaded.model.classifier.bias[0] = float("nan")
    rows = counted(service, monkeypatch)
    statuses = [frames.predict(service, [frames.ask(text="a")])[0].status for _ in range(2)]
    assert statuses == [500, 500] and sum(rows) == 2
    assert service.handler.pipeline.memory.size == 0


def test_the_hit_ratio_is_told_where_answers_are_remembered(tiny, services, caplog):
    service = worker.start(tiny["text-classification"], task="text-classification", cache_bytes=LARGE)
    frames.predict(service, [frames.ask(text="a")])
    caplog.clear()
    with caplog.at_level("INFO", logger="ts.metrics.caching_metric"):
        frames.predict(service, [frames.ask(texts=["a", "a", "b", "c", "d"])])
        frames.predict(services["text-classification"], [frames.ask(text="a")])
    lines = [record.message for record in caplog.records if "HandlerCache" in record.message]
    told = {name: float(value) for name, value in (line.split("|")[0].split(":") for line in lines)}
    size = service.handler.pipeline.memory.size
    assert len(lines) == 4, "only one of the two workers remembers"
    assert {name.rpartition("HandlerCache")[2].partition(".")[0]: value for name, value in told.items()} == {
        "Hits": 1,
        "Misses": 3,
        "Bytes": size,
        "HitRatio": 0.25,
    }


def test_describe_shows_the_budget(tiny):
    service = worker.start(tiny["text-classification"], task="text-classification", cache_bytes=LARGE)
    [response] = frames.predict(service, [frames.Request([], {"describe": "True"})])
    assert json.loads(response.body)["limits"]["cache_bytes"] == LARGE


@pytest.mark.parametrize("task", scenarios.TASKS)
def test_every_tasks_answers_are_remembered(tiny, references, monkeypatch, task):
    service = worker.start(tiny[task], task=task, cache_bytes=10 * LARGE, **scenarios.LIMITS)
    chosen = [scenario for scenario in scenarios.of(task) if scenario.status == 200]
    rows = [scenario.frame() for scenario in chosen]
    frames.predict(service, rows)
    monkeypatch.setattr(service.handler.pipeline.task, "forward", None)  # a call would be a 500
    for response, scenario in zip(frames.predict(service, rows), chosen, strict=True):
        reference = references[task](scenario)
        scenarios.check_answer(
            task, scenario, response.status, response.content_type, response.body, reference=reference
        )
