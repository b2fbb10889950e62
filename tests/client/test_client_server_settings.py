"""The clients against servers that are set up otherwise, and against one that goes away."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]
import pytest

from client import InferenceClient, ManagementClient, MetricsClient, NotReachable, Refused
from tests.support.torchserve import ServerFailed, TorchServe


def test_a_server_without_model_api_and_metrics(store: Path) -> None:
    with TorchServe(store, ["echo.mar"], {"enable_model_api": "false", "metrics_mode": "log"}) as server:
        management = ManagementClient(server.management_url)
        with pytest.raises(Refused, match="enable_model_api=true") as caught:
            management.register("echo2.mar")
        assert caught.value.status == 405
        with pytest.raises(Refused, match="enable_model_api=true"):
            management.unregister("echo")
        assert management.scale("echo", 2).ready == 2
        assert MetricsClient(server.metrics_url).metrics() == ()


def test_a_server_that_goes_away(store: Path) -> None:
    with TorchServe(store, ["echo.mar"]) as server, ThreadPoolExecutor(1) as threads:
        inference = InferenceClient(server.inference_url)
        answer = threads.submit(inference.predict, "echo", {"wait": "for ever"})
        while not (server.temp / "waiting").exists() and not answer.done():
            time.sleep(0.01)
        family = server.processes()
        server.stop()
        with pytest.raises(NotReachable, match="broke the connection") as caught:
            answer.result()
        assert caught.value.sent
    assert len(family) == 3  # the launcher, Java and a worker
    assert not any(process.is_running() for process in family)
    assert not server.temp.exists()
    with pytest.raises(NotReachable, match="Connection refused") as caught:
        inference.predict("echo", "hi")
    assert not caught.value.sent


def test_the_starter_shows_why_a_server_did_not_come_up(store: Path) -> None:
    server = TorchServe(store, ["none.mar"])
    with pytest.raises(ServerFailed, match=r"(?s)of \['none.mar'\] only \[\].*Failed to load model"), server:
        pass
    assert server.processes() == []


def test_the_starter_leaves_nothing_of_a_start_that_is_broken_off(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    server = TorchServe(store, ["echo.mar"])
    monkeypatch.setattr(server, "_wait_ready", interrupt)
    with pytest.raises(KeyboardInterrupt), server:
        pass
    commands = psutil.process_iter(["cmdline"])
    assert not [found for found in commands if str(server.temp) in " ".join(found.info["cmdline"] or [])]
    assert not server.temp.exists()
