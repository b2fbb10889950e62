"""question-answering against what transformers 4's pipeline answered, and what that one got wrong."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from handler.errors import LoadError
from handler.spans import choose
from tests.support import frames, reference, tiny_models, worker
from tests.support.answers import assert_scored

TASK = "question-answering"
RECORDED = json.loads((reference.GOLDEN / "question-answering.json").read_text())["cases"]
LONG = next(case["context"] for case in RECORDED if case["name"] == "windows")


@pytest.fixture(scope="module")
def by_stride(tiny, services, tmp_path_factory):
    """Stride -> a worker; None: the default."""
    workers = {None: services[TASK]}
    for stride in (0, 3):
        home = tmp_path_factory.mktemp("stride")
        (home / "model").symlink_to(tiny[TASK] / "model")
        workers[stride] = worker.start(home, task=TASK, stride=stride)
    return workers


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """A worker whose tokenizer pads on the left, so that the context comes first."""
    home = tmp_path_factory.mktemp("left")
    tiny_models.left_reader(home / "model")
    return worker.start(home, task=TASK, max_batch_tokens=300)


def document(case):
    return {name: value for name, value in case.items() if name not in ("name", "doc_stride", "answer")}


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["name"].replace(" ", "-"))
def test_as_transformers_4(tiny, by_stride, case):
    expected = reference.golden_answers(tiny[TASK] / "model")[case["name"]]
    listed = {"answers": expected} if "top_k" in case else {}
    status, answered = frames.answer(by_stride[case.get("doc_stride")], **document(case))
    assert status == 200
    assert_scored(answered, {**expected[0], **listed})


@pytest.mark.parametrize("seed", [1, 2])
def test_what_shares_the_batch_does_not_matter(tiny, services, seed):
    golden = reference.golden_answers(tiny[TASK] / "model")
    chosen = random.Random(seed).choices([case for case in RECORDED if "doc_stride" not in case], k=40)
    rows = [frames.post(json.dumps(document(case)).encode()) for case in chosen]
    for case, response in zip(chosen, frames.predict(services[TASK], rows), strict=True):
        listed = {"answers": golden[case["name"]]} if "top_k" in case else {}
        assert_scored(json.loads(response.body), {**golden[case["name"]][0], **listed})


def test_the_answer_is_what_its_offsets_say(services):
    for case in RECORDED:
        _, answered = frames.answer(services[TASK], **{**document(case), "top_k": 5})
        for found in answered["answers"]:
            assert case["context"][found["start"] : found["end"]] == found["answer"]


def test_every_span_of_a_short_context_and_no_more(services):
    """The pipeline filled up with spans that end before they start."""
    _, answered = frames.answer(services[TASK], question="who?", context="a b c", top_k=100)
    found = {entry["answer"] for entry in answered["answers"]}
    assert found == {"a", "b", "c", "a b", "b c", "a b c"}


def test_only_the_context_answers_where_the_tokenizer_pads_on_the_left(left):
    """The pipeline took the question for a part of the context there."""
    questions = ["what was not good at all", "who told the story?", "what died?"]
    contexts = [LONG, "they sent another one", "a 🎬 week " * 30]
    status, together = frames.answer(left, questions=questions, contexts=contexts, top_k=20)
    assert status == 200
    for question, context, prediction in zip(questions, contexts, together["predictions"], strict=True):
        _, alone = frames.answer(left, question=question, context=context, top_k=20)
        assert_scored(prediction, alone)
        for found in prediction["answers"]:
            assert context[found["start"] : found["end"]] == found["answer"] != ""


def test_nan_is_never_sent(tiny, tmp_path):
    (tmp_path / "model").symlink_to(tiny[TASK] / "model")
    service = worker.start(tmp_path, task=TASK, warm_up=False)
    worker.poison(service, "film")
    rows = [frames.ask({"question": "who?", "context": text}) for text in ("a film", "a story")]
    bad, good = frames.predict(service, rows)
    assert (bad.status, good.status) == (500, 200)
    assert json.loads(bad.body)["error"]["type"] == "NonFiniteOutput"


def test_the_configured_top_k_gives_way_to_the_request(tiny, tmp_path):
    (tmp_path / "model").symlink_to(tiny[TASK] / "model")
    service = worker.start(tmp_path, task=TASK, top_k=2)
    assert len(frames.answer(service, question="who?", context=LONG)[1]["answers"]) == 2
    assert len(frames.answer(service, question="who?", context=LONG, top_k=3)[1]["answers"]) == 3


@pytest.mark.parametrize(("settings", "room"), [({"stride": 45}, 45), ({"max_tokens": 8}, 3)])
def test_a_stride_that_leaves_no_room(tiny, tmp_path, settings, room):
    (tmp_path / "model").symlink_to(tiny[TASK] / "model")
    with pytest.raises(LoadError, match=f"room for {room} tokens"):
        worker.start(tmp_path, task=TASK, **settings)


def test_the_longest_question_and_the_widest_stride(tiny, tmp_path):
    """One token of context less, and the tokenizer would end the worker."""
    (tmp_path / "model").symlink_to(tiny[TASK] / "model")
    service = worker.start(tmp_path, task=TASK, stride=44)
    assert frames.answer(service, question="film " * 16, context="story " * 100)[0] == 200
    assert frames.answer(service, question="film " * 17, context="story " * 100)[0] == 413


def test_describe(services):
    described = services[TASK].handler.pipeline.describe()
    assert (described["input"], described["stride"], described["max_question_tokens"]) == ("question", 32, 16)


def test_a_model_that_reads_more_is_given_384_tokens(tmp_path):
    tokenizer_config = tiny_models.reader(tmp_path / "model", positions=512) / "tokenizer_config.json"
    settings = json.loads(tokenizer_config.read_text())
    tokenizer_config.write_text(json.dumps({**settings, "model_max_length": 512}))
    described = worker.start(tmp_path, task=TASK).handler.pipeline.describe()
    assert (described["limits"]["max_tokens"], described["stride"]) == (384, 128)
    described = worker.start(tmp_path, task=TASK, max_tokens=500).handler.pipeline.describe()
    assert (described["limits"]["max_tokens"], described["stride"]) == (500, 128)


@pytest.mark.parametrize("seed", range(5))
def test_spans_are_those_of_all_pairs(seed):
    """Against the definition: every start, every end."""
    drawn = np.random.default_rng(seed)
    tokens, most, count = 30, int(drawn.integers(1, 40)), int(drawn.integers(1, 60))
    logits = drawn.normal(size=(tokens, 2)).astype(np.float32)
    context = drawn.random(tokens) < 0.7
    context[0] = False
    kept = np.where((context | (np.arange(tokens) == 0))[:, None], np.exp(logits), 0)
    start, end = (kept / kept.sum(axis=0)).T
    pairs = [(i, j) for i in range(tokens) for j in range(i, min(i + most, tokens)) if context[i] and context[j]]
    pairs.sort(key=lambda pair: -start[pair[0]] * end[pair[1]])
    spans = choose(logits, context, 0, most, count)
    assert [(span.first, span.last) for span in spans.best] == pairs[:count]
    np.testing.assert_allclose(
        [span.score for span in spans.best], [start[i] * end[j] for i, j in pairs[:count]], 1e-4
    )
    np.testing.assert_allclose(spans.null_score, start[0] * end[0], 1e-4)
