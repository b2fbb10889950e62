"""Everything that can go wrong, and the HTTP status that it gets.

HandlerError
├── ClientFault                what the client can mend
│   ├── BadRequest             400  the body is not what the content type says, or there is none
│   ├── NotOffered             404  the model does not do this
│   ├── NotAcceptable          406  nothing that the client would read can be written
│   ├── TooLarge               413  longer than a limit, which the message names
│   ├── UnsupportedMediaType   415  a content type or encoding that is not read
│   └── InvalidRequest         422  a field is missing, unknown or of the wrong kind
└── ServerFault                what it cannot
    ├── InternalError          500  a defect of ours; its cause is in the log, never in the answer
    ├── NonFiniteOutput        500  the model answered NaN or infinity
    ├── ShuttingDown           503  the worker has been told to refuse what comes
    ├── DeadlineExceeded       504  the batch took longer than the wall clock allows
    └── OutOfMemory            507  not even this one input fits on the device

LoadError                      the model cannot be served; one line says why (a RuntimeError, because
                               only that becomes a load answer: ts/model_service_worker.py:147)
DeviceLost                     the worker cannot go on; TorchServe starts another (a SystemExit)
"""

from __future__ import annotations

MAX_MESSAGE = 600  # characters; an error body stays under 1 KB, JSON escapes included


def shortened(message: str) -> str:
    """A message of bounded length."""
    return message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…"


class HandlerError(Exception):
    """One request's failure: it takes that request's slot, and no other's."""

    status = 500

    def __init__(self, message: str) -> None:
        super().__init__(shortened(message))

    @property
    def type(self) -> str:
        """The name that clients see."""
        return type(self).__name__


class ClientFault(HandlerError):
    """The client can mend it."""

    status = 400


class BadRequest(ClientFault):
    """The body cannot be read."""


class NotOffered(ClientFault):
    """The model does not do this."""

    status = 404


class NotAcceptable(ClientFault):
    """Nothing that the client would read can be written."""

    status = 406


class TooLarge(ClientFault):
    """Longer than a limit."""

    status = 413


class UnsupportedMediaType(ClientFault):
    """A content type, character set or encoding that is not read."""

    status = 415


class InvalidRequest(ClientFault):
    """A field is missing, unknown or of the wrong kind."""

    status = 422


class ServerFault(HandlerError):
    """The client cannot mend it."""


class InternalError(ServerFault):
    """A defect of ours."""

    def __init__(self, message: str = "the request could not be answered") -> None:
        super().__init__(message)


class NonFiniteOutput(ServerFault):
    """The model answered NaN or infinity."""


class ShuttingDown(ServerFault):
    """The worker has been told to refuse what comes."""

    status = 503


class DeadlineExceeded(ServerFault):
    """The batch took longer than the wall clock allows."""

    status = 504


class OutOfMemory(ServerFault):
    """Not even this one input fits on the device."""

    status = 507


class LoadError(RuntimeError):
    """The model cannot be served."""


class DeviceLost(SystemExit):
    """The device is gone: the worker ends, so that TorchServe starts another."""
