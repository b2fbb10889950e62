"""HTTP to one of TorchServe's three ports, and when a call may be sent again.

TorchServe closes the connection after every status of 400 or more, and with a reset. It says so in the
answer, and urllib3 looks at an idle connection before it uses it, so a later call hardly ever meets a
closed one. For when it does, and for a server that ends: a call that never left, because no connection
could be made, is tried again whatever it is. A call that was sent and got no answer may have been carried
out, so it is sent again only where the caller says that this is harmless. A time-out is never tried again:
the time was the caller's limit.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import requests
from urllib3.exceptions import HTTPError, NewConnectionError, ReadTimeoutError

from client.errors import BadReply, NotReachable
from client.replies import Reply

CONNECT_RETRIES = 2  # of a call that could not be sent
CONNECT_TIMEOUT = 5.0  # seconds
FIRST_PAUSE = 0.1  # seconds before the first retry; doubled before each further one


class Transport:
    """Base of the clients: one server's address, and its pool of connections."""

    def __init__(self, url: str, timeout: float, headers: Mapping[str, str] | None = None) -> None:
        """Connect lazily; nothing is sent yet.

        Args:
            url: where the server is, such as http://127.0.0.1:8080.
            timeout: the most seconds to wait for the next bytes of an answer.
            headers: sent with every call, such as Authorization for a server with tokens.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError(f"{url!r} is no URL of a server; one is http://127.0.0.1:8080")
        self.url = url.rstrip("/")
        self.timeout = timeout
        self._session = requests.Session()
        self._session.headers.update(headers or {})
        self._session.trust_env = not is_loopback(parts.hostname)  # no proxy leads to this machine

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def __enter__(self) -> Self:
        """Return the client itself; leaving the block closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, object] | None = None,
        document: object = None,
        accept: str | None = None,
        retries: int = 0,
        timeout: float | None = None,
    ) -> Reply:
        """Send one call and read its whole answer.

        Args:
            method: the HTTP method.
            path: the quoted path, beginning with a slash.
            params: the query; what is None is left out.
            document: the body, sent as JSON; None sends none.
            accept: the media type that is wanted; None takes any.
            retries: how often the call may be sent again after the connection broke without an answer.
            timeout: seconds, in place of the client's own.

        Raises:
            NotReachable: no answer came.
            Refused: the status is 400 or more.
            BadReply: the status is below 200 or a redirect.
        """
        left = {False: CONNECT_RETRIES, True: retries}  # by whether the request was sent
        pause = FIRST_PAUSE
        while True:
            try:
                reply = self._send(
                    method, path, params, document=document, accept=accept, timeout=timeout or self.timeout
                )
                break
            except NotReachable as error:
                if error.timed_out or left[error.sent] < 1:
                    raise
                left[error.sent] -= 1
            time.sleep(pause)
            pause *= 2
        if reply.status >= 400:
            raise reply.refusal()
        if not 200 <= reply.status < 300:
            raise BadReply(reply.url, f"answered {reply.status} {reply.phrase}, which this API never does")
        return reply

    def _send(
        self,
        method: str,
        path: str,
        params: Mapping[str, object] | None,
        *,
        document: object,
        accept: str | None,
        timeout: float,
    ) -> Reply:
        query: Any = {name: value for name, value in (params or {}).items() if value is not None}
        body, headers = None, {"Accept": accept} if accept else {}
        if document is not None:
            body = json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
            headers["Content-Type"] = "application/json"
        url = self.url + path
        try:
            with self._session.request(
                method,
                url,
                params=query,
                data=body,
                headers=headers,
                timeout=(min(CONNECT_TIMEOUT, timeout), timeout),
                allow_redirects=False,
                stream=True,
            ) as response:
                return Reply(url, response.status_code, response.reason or "", content(response))
        except requests.RequestException as error:
            if isinstance(error, ValueError):  # an address or a header that nothing could be sent with
                raise
            raise not_reachable(url, timeout, error) from error


def content(response: requests.Response) -> bytes:
    """The body; of a refusal only what came, since the reset behind it may cut it short."""
    try:
        return response.content
    except requests.RequestException:
        if response.status_code >= 400:
            return b""
        raise


def not_reachable(url: str, timeout: float, error: requests.RequestException) -> NotReachable:
    """The error that says why no answer came, and whether the request may have arrived."""
    cause = error.args[0] if error.args else None
    reason = getattr(cause, "reason", None) or cause  # urllib3 wraps the first in MaxRetryError
    if isinstance(error, requests.ConnectTimeout):
        return NotReachable(url, "is not there: no connection in time", sent=False, timed_out=True)
    if isinstance(error, requests.ReadTimeout) or isinstance(reason, ReadTimeoutError):
        return NotReachable(url, f"gave no answer within {timeout:g} s", sent=True, timed_out=True)
    if isinstance(reason, NewConnectionError):
        return NotReachable(url, f"is not there: {last_words(reason)}", sent=False)
    said = last_words(reason) if isinstance(reason, HTTPError) else error
    return NotReachable(url, f"broke the connection without an answer: {said}", sent=True)


def last_words(error: HTTPError) -> str:
    """The system's own words at the end of one of urllib3's messages: "Connection refused"."""
    return re.sub(r"^.*\[Errno -?\d+\] ", "", str(error)).rstrip("')")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its name or address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def segment(kind: str, text: str) -> str:
    """A name or version as one segment of a path.

    TorchServe splits a path after decoding it, so a quoted slash would still begin another segment.
    """
    if not text or "/" in text or text in (".", ".."):
        raise ValueError(f"{text!r} cannot be a model's {kind}")
    return quote(text, safe="")
