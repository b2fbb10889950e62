"""The clients against a real TorchServe: what it does, and what they make of it."""

from __future__ import annotations

import psutil  # type: ignore[import-untyped, unused-ignore]
import pytest

from client import BadReply, InferenceClient, ManagementClient, MetricsClient, NotReady, Refused
from tests.support.torchserve import TorchServe


def test_predict_sends_what_it_is_given(inference: InferenceClient) -> None:
    assert inference.predict("echo", "hi")["body"] == {"text": "hi"}
    assert inference.predict("echo", ["a", "日本"])["body"] == {"texts": ["a", "日本"]}
    assert inference.predict("echo", {"inputs": [1]})["body"] == {"inputs": [1]}
    assert inference.predict("echo", "hi", top_k=3)["body"] == {"text": "hi", "top_k": 3}


def test_predict_asks_the_version(inference: InferenceClient) -> None:
    assert inference.predict("echo", "hi")["version"] == "1.0"
    assert inference.predict("echo", "hi", version="2.0")["version"] == "2.0"


def test_the_handlers_refusal_keeps_its_words(inference: InferenceClient) -> None:
    with pytest.raises(Refused) as caught:
        inference.predict("echo", {"refuse": 422})
    error = caught.value
    assert (error.status, error.type, error.message) == (
        422,
        "InvalidRequest",
        "'text' is too long: 600 > 512",
    )
    assert f"{inference.url}/predictions/echo answered 422" in str(error)


@pytest.mark.parametrize(
    ("name", "version", "type"),
    [("nobody", None, "ModelNotFoundException"), ("echo", "9", "ModelVersionNotFoundException")],
)
def test_an_unknown_model_is_refused(
    inference: InferenceClient, name: str, version: str | None, type: str
) -> None:
    with pytest.raises(Refused) as caught:
        inference.predict(name, "hi", version)
    assert (caught.value.status, caught.value.type) == (404, type)


def test_a_refusal_does_not_spoil_the_connection(inference: InferenceClient) -> None:
    for _ in range(20):  # TorchServe resets the connection after each refusal
        with pytest.raises(Refused):
            inference.predict("echo", {"refuse": 400})
        assert inference.predict("echo", "hi")["body"] == {"text": "hi"}


def test_a_request_over_the_servers_limit_is_explained(inference: InferenceClient) -> None:
    with pytest.raises(Refused, match="max_request_size") as caught:
        inference.predict("echo", "x" * 7_000_000)
    assert caught.value.status == 413


def test_a_worker_that_dies_is_explained_and_comes_back(
    inference: InferenceClient, management: ManagementClient
) -> None:
    with pytest.raises(Refused, match=r"Worker died.*server's log"):
        inference.predict("echo", {"die": True})
    management.ready("echo")
    assert inference.predict("echo", "hi")["body"] == {"text": "hi"}


def test_an_answer_that_is_no_json_is_a_bad_reply(inference: InferenceClient) -> None:
    with pytest.raises(BadReply, match="no JSON: 'plain words'"):
        inference.predict("echo", {"plain": "plain words"})


def test_ping_is_true_even_of_a_model_without_workers(
    inference: InferenceClient, management: ManagementClient
) -> None:
    management.register("echo.mar", "idle", initial_workers=0)
    assert inference.ping()
    with pytest.raises(NotReady, match="no workers"):
        management.ready("idle")


def test_names_reads_every_page(management: ManagementClient) -> None:
    made = [f"page-{number:03}" for number in range(105)]  # a page holds 100
    for name in made:
        management.register("echo.mar", name, initial_workers=0)
    assert management.names() == ("echo", *made)


def test_models_and_describe(management: ManagementClient) -> None:
    assert [(model.name, model.version) for model in management.models()] == [
        ("echo", "1.0"),
        ("echo", "2.0"),
    ]
    model = management.describe("echo", "2.0")
    assert (model.url, model.batch_size, model.min_workers, model.max_workers) == ("echo2.mar", 1, 1, 1)
    assert [worker.status for worker in model.workers] == ["READY"]
    assert model.workers[0].pid > 0
    assert (model.pending, model.room) == (0, 100)
    with pytest.raises(Refused, match="Model version: 9 does not exist"):
        management.describe("echo", "9")


def test_ready_waits_for_the_workers_and_tells(server: TorchServe, management: ManagementClient) -> None:
    management.register("gated.mar", initial_workers=0)
    management.scale("gated", 2, wait=False)
    told: list[tuple[int, int]] = []
    with pytest.raises(NotReady, match="0 of 2 workers ready") as caught:
        management.ready("gated", timeout=0, progress=lambda *step: told.append(step))
    assert (caught.value.ready, caught.value.wanted, told) == (0, 2, [(0, 2)])
    (server.temp / "gate").touch()
    assert management.ready("gated", progress=lambda *step: told.append(step)).ready == 2
    assert told[-1] == (2, 2)
    with pytest.raises(NotReady, match="2 of 3 workers ready"):
        management.ready("gated", workers=3, timeout=0)


def test_ready_does_not_wait_for_an_unknown_model(management: ManagementClient) -> None:
    with pytest.raises(Refused, match="Model not found: nobody"):
        management.ready("nobody")


def test_scale_up_and_down(management: ManagementClient) -> None:
    told: list[tuple[int, int]] = []
    # its model-config.yaml says maxWorkers: 2, which TorchServe does not hold to
    management.register("settled.mar")
    model = management.scale("settled", 3, 4, progress=lambda *step: told.append(step))
    assert (model.ready, model.min_workers, model.max_workers) == (3, 3, 4)
    assert told[-1] == (3, 3)
    assert management.scale("settled", 1, 2).ready == 2  # only what is above the maximum ends
    assert management.scale("settled", 1).ready == 1


def test_scale_to_nothing_and_back(inference: InferenceClient, management: ManagementClient) -> None:
    worker = psutil.Process(management.register("settled.mar").workers[0].pid)
    assert management.scale("settled", 0).workers == ()
    assert psutil.wait_procs([worker], timeout=60)[1] == []
    with pytest.raises(Refused, match=r"has no worker.*queue is full") as caught:
        inference.predict("settled", "hi")
    assert caught.value.status == 503
    management.scale("settled", 1)
    assert inference.predict("settled", "hi")["body"] == {"text": "hi"}


@pytest.mark.parametrize(("least", "most"), [(-1, None), (2, 1), (0, 2)])
def test_scale_keeps_from_the_server_what_it_mishandles(
    management: ManagementClient, least: int, most: int | None
) -> None:
    # -1 answers 500 and ends all workers; 0 with a maximum leaves a worker running that nothing can end
    before = management.describe("echo")
    with pytest.raises(ValueError, match="worker"):
        management.scale("echo", least, most)
    assert management.describe("echo") == before


def test_register_returns_what_the_archive_made_of_it(management: ManagementClient) -> None:
    model = management.register("settled.mar", initial_workers=2, batch_size=7, response_timeout=9)
    assert (model.name, model.version, model.batch_size) == ("settled", "1.0", 7)
    assert (model.ready, model.max_batch_delay, model.response_timeout) == (1, 1, 30)


def test_a_model_that_does_not_load_is_not_kept(management: ManagementClient) -> None:
    for _ in range(2):  # TorchServe alone would keep it without workers, and answer 409 the second time
        with pytest.raises(Refused, match="could not be loaded") as caught:
            management.register("broken.mar")
        assert caught.value.status == 500
        assert "broken" not in management.names()


@pytest.mark.parametrize(
    ("archive", "status", "words"),
    [
        ("none.mar", 404, "Model not found at: none.mar"),
        ("echo.mar", 409, "unregister it first"),
        ("http://127.0.0.1/echo.mar", 404, "allowed_urls"),
        ("file:///none.mar", 400, "Failed to download"),
        ("STORE/echo.mar", 500, "register it by its name"),
    ],
)
def test_register_explains_a_refusal(
    store: object, management: ManagementClient, archive: str, status: int, words: str
) -> None:
    with pytest.raises(Refused, match=words) as caught:
        management.register(archive.replace("STORE", f"file://{store}"))
    assert caught.value.status == status


def test_the_default_version_is_the_last_to_go(inference: InferenceClient, management: ManagementClient) -> None:
    management.register("echo.mar", "pair", initial_workers=0)
    management.register("echo2.mar", "pair")
    with pytest.raises(Refused, match="make another version the default first") as caught:
        management.unregister("pair")
    assert caught.value.status == 403
    management.set_default("pair", "2.0")
    assert inference.predict("pair", "hi")["version"] == "2.0"
    management.unregister("pair", "1.0")
    management.unregister("pair")
    assert "pair" not in management.names()
    with pytest.raises(Refused, match="Model not found"):
        management.unregister("pair")
    with pytest.raises(Refused, match="Model not found"):
        management.set_default("pair", "1.0")


def test_metrics_count_requests(server: TorchServe, inference: InferenceClient) -> None:
    name = "ts_inference_requests_total"

    def counted() -> float:
        with MetricsClient(server.metrics_url) as metrics:
            found = metrics.metrics([name])
            assert {sample.name for sample in found} <= {name}
            return sum(sample.value for sample in found if sample.labels["model_name"] == "echo")

    before = counted()
    inference.predict("echo", "hi")
    inference.predict("echo", "hi")
    assert counted() == before + 2
    with MetricsClient(server.metrics_url) as metrics:
        assert metrics.metrics(["nobody"]) == ()
        assert len({sample.name for sample in metrics.metrics()}) > 1
