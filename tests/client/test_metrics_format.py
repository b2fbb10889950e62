"""Prometheus' text format, read back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client import Sample
from client.metrics import parse, parse_line

WRITTEN = """\
# HELP ts_inference_requests_total Torchserve prometheus counter metric with unit: Count
# TYPE ts_inference_requests_total counter
ts_inference_requests_total{model_name="echo",model_version="default",hostname="vm",} 3.0

up 1
latency_bucket{le="+Inf"} 7 1700000000000
spaced { a = "1" , b = "2" }\t1e-3
escaped{path="C:\\\\new \\"dir\\"\\n{,}="} -0.5
"""


def test_parse_reads_what_torchserve_and_others_write() -> None:
    labels = {"model_name": "echo", "model_version": "default", "hostname": "vm"}
    assert parse(WRITTEN) == (
        Sample("ts_inference_requests_total", labels, 3.0),
        Sample("up", {}, 1.0),
        Sample("latency_bucket", {"le": "+Inf"}, 7.0),
        Sample("spaced", {"a": "1", "b": "2"}, 0.001),
        Sample("escaped", {"path": 'C:\\new "dir"\n{,}='}, -0.5),
    )
    assert parse("") == ()


def test_values_that_are_no_plain_numbers() -> None:
    assert parse_line("a +Inf").value == math.inf
    assert parse_line("a{} -Inf").value == -math.inf
    assert math.isnan(parse_line("a NaN").value)


@pytest.mark.parametrize(
    "line", ["a", "a{}", "1a 1", 'a{b="1} 2', 'a{b="1""} 2', "a b", "a 1 2 3", '{a="b"} 1', "a1"]
)
def test_what_is_no_sample_is_refused(line: str) -> None:
    with pytest.raises(ValueError):
        parse(line)


NAMES = st.from_regex(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,9}", fullmatch=True)
LABELS = st.dictionaries(st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,9}", fullmatch=True), st.text())


@given(NAMES, LABELS, st.floats(allow_nan=False))
def test_parse_undoes_write(name: str, labels: dict[str, str], value: float) -> None:
    assert parse(f"{write(name, labels)} {value!r}\n") == (Sample(name, labels, value),)


def write(name: str, labels: dict[str, str]) -> str:
    """A sample's name and labels as the format's rules have them."""
    escaped = {
        label: value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        for label, value in labels.items()
    }
    return name + "{" + ",".join(f'{label}="{value}"' for label, value in escaped.items()) + "}"
