"""A run's Markdown and chart, and the newest of both in benchmarks/README.md."""

from __future__ import annotations

import re
import statistics
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks import goals
from benchmarks.archive import OURS, UPSTREAM
from benchmarks.candidates.candidate import TASKS
from benchmarks.environments import Environment, Unavailable
from benchmarks.figures import Results, ratios, spread
from benchmarks.memory import HEAP
from benchmarks.turns import SHARES

CHART = Path(__file__).with_name("chart.py")
MIXED = ("mixed@1", "mixed@16", "mixed@64")


def markdown(results: Results, chart: Path | None) -> str:
    """All that stands between the markers."""
    makers = {
        "encoder": _encoder,
        "overhead": _overhead,
        "options": _options,
        "prompt": _prompt,
        "generation": _generation,
        "gateway": _gateway,
        "memory": _memory,
        "archive": _archive,
    }
    parts = makers[results.verb](results)
    picture = [f"![{results.verb}](results/{chart.name})"] if chart else []
    disturbed = results.extra.get("disturbed", [])
    warning = [f"**Others used the machine as these turns began: {'; '.join(disturbed)}.**"] if disturbed else []
    return "\n\n".join([_machine(results), *warning, *picture, *parts]) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(results: Results, folder: Path, readme: Path | None) -> list[Path]:
    """JSON, Markdown and chart, and what stands between the markers of the README; returns what was written."""
    stem = folder / f"{results.date}-{results.verb}"
    raw, text = stem.with_suffix(".json"), stem.with_suffix(".md")
    results.write(raw)
    chart = draw(raw, stem.with_suffix(".png")) if results.verb == "encoder" else None
    told = markdown(results, chart)
    text.write_text(f"# {results.verb}, {results.date}\n\n" + told.replace("](results/", "]("))
    if readme:
        readme.write_text(between_markers(readme.read_text(), results.verb, told))
    return [path for path in (raw, text, chart) if path]


def between_markers(page: str, verb: str, text: str) -> str:
    """The page with the text between the verb's markers, and nothing else changed.

    Raises:
        ValueError: the page has no such markers.
    """
    found = re.compile(f"(<!-- {verb} -->\n).*(<!-- /{verb} -->)", re.DOTALL)
    if not found.search(page):
        raise ValueError(f"there is no <!-- {verb} --> … <!-- /{verb} --> to write between")
    return found.sub(lambda match: f"{match[1]}{text}{match[2]}", page, count=1)


def draw(raw: Path, picture: Path) -> Path | None:
    """The chart, by an environment of its own; nothing where that cannot be had."""
    environment = Environment("report")
    try:
        environment.ensure()
        subprocess.run([str(environment.python), str(CHART), str(raw), str(picture)], check=True)
    except (Unavailable, subprocess.CalledProcessError, OSError) as err:
        print(f"no chart: {err}")
        return None
    return picture


def _machine(results: Results) -> str:
    machine = results.machine
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return (
        f"{results.date}, {machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB, "
        f"load {machine['load_at_start']} at the start; {machine['java']}, {machine['wrk']}, "
        f"Python {machine['python']}, {packages}; commit {machine['commit']}. Settings: "
        + ", ".join(f"{name} {value}" for name, value in results.settings.items())
        + ". Medians over the rounds, and from where to where."
    )


def _goals(outcomes: Iterable[goals.Outcome]) -> str:
    return table(["goal", "bound", "measured", ""], (outcome.row() for outcome in outcomes))


def _encoder(results: Results) -> Iterator[str]:
    yield "### Goals"
    yield _goals(goals.encoder(results))
    for task in TASKS:
        names = [one.candidate for one in results.standings if one.task == task]
        if not names:
            continue
        yield f"### {task}: texts a second"
        head = [
            "candidate",
            "1 connection",
            "16",
            "64",
            "64, over the ceiling",
            "ours over it",
            "64, short",
            "64, long",
        ]
        yield table(head, (_throughput(results, task, name) for name in names))
        yield f"### {task}: latency in ms"
        shares = [f"{share:.0%} of the knee: p50 / p95 / p99" for share in SHARES]
        head = [
            "candidate",
            "1 connection: p50 / p99",
            "64: p50 / p99",
            "knee, requests/s",
            *shares,
            "errors",
            "off by",
        ]
        yield table(head, (_latency(results, task, name) for name in names if name != "ceiling"))
    yield "### Who took part"
    yield "\n".join(_about(name, described) for name, described in results.candidates.items())


def _throughput(results: Results, task: str, name: str) -> list[str]:
    standing = results.standing(task, name)
    if standing and standing.state != "measured":
        return [name, standing.note, *[""] * 6]
    figures = {cell: results.values(task, name, cell) for cell in (*MIXED, "short@64", "long@64")}
    share = ratios(figures["mixed@64"], results.values(task, "ceiling", "mixed@64"))
    ours = ratios(results.values(task, "ours", "mixed@64"), figures["mixed@64"])
    cells = [spread(list(figures[cell].values())) for cell in MIXED]
    rest = [spread(list(figures[cell].values())) for cell in ("short@64", "long@64")]
    return [name, *cells, spread(share, 2), spread(ours, 2), *rest]


def _latency(results: Results, task: str, name: str) -> list[str]:
    standing = results.standing(task, name)
    if not standing or standing.state != "measured":
        return [name, standing.note if standing else "", *[""] * 6]

    def middles(cell: str, *percentiles: str) -> str:
        found = [list(results.values(task, name, cell, percentile).values()) for percentile in percentiles]
        return " / ".join(f"{statistics.median(values):.1f}" if values else "-" for values in found)

    errors = sum(one.load.errors for one in results.measurements if (one.task, one.candidate) == (task, name))
    shares = [middles(f"open@{share:.0%}", "p50", "p95", "p99") for share in SHARES]
    knee = f"{standing.knee:.1f}" if standing.knee else "-"
    row = [name, middles("mixed@1", "p50", "p99"), middles("mixed@64", "p50", "p99"), knee, *shares]
    return [*row, str(errors), f"{standing.difference:.1g}"]


def _about(name: str, described: dict[str, object]) -> str:
    repairs = described.get("repairs") or []
    assert isinstance(repairs, list)
    changed = "".join(f"\n  - repaired: {repair}" for repair in repairs)
    versions = described.get("versions") or {}
    assert isinstance(versions, dict)
    told = " (" + ", ".join(f"{key} {value}" for key, value in versions.items()) + ")" if versions else ""
    return f"- **{name}**: {described['about']}{told}{changed}"


def _overhead(results: Results) -> Iterator[str]:
    yield _goals(goals.overhead(results))
    cells = ("empty@1", "empty@16", "empty@64")
    stock, rows = results.values("nothing", "stock", "empty@64"), []
    for name in results.candidates:
        standing = results.standing("nothing", name)
        if standing and standing.state != "measured":
            rows.append([name, standing.note, *[""] * 4])
            continue
        found = [results.values("nothing", name, cell) for cell in cells]
        times = spread(ratios(found[-1], stock), 2)
        late = spread(list(results.values("nothing", name, "empty@64", "p99").values()))
        rows.append([name, *(spread(list(rates.values()), 0) for rates in found), times, late])
    yield table(["requests a second", "1 connection", "16", "64", "64, over stock", "64: p99 in ms"], rows)
    yield "\n".join(_about(name, described) for name, described in results.candidates.items())


def _options(results: Results) -> Iterator[str]:
    head = ["option", "texts/s, batches of 64", "over float32", "one text, ms", "loading, s"]
    for task, options in results.extra.items():
        base = dict(enumerate(next(iter(options.values()))["rates"]))
        rows = []
        for name, found in options.items():
            gain = ratios(dict(enumerate(found["rates"])), base)
            lost = (
                f"{found['cosine']:.5f} / {found['median_cosine']:.5f}"
                if "cosine" in found
                else f"{found['off']:.4f} / {found['changed']}"
            )
            singles = spread(found["singles"])
            rows.append(
                [name, spread(found["rates"]), spread(gain, 2), singles, f"{found['load_seconds']:.0f}", lost]
            )
        cosines = "cosine" in next(iter(options.values()))
        yield f"### {task}"
        yield table(
            [*head, "cosine: least / median" if cosines else "probability: most off / labels changed"], rows
        )


def _gateway(results: Results) -> Iterator[str]:
    yield _goals(goals.gateway(results))
    rows = []
    for cell in [f"{model}@{connections}" for model in ("MiniLM", "sentiment") for connections in (1, 16, 64)]:
        found = {name: results.values("text-classification", name, cell) for name in ("direct", "gateway")}
        late = [results.values("text-classification", name, cell, "p50") for name in ("direct", "gateway")]
        more = [late[1][number] - late[0][number] for number in sorted(late[0])]
        rates = [spread(list(values.values()), 0) for values in found.values()]
        rows.append([*cell.split("@"), *rates, spread(ratios(found["gateway"], found["direct"]), 2), spread(more)])
    yield table(["model", "connections", "texts/s without", "with", "ratio", "median later by, ms"], rows)
    sent = results.extra["malformed"]
    told = ", ".join(f"{count:,} got {status}" for status, count in sent["statuses"].items())
    same = "The workers were the same at the end." if sent["same_workers"] else "A worker was another at the end."
    yield f"Of {sent['requests']:,} malformed requests {told}. {same}"


def _memory(results: Results) -> Iterator[str]:
    yield _goals(goals.memory(results))
    extra = results.extra
    megabytes = {
        name: f"{extra[f'{name}_bytes'] / 1e6:.1f} MB" for name in ("settled", "end", "max", "growth", "allowed")
    }
    yield table(
        ["after the first tenth", "at the end", "most", "growth", "allowed", "slope", "unexpected answers"],
        [[*megabytes.values(), f"{extra['bytes_a_request']:.1f} bytes a request", str(extra["unexpected"])]],
    )


def _prompt(results: Results) -> Iterator[str]:
    extra = results.extra
    yield _goals(goals.prompt(results))
    seed = extra["prompts_per_second"]["seed"]
    rows = [
        [name, spread(rates, 2), spread([one / other for one, other in zip(rates, seed, strict=True)], 2)]
        for name, rates in extra["prompts_per_second"].items()
    ]
    yield table(["16 connections", "prompts/s", "over the seed"], rows)
    rows = []
    for name, found in extra["saving"].items():
        sizes = [f"{found[what] / 1e6:,.0f} MB" for what in ("bytes_read", "memory_bytes")]
        rows.append([name, *sizes, f"{found['load_seconds']:.2f}", spread(found["forward_seconds"], 2)])
    yield table(["the model", "bytes read", "memory", "s to load, files cached", "s for 512 tokens"], rows)
    large = {name: [took * 1e3 for took in extra["large"][name]] for name in ("ours", "seed")}
    yield table(
        [f"an answer of {extra['large']['bytes'] / 1e6:.1f} MB, alone", "ms to the client's tensor"],
        [[name, spread(took, 0)] for name, took in large.items()],
    )
    flight = extra["in_flight"]
    rows = [
        [name, f"{flight[name]['rest'] / 1e6:,.0f}", spread([most / 1e6 for most in flight[name]["most"]], 0)]
        for name in ("worker", "server")
    ]
    yield table([f"MB, {flight['at_once']} such answers in flight", "at rest", "at most"], rows)
    exact = extra["exactness"]
    yield (
        f"In bfloat16 the least cosine of one token is {exact['bfloat16_token']:.6f} with padding filled in and "
        f"{exact['bfloat16_computed']:.6f} with padding computed. Diffusers itself, in bfloat16, is at "
        f"{exact['diffusers_bfloat16']:.6f} from its own float32."
    )
    yield "\n".join(_about(name, described) for name, described in results.candidates.items())


def _generation(results: Results) -> Iterator[str]:
    extra = results.extra
    yield _goals(goals.generation(results))
    rows = [
        [name, spread(found["rates"], 0), spread([1e3 * first for first in found["first"]], 0)]
        for name, found in extra["streams"].items()
    ]
    yield table(["16 streams", "tokens/s", "ms to the first text, median"], rows)
    yield table(
        ["16 connections, whole answers", "tokens/s"],
        [[name, spread(rates, 0)] for name, rates in extra["answers"].items()],
    )
    rows = []
    for name, found in extra["leaks"].items():
        for process, samples in found["samples"].items():
            held = [f"{samples[at] / 1e6:,.0f}" for at in (0, len(samples) // 2, -1)]
            rows.append([f"{name}: {process}", *held])
        if HEAP not in found["samples"]:
            rows.append([f"{name}: {HEAP}", *["not looked at"] * 3])
    streams = next(iter(extra["leaks"].values()))["streams"]
    yield table([f"MB over {streams:,} streams", "after a twentieth", "half", "all"], rows)
    yield "\n".join(_about(name, described) for name, described in results.candidates.items())


def _archive(results: Results) -> Iterator[str]:
    seconds = results.extra["seconds"]
    times = spread([slow / fast for slow, fast in zip(seconds[UPSTREAM], seconds[OURS], strict=True)])
    rows = [[name, spread(took, 2)] for name, took in seconds.items()]
    yield table([f"seconds for {results.extra['megabytes']} MB of weights", ""], [*rows, ["times as fast", times]])
