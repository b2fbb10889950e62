"""An answer of the server, and what it says: a JSON document, or the reason of a refusal."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from client.errors import BadReply, Refused

LONGEST = 500  # of a server's plain text in an error message

# What TorchServe's own words do not say: status, a part of its type and message, what it means.
HINTS = (
    (405, "MethodNotAllowed", "the server's model API is off: enable_model_api=true turns it on"),
    (503, "has no worker", "TorchServe says the same when the model's queue is full"),
    (400, "InvalidKey", "token authorization is on: send the token in the header Authorization: Bearer ..."),
    (403, "Cannot remove default version", "make another version the default first"),
    (404, "does not match any allowed URL", "allowed_urls in config.properties says what may be registered"),
    (409, "already registered", "unregister it first, or give the archive another version"),
    (413, "Request Entity Too Large", "the request is larger than the server's max_request_size"),
    (500, "Worker died", "the worker ended or took longer than responseTimeout; the server's log says why"),
    (500, "Failed to start workers", "the model could not be loaded; the server's log says why"),
    (
        500,
        "Model file already exists",
        "the model store has a file of that name: register it by its name, not its URL",
    ),
)


@dataclass(frozen=True)
class Reply:
    """One HTTP answer, read whole."""

    url: str
    status: int
    phrase: str
    body: bytes

    def text(self) -> str:
        """The body as text; what is not UTF-8 is replaced."""
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body as a JSON document."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise BadReply(self.url, f"answered no JSON: {shorten(self.text())!r}") from error

    def field(self, name: str, kind: type) -> Any:
        """A field of the JSON object that the body is."""
        document = self.json()
        if not isinstance(document, dict) or not isinstance(document.get(name), kind):
            raise BadReply(self.url, f"answered without {name!r}: {shorten(self.text())!r}")
        return document[name]

    def refusal(self) -> Refused:
        """The error that an answer of 400 or more is."""
        kind, message = reason(self.body)
        kind = kind or self.phrase
        said = f"{kind} {message}"
        hint = next((hint for status, part, hint in HINTS if status == self.status and part in said), "")
        return Refused(self.url, self.status, kind, message, hint)


def reason(body: bytes) -> tuple[str, str]:
    """The type and the message in a refusal: our handler's, TorchServe's own, KServe's, or plain text."""
    try:
        document = json.loads(body)
    except ValueError:
        return "", shorten(body.decode("utf-8", "replace"))
    if isinstance(document, dict):
        error = document.get("error", document)
        if isinstance(error, str):
            return "", error
        if isinstance(error, dict):
            message = error.get("message") or error.get("status")
            if isinstance(message, str):
                return str(error.get("type") or ""), message
    return "", shorten(json.dumps(document, ensure_ascii=False))


def shorten(text: str) -> str:
    """Text on one line, cut where an error message would become unreadable."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else line[:LONGEST] + "..."
