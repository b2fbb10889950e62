"""What can go wrong between here and TorchServe.

    ClientError
    ├── NotReachable    no answer: no connection, a connection that broke, or none in time
    ├── Refused         the server answered with a status of 400 or more
    ├── NotReady        waited in vain for workers
    └── BadReply        an answer that is not what the API promises

A wrong argument that no server needs to see is Python's own ValueError or TypeError.
"""

from __future__ import annotations


class ClientError(Exception):
    """Base of all errors of this package."""


class NotReachable(ClientError):
    """No answer came.

    Attributes:
        url: what was asked.
        sent: whether the request may have reached the server; False means that it is safe to ask again.
        timed_out: whether it was waiting that ended it, not a broken connection.
    """

    def __init__(self, url: str, reason: str, *, sent: bool, timed_out: bool = False) -> None:
        """Say which URL gave no answer, and why."""
        super().__init__(f"{url} {reason}")
        self.url = url
        self.sent = sent
        self.timed_out = timed_out


class Refused(ClientError):
    """The server answered, and the answer is no.

    Attributes:
        url: what was asked.
        status: the HTTP status, 400 or more.
        type: the server's name for the error, or HTTP's own phrase where it gave none.
        message: what the server said, or "".
        hint: what that means where the server's words do not say it, or "".
    """

    def __init__(self, url: str, status: int, type: str, message: str, hint: str = "") -> None:
        """Keep what the server said, and where."""
        said = f"{type}: {message}" if type and message else type or message or "no reason given"
        super().__init__(f"{url} answered {status} {said}" + (f" ({hint})" if hint else ""))
        self.url = url
        self.status = status
        self.type = type
        self.message = message
        self.hint = hint


class NotReady(ClientError):
    """The workers that were waited for are not there.

    Attributes:
        ready: how many workers of the model are ready.
        wanted: how many there should be.
    """

    def __init__(self, message: str, *, ready: int, wanted: int) -> None:
        """Say what was waited for."""
        super().__init__(message)
        self.ready = ready
        self.wanted = wanted


class BadReply(ClientError):
    """The server answered with something that its API does not promise.

    Attributes:
        url: what was asked.
    """

    def __init__(self, url: str, reason: str) -> None:
        """Say which URL answered, and what is wrong with the answer."""
        super().__init__(f"{url} {reason}")
        self.url = url
