"""What the server counts and measures, read from Prometheus' text format 0.0.4.

https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from client.errors import BadReply
from client.transport import Transport

PAIR = r'[a-zA-Z_]\w*\s*=\s*"(?:[^"\\]|\\.)*"'
LABELS = rf"\{{\s*(?P<labels>{PAIR}(?:\s*,\s*{PAIR})*)?\s*,?\s*\}}"  # Java's writer ends the labels with a comma
SAMPLE = re.compile(rf"(?P<name>[a-zA-Z_:][\w:]*)(?:\s*{LABELS}\s*|\s+)(?P<value>\S+)(?:\s+-?\d+)?", re.ASCII)
LABEL = re.compile(r'(?P<name>\w+)\s*=\s*"(?P<value>(?:[^"\\]|\\.)*)"', re.ASCII)
ESCAPE = re.compile(r"\\(.)")
ESCAPED = {"n": "\n", '"': '"', "\\": "\\"}


@dataclass(frozen=True)
class Sample:
    """One number of one metric."""

    name: str
    labels: Mapping[str, str]
    value: float


class MetricsClient(Transport):
    """TorchServe's metrics port."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8082",
        timeout: float = 60.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Address a server; see Transport for the arguments."""
        super().__init__(url, timeout, headers)

    def metrics(self, names: Iterable[str] = ()) -> tuple[Sample, ...]:
        """The samples of the server, in its order.

        Args:
            names: of the samples that are wanted; none means all. An unknown name has no samples.
        """
        wanted = [names] if isinstance(names, str) else list(names)
        reply = self.call("GET", "/metrics", params={"name[]": wanted}, retries=2)
        try:
            return parse(reply.text())
        except ValueError as error:
            raise BadReply(reply.url, f"answered no metrics: {error}") from error


def parse(text: str) -> tuple[Sample, ...]:
    """The samples of a text in the Prometheus format."""
    lines = (line.strip(" \t\r") for line in text.split("\n"))
    return tuple(parse_line(line) for line in lines if line and not line.startswith("#"))


def parse_line(line: str) -> Sample:
    """The sample of a line such as `requests_total{model="m"} 3.0`."""
    found = SAMPLE.fullmatch(line)
    if not found:
        raise ValueError(f"not a sample: {line!r}")
    labels = {label["name"]: unescape(label["value"]) for label in LABEL.finditer(found["labels"] or "")}
    return Sample(found["name"], labels, float(found["value"]))


def unescape(text: str) -> str:
    """A label's value as it was before it was written."""
    return ESCAPE.sub(lambda escape: ESCAPED.get(escape[1], escape[0]), text)
