"""What the commands do: ask a client, print the answer."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from client.inference import InferenceClient
from client.management import ManagementClient
from client.metrics import MetricsClient
from client.models import Model
from client.progress import Meter

ANSWER = 60.0  # seconds to wait for an answer
WORKERS = 300.0  # seconds to wait for workers


def predict(args: Namespace) -> None:
    """Ask a model."""
    parameters = dict(args.param)
    document = {**asked(args)}
    twice = document.keys() & parameters.keys()
    if twice:
        raise ValueError(f"--param repeats a field of the request: {', '.join(sorted(twice))}")
    with InferenceClient(address(args, "inference"), args.timeout or ANSWER) as client:
        show(client.predict(args.name, {**document, **parameters}, args.version, retries=args.retries))


def verify(args: Namespace) -> None:
    """Hold an encoder of prompts against the model itself."""
    from client.verify import PROMPTS, verify  # noqa: PLC0415  torch, where it is needed

    prompts = lines(read(str(args.prompts))) if args.prompts else PROMPTS
    with InferenceClient(address(args, "inference"), args.timeout or ANSWER) as client, management(args) as about:
        print(verify(client, about, args.name, args.model, prompts))


def ready(args: Namespace) -> None:
    """Wait for a model's workers."""
    with management(args) as client, Meter(args.name) as meter:
        model = client.ready(
            args.name, args.version, workers=args.workers, timeout=args.timeout or WORKERS, progress=meter
        )
    show(asdict(model))


def models(args: Namespace) -> None:
    """List the models."""
    with management(args) as client:
        found = client.models()
    if args.json:
        show([asdict(model) for model in found])
    else:
        print(table(found))


def scale(args: Namespace) -> None:
    """Change the number of workers."""
    with management(args) as client, Meter(args.name) as meter:
        model = client.scale(
            args.name,
            args.min_worker,
            args.max_worker,
            args.version,
            wait=not args.no_wait,
            timeout=args.timeout or WORKERS,
            progress=meter,
        )
    show(asdict(model))


def register(args: Namespace) -> None:
    """Register an archive."""
    with management(args) as client:
        model = client.register(
            args.archive,
            args.name,
            initial_workers=args.initial_workers,
            batch_size=args.batch_size,
            max_batch_delay=args.max_batch_delay,
            response_timeout=args.response_timeout,
            startup_timeout=args.startup_timeout,
            timeout=args.timeout or WORKERS,
        )
    for name in ("batch_size", "max_batch_delay", "response_timeout"):
        asked_for = getattr(args, name)
        if asked_for not in (None, getattr(model, name)):
            note(f"{name} is {getattr(model, name)}, not {asked_for}: the archive's model-config.yaml wins")
    show(asdict(model))


def unregister(args: Namespace) -> None:
    """Take a model off the server."""
    with management(args) as client:
        client.unregister(args.name, args.version)
    show({"unregistered": args.name, "version": args.version})


def set_default(args: Namespace) -> None:
    """Choose the version that answers."""
    with management(args) as client:
        client.set_default(args.name, args.version)
    show({"name": args.name, "default": args.version})


def metrics(args: Namespace) -> None:
    """Print metrics."""
    with MetricsClient(address(args, "metrics"), args.timeout or ANSWER) as client:
        found = client.metrics(args.names)
    if not found:
        note("no samples: nothing is counted under these names yet, or metrics_mode is not prometheus")
    show([asdict(sample) for sample in found])


def asked(args: Namespace) -> Mapping[str, Any]:
    """The request: of texts, of a JSON object or of a file's lines, but of one of them."""
    given = [args.texts, args.json is not None, args.file is not None]
    if sum(map(bool, given)) != 1:
        raise ValueError("give either TEXT, or --json, or --file")
    if args.file is not None:
        texts = [line for line in lines(read(args.file)) if line.strip()]
        if not texts:
            raise ValueError(f"no text in {args.file}")
        return {"texts": texts}
    if args.json is None:
        return {"text": args.texts[0]} if len(args.texts) == 1 else {"texts": args.texts}
    source = read(args.json[1:]) if args.json.startswith("@") else args.json
    try:
        document = json.loads(source)
    except ValueError as error:
        raise ValueError(f"--json is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ValueError("--json must be an object")
    return document


def read(path: str) -> str:
    """A file's text; - is standard input."""
    return (sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()).decode("utf-8-sig")


def lines(text: str) -> list[str]:
    """What stands between line feeds: `splitlines` would also cut a text at U+2028 or a form feed."""
    found = [line.removesuffix("\r") for line in text.split("\n")]
    return found if found[-1] else found[:-1]


def management(args: Namespace) -> ManagementClient:
    """The management port's client."""
    return ManagementClient(address(args, "management"), args.timeout or ANSWER)


def address(args: Namespace, port: str) -> str:
    """Where one of the three ports is."""
    offset = ("inference", "management", "metrics").index(port)
    base = 8080 if args.port_base is None else args.port_base
    return getattr(args, f"{port}_url") or f"http://127.0.0.1:{base + offset}"


def table(found: Sequence[Model]) -> str:
    """Models, one a line, in columns."""
    rows: list[tuple[str, ...]] = [
        ("NAME", "VERSION", "READY", "MIN", "MAX", "BATCH", "DELAY MS", "PENDING", "ARCHIVE")
    ]
    for model in found:
        pending = "" if model.pending is None else str(model.pending)
        numbers = (model.ready, model.min_workers, model.max_workers, model.batch_size, model.max_batch_delay)
        rows.append((model.name, model.version, *map(str, numbers), pending, model.url))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def show(document: Any) -> None:
    """Print an answer."""
    print(json.dumps(document, ensure_ascii=False, indent=2))


def note(text: str) -> None:
    """Say something beside the answer."""
    print(text, file=sys.stderr)
