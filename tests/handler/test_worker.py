"""What the whole handler does beside answering: limits, failures, loading, describing, refusing."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import os
import signal

import numpy as np
import pytest
import torch
import transformers

from handler import devices, pipeline
from handler.errors import DeviceLost, LoadError, OutOfMemory
from handler.measures import Measures
from tests.support import frames, reference, tiny_models, worker

TEXTS = [
    "a wonderful story",
    "the film was not good at all and I would not see it again",
    "the battery died",
    "good",
]


@pytest.fixture
def home(tmp_path):
    tiny_models.classifier(tmp_path / "model")
    return tmp_path


# -- the model's answers


def test_many_texts_in_small_micro_batches(home):
    service = worker.start(home, task="text-classification", max_batch_tokens=20)
    rows = [frames.ask({"texts": TEXTS[index:] + TEXTS}) for index in range(4)]
    expected = dict(zip(TEXTS, reference.probabilities(home / "model", TEXTS), strict=True))
    for index, response in enumerate(frames.predict(service, rows)):
        for text, prediction in zip(TEXTS[index:] + TEXTS, json.loads(response.body)["predictions"], strict=True):
            np.testing.assert_allclose(prediction["probabilities"], expected[text], atol=1e-4)


def test_equal_texts_are_computed_once(services, monkeypatch):
    service = services["text-classification"]
    encoder = service.handler.pipeline.task.encoder
    rows_seen = []
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda rows: rows_seen.append(len(rows)) or forward(rows))
    frames.predict(
        service,
        [frames.ask({"texts": ["a", "b", "a"]}), frames.ask({"text": "b"}), frames.ask({"text": "a", "top_k": 1})],
    )
    assert sum(rows_seen) == 2


def test_a_model_that_says_nowhere_how_long_a_text_may_be(tmp_path):
    path = tiny_models.last_classifier(tmp_path / "model") / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["model_max_length"]
    path.write_text(json.dumps(settings))
    with pytest.raises(LoadError, match=r"set handler\.max_tokens"):
        worker.start(tmp_path, task="text-classification")
    worker.start(tmp_path, task="text-classification", max_tokens=20)


def test_a_tokenizer_that_knows_more_than_the_model(home, caplog):
    tokenizer = transformers.AutoTokenizer.from_pretrained(home / "model")
    tokenizer.add_tokens(["<extra>"], special_tokens=True)
    tokenizer.save_pretrained(home / "model")
    with caplog.at_level(logging.WARNING):
        service = worker.start(home, task="text-classification")
    assert "texts with some tokens are refused" in caplog.text
    refused, good = frames.predict(service, [frames.ask({"text": text}) for text in ("a <extra> film", "a film")])
    assert refused.status == 422 and b"token" in refused.body
    [expected] = reference.probabilities(home / "model", ["a film"])
    np.testing.assert_allclose(json.loads(good.body)["probabilities"], expected, atol=1e-4)


def test_multi_label(tmp_path):
    tiny_models.classifier(tmp_path / "model", labels=4, problem_type="multi_label_classification")
    service = worker.start(tmp_path, task="text-classification", threshold=0.4)
    [expected] = reference.probabilities(tmp_path / "model", TEXTS[:1], multi_label=True)
    _, prediction = frames.answer(service, {"text": TEXTS[0]})
    np.testing.assert_allclose(prediction["probabilities"], expected, atol=1e-4)
    assert prediction["labels"] == [f"LABEL_{index}" for index in np.flatnonzero(expected >= 0.4)]
    assert 0 < len(prediction["labels"]) < 4, "the threshold should split this model's labels"


def test_the_configured_top_k_gives_way_to_the_request(home):
    service = worker.start(home, task="text-classification", top_k=1)
    assert len(frames.answer(service, {"text": "a"})[1]["top_k"]) == 1
    assert len(frames.answer(service, {"text": "a", "top_k": 2})[1]["top_k"]) == 2


def test_bfloat16(home):
    service = worker.start(home, task="text-classification", dtype="bfloat16")
    [expected] = reference.probabilities(home / "model", TEXTS[:1])
    _, prediction = frames.answer(service, {"text": TEXTS[0]})
    assert service.handler.pipeline.task.encoder.loaded.model.dtype is torch.bfloat16
    np.testing.assert_allclose(prediction["probabilities"], expected, atol=0.05)


@pytest.mark.parametrize(("told", "budget"), [({}, 1600), ({"max_batch_tokens": 700}, 700)])
def test_a_worker_measures_what_a_forward_costs_by_itself(home, monkeypatch, told, budget):
    pipe = worker.start(home, task="text-classification", **told).handler.pipeline
    pipe.batch_tokens = told.get("max_batch_tokens", devices.BATCH_TOKENS["cpu"])
    clock = [0.0]

    def forward(rows):
        clock[0] += 0.010 + 0.0001 * sum(map(len, rows))

    monkeypatch.setattr(pipe, "_forward", forward)
    monkeypatch.setattr(pipeline.time, "thread_time", lambda: clock[0])
    pipe.measure()
    assert (pipe.launch_tokens, pipe.batch_tokens) == (100, budget)


# -- answers ahead of their batch's end


BAD, GOOD = b'{"text": 7}', b'{"text": "a"}'


def in_two(service, *rows):
    """Which of these rows, each a body and its Via or none, come in two pieces; all are answered, and rightly."""
    requests = [frames.post(body, **({"via": via} if via else {})) for body, via in rows]
    responses = frames.predict(service, requests)
    assert [response.status for response in responses] == [200 if body is GOOD else 422 for body, _ in rows]
    assert all(json.loads(response.body)["label"] for response in responses if response.status == 200)
    return [index for index, response in enumerate(responses) if "ts_stream_next" in response.headers]


def test_one_answer_of_a_batch_ends_after_the_others(services):
    """One that is good, whose client is known to read chunks."""
    service = services["text-classification"]
    assert in_two(service, (BAD, "1.1 a"), (GOOD, ""), (GOOD, "2.0 a"), (GOOD, "1.1 a")) == [2]
    assert in_two(service, (BAD, "1.1 a"), (GOOD, "")) == []
    assert in_two(service, (GOOD, ""), (GOOD, "")) == []
    assert in_two(service, (GOOD, "1.1 a")) == [], "who is alone waits for nobody"


@pytest.mark.parametrize(
    ("via", "pieces"),
    [("HTTP/1.1 a (b), 2 c:80", [0]), ("1.0 a", []), ("1.1 a, HTTP/1.0 b", []), (" , ", []), ("1.0 a, 1.1 b", [])],
)
def test_via_says_who_reads_chunks(services, via, pieces):
    assert in_two(services["text-classification"], (GOOD, via), (GOOD, "")) == pieces


def test_a_full_batch_waits_for_no_other(services, monkeypatch):
    pipe = services["text-classification"].handler.pipeline
    full = dataclasses.replace(pipe.config, server=dataclasses.replace(pipe.config.server, batchSize=2))
    monkeypatch.setattr(pipe, "config", full)
    assert in_two(services["text-classification"], (GOOD, "1.1 a"), (GOOD, "1.1 a")) == []


def test_what_was_sent_ahead_is_not_answered_again(services, monkeypatch, caplog):
    """Whatever fails after it."""
    monkeypatch.setattr(Measures, "emit", lambda self, cache: 1 / 0)
    assert in_two(services["text-classification"], (GOOD, "1.1 a"), (BAD, "1.1 a"), (GOOD, "1.1 a")) == [0]
    assert "defect: ZeroDivisionError" in caplog.text


# -- failures of one request


def test_nan_is_never_sent(home):
    service = worker.start(home, task="text-classification", warm_up=False)
    worker.poison(service, "film")
    bad, good = frames.predict(service, [frames.ask({"text": "the film"}), frames.ask({"text": "the story"})])
    assert bad.status == 500 and json.loads(bad.body)["error"]["type"] == "NonFiniteOutput"
    assert good.status == 200


def test_a_thousand_wrong_fields_are_not_all_looked_at(services):
    document = {"text": "a", **{f"wrong_{index}": index for index in range(1000)}}
    status, answered = frames.answer(services["text-classification"], document)
    assert status == 422
    assert answered["error"]["message"].count("unknown key") == 5


def test_an_answer_over_the_limit(home):
    service = worker.start(home, task="text-classification", max_response_bytes=1000)
    small, large = frames.predict(service, [frames.ask({"text": "a"}), frames.ask({"texts": ["a"] * 50})])
    assert small.status == 200
    assert large.status == 413 and "the limit is 1000" in large.body.decode()


def test_out_of_memory_is_split_and_tried_again(services, monkeypatch):
    service = services["text-classification"]
    forward = worker.short_of_memory(
        service, lambda rows: len(rows) == 1, torch.OutOfMemoryError("CUDA out of memory")
    )
    monkeypatch.setattr(service.handler.pipeline.task, "forward", forward)
    status, document = frames.answer(service, {"texts": TEXTS})
    assert status == 200 and len(document["predictions"]) == 4


def test_what_does_not_fit_alone_is_refused_alone(services, monkeypatch):
    service = services["text-classification"]
    told = "[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory"
    forward = worker.short_of_memory(service, lambda rows: max(map(len, rows)) <= 10, RuntimeError(told))
    monkeypatch.setattr(service.handler.pipeline.task, "forward", forward)
    long, short = frames.predict(service, [frames.ask({"texts": TEXTS}), frames.ask({"text": "good"})])
    assert long.status == 507 and "texts[1]" in long.body.decode()
    assert short.status == 200


def test_the_deadline(home):
    service = worker.start(home, task="text-classification", deadline_seconds=0.001, warm_up=False)
    task = service.handler.pipeline.task
    encode = task.encode
    task.encode = lambda items: signal.sigtimedwait([], 0.01) or encode(items)
    status, document = frames.answer(service, {"text": "a"})
    assert status == 504 and document["error"]["type"] == "DeadlineExceeded"


def test_the_deadline_holds_between_chunks_of_texts(home, monkeypatch):
    monkeypatch.setattr(pipeline, "ENCODED", 10)
    service = worker.start(home, task="text-classification", deadline_seconds=0.5, lanes=1)
    task = service.handler.pipeline.task
    encode, called = task.encode, []
    task.encode = lambda items: called.append(len(items)) or signal.sigtimedwait([], 0.3) or encode(items)
    answers = frames.predict(service, [frames.ask({"text": "good " + "a" * size}) for size in (1, 2, 20, 3)])
    assert called == [1, 1] and {answer.status for answer in answers} == {504}
    called.clear()
    task.encode = lambda items: called.append(len(items)) or encode(items)
    answers = frames.predict(service, [frames.ask({"text": text}) for text in ("a", "good", "a " * 20, "b", "c")])
    assert called == [2, 1, 2] and {answer.status for answer in answers} == {200}


def test_the_deadline_holds_for_decoding(home):
    service = worker.start(home, task="text-classification", deadline_seconds=0.5)
    task = service.handler.pipeline.task
    decode = task.decode
    task.decode = lambda request, outputs: signal.sigtimedwait([], 0.6) or decode(request, outputs)
    first, second = frames.predict(service, [frames.ask({"text": "a"}), frames.ask({"text": "b"})])
    assert (first.status, second.status) == (200, 504)


def test_a_text_that_the_tokenizer_fails_on_costs_only_itself(services, monkeypatch):
    service = services["text-classification"]
    task = service.handler.pipeline.task
    encode = type(task).encode

    def poisoned(items):
        if any(item.text == "poison" for item in items):
            raise ValueError("poison")
        return encode(task, items)

    monkeypatch.setattr(task, "encode", poisoned)
    bad, good = frames.predict(service, [frames.ask({"text": "poison"}), frames.ask({"text": "good"})])
    assert (bad.status, good.status) == (500, 200)
    assert "poison" not in bad.body.decode()


def test_a_defect_in_a_step_answers_every_request(services, monkeypatch):
    service = services["text-classification"]
    monkeypatch.setattr(service.handler.pipeline.task, "encode", lambda items: 1 / 0)
    responses = frames.predict(service, [frames.ask({"text": "a"}), frames.ask({"text": "b"})])
    assert [response.status for response in responses] == [500, 500]
    assert "zero" not in responses[0].body.decode()


def test_explanations_are_refused_row_by_row(services):
    rows = [frames.post(b'{"text": "a"}', explain="True"), frames.ask({"text": "a"})]
    explained, predicted = frames.predict(services["text-classification"], rows)
    assert explained.status == 404 and "/predictions" in explained.body.decode()
    assert predicted.status == 200


# -- failures of the worker


@pytest.mark.parametrize(
    "error", [torch.AcceleratorError("CUDA error: device-side assert"), RuntimeError("CUDA error: x")]
)
def test_the_loss_of_the_device_ends_the_worker(services, monkeypatch, error):
    service = services["text-classification"]

    def lost(rows):
        raise error

    monkeypatch.setattr(service.handler.pipeline.task, "forward", lost)
    with pytest.raises(DeviceLost, match="the device is gone: CUDA error"):
        frames.predict(service, [frames.ask({"text": "a"})])


def test_failures_keep_what_they_do_not_know():
    with pytest.raises(RuntimeError, match="shape"), devices.failures():
        raise RuntimeError("shape mismatch")
    with pytest.raises(OutOfMemory), devices.failures():
        raise MemoryError


def test_a_worker_that_was_told_refuses(home):
    service = worker.start(home, task="text-classification")
    assert frames.answer(service, {"text": "a"})[0] == 200
    os.kill(os.getpid(), signal.SIGUSR1)
    status, document = frames.answer(service, {"text": "a"})
    assert status == 503 and document["error"]["type"] == "ShuttingDown"


# -- loading


def refused(home, **handler):
    with pytest.raises(LoadError) as caught:
        worker.start(home, **{"task": "text-classification", **handler})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_wrong_configuration(home):
    assert "did you mean max_tokens" in refused(home, max_token=3)


def test_more_tokens_than_the_model_reads(home):
    assert "at most 64" in refused(home, max_tokens=65)


def test_fewer_tokens_than_the_model_reads(home):
    service = worker.start(home, task="text-classification", max_tokens=8)
    status, document = frames.answer(service, {"text": "film " * 20, "truncation": False})
    assert status == 413 and "the limit is 8" in document["error"]["message"]


def test_no_model(tmp_path):
    assert "no model/config.json" in refused(tmp_path)


def test_remote_code(home):
    config = json.loads((home / "model" / "config.json").read_text())
    (home / "model" / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x.Y"}}))
    (home / "model" / "x.py").write_text("raise SystemExit('it was run')")
    service = worker.start(home, task="text-classification")
    assert frames.answer(service, {"text": "a"})[0] == 200  # by transformers' own class
    config = {**config, "model_type": "mine", "auto_map": {"AutoModel": "x.Y", "AutoConfig": "x.Z"}}
    (home / "model" / "config.json").write_text(json.dumps(config))
    assert "remote code" in refused(home)


def test_a_model_without_the_head_that_the_task_needs(tmp_path):
    tiny_models.encoder(tmp_path / "model")
    assert "lacks 2 weights" in refused(tmp_path)


def test_only_pickled_weights(home):
    (home / "model" / "model.safetensors").unlink()
    (home / "model" / "pytorch_model.bin").write_bytes(b"")
    assert refused(home)


def test_a_regression(tmp_path):
    tiny_models.classifier(tmp_path / "model", labels=1, problem_type="regression")
    assert "regression" in refused(tmp_path)


# -- the rest


def test_describe(services):
    request = frames.Request([], {"describe": "True"})
    [response] = frames.predict(services["text-classification"], [request])
    document = json.loads(response.body)
    assert document["task"] == "text-classification" and document["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert document["limits"]["max_tokens"] == 64 and document["limits"]["max_items"] == 32


@pytest.mark.parametrize("others", [0, 2])
def test_a_clients_describe_header_is_nothing_special(services, others):
    """BaseHandler would describe the model to the first row, and TorchServe then fail the whole batch."""
    rows = [frames.post(b'{"text": "a"}', describe="True"), *[frames.ask({"text": "a"})] * others]
    responses = frames.predict(services["text-classification"], rows)
    assert [response.status for response in responses] == [200] * (1 + others)
    assert all("prediction" in json.loads(response.body) for response in responses)


def test_a_text_without_tokens(services, monkeypatch):
    encoder = services["feature-extraction"].handler.pipeline.task.encoder
    tokenizer = encoder.loaded.tokenizer
    bare = lambda *texts, **settings: tokenizer(*texts, add_special_tokens=False, **settings)  # noqa: E731
    monkeypatch.setattr(encoder, "loaded", dataclasses.replace(encoder.loaded, tokenizer=bare))
    empty, good = frames.predict(
        services["feature-extraction"], [frames.ask({"text": ""}), frames.ask({"text": "a"})]
    )
    assert (empty.status, good.status) == (422, 200)
    assert "no tokens" in empty.body.decode()


def test_a_batchs_metrics_leave_in_one_write(services, caplog):
    class Output(io.StringIO):
        def flush(self):
            writes.append(self.getvalue())
            self.truncate(self.seek(0))

    writes: list[str] = []
    said_who = frames.post(b'{"text": "a"}', **{"X-Correlation-Id": "mine"})
    handler = logging.StreamHandler(Output())
    logging.getLogger().addHandler(handler)
    try:
        with caplog.at_level(logging.INFO):
            frames.predict(services["text-classification"], [said_who])
            logging.getLogger().info("afterwards")
    finally:
        logging.getLogger().removeHandler(handler)
    [metrics] = [written for written in writes if "Handler" in written]
    assert len(metrics.splitlines()) >= 10 and " ms: mine:200\n" in metrics
    assert writes[-1] == "afterwards\n"


def test_a_batch_whose_clients_say_who_they_are_is_one_line(services, caplog):
    named = [(b'{"text": "a"}', "first"), (b'{"text": 7}', "second"), (b'{"text": "a"}', "no name: a space")]
    asked = [frames.post(body, **{"X-Correlation-Id": name}) for body, name in named] + [frames.ask(text="a")]
    with caplog.at_level(logging.INFO):
        frames.predict(services["text-classification"], asked)
        frames.predict(services["text-classification"], [frames.ask(text="a")])
    [line] = [record.message for record in caplog.records if record.message.startswith("answered in ")]
    assert line.partition(" ms: ")[2] == "first:200 second:422 -:200 -:200"


def test_metrics_are_lines_that_the_frontend_reads(services, caplog):
    with caplog.at_level("INFO", logger="ts.metrics.caching_metric"):
        frames.predict(services["text-classification"], [frames.ask({"texts": TEXTS}), frames.ask({"text": "a"})])
    lines = [record.message.removeprefix("[METRICS]") for record in caplog.records]
    assert any(
        line.startswith("HandlerRequests.Count:2|#ModelName:tiny,Level:Model|#type:COUNTER") for line in lines
    )
    assert any(line.startswith("HandlerPaddingRatio.Count:0.") for line in lines)
    steps = {
        line.partition("#Step:")[2].partition(",")[0] for line in lines if line.startswith("HandlerStepSeconds")
    }
    assert steps == {"parse", "encode", "forward", "decode", "write"}


def test_nothing_that_a_user_sent_is_logged(services, caplog):
    with caplog.at_level("INFO"):
        frames.predict(
            services["text-classification"],
            [frames.ask({"text": "a secret"}), frames.post(b'{"text": "a secret'), frames.ask({"secret": 1})],
        )
    assert "secret" not in caplog.text


def test_cores_are_shared_among_workers(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    quota = tmp_path / "cpu.max"
    assert devices.usable_cores(quota) == 8
    quota.write_text("max 100000\n")
    assert devices.usable_cores(quota) == 8
    quota.write_text("350000 100000\n")
    assert devices.usable_cores(quota) == 3
    quota.write_text("50000 100000\n")
    assert devices.usable_cores(quota) == 1
    assert devices.share_cores(3, None) == max(1, devices.usable_cores() // 3) == torch.get_num_threads()
    assert devices.share_cores(3, 5) == 5 == torch.get_num_threads()
