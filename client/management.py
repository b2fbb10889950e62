"""Models: list, describe, register, scale, unregister, and wait until they are ready."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from client.errors import BadReply, Refused
from client.models import Model
from client.transport import Transport, segment
from client.waiting import Progress, wait_for

REGISTERED = re.compile(r'Model "(?P<name>.+)" Version: (?P<version>.+) registered with')
NOT_STARTED = re.compile(r"Failed to start workers for model (?P<name>.+) version: (?P<version>.+)")


class ManagementClient(Transport):
    """TorchServe's management port."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8081",
        timeout: float = 60.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Address a server; see Transport for the arguments."""
        super().__init__(url, timeout, headers)

    def names(self) -> tuple[str, ...]:
        """The names of all models, sorted."""
        return tuple(self._names())

    def models(self) -> tuple[Model, ...]:
        """Every version of every model."""
        found: list[Model] = []
        for name in self.names():
            try:
                found += self.versions(name)
            except Refused as error:
                if error.status != 404:  # unregistered since it was listed
                    raise
        return tuple(found)

    def versions(self, name: str) -> tuple[Model, ...]:
        """Every version of a model."""
        return self._described(f"{path(name)}/all")

    def describe(self, name: str, version: str | None = None) -> Model:
        """One version of a model; None is its default version."""
        where = path(name, version)
        found = self._described(where)
        if len(found) != 1:
            raise BadReply(self.url + where, f"describes {len(found)} models, not one")
        return found[0]

    def about(self, name: str, version: str | None = None) -> Mapping[str, Any]:
        """What the handler says of a model: its task, limits, labels and the like."""
        where = path(name, version)
        reply = self.call("GET", where, params={"customized": "true"}, retries=2)
        try:
            return dict(reply.json()[0]["customizedMetadata"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise BadReply(reply.url, "describes a model without what its handler says") from error

    def ready(
        self,
        name: str,
        version: str | None = None,
        *,
        workers: int | None = None,
        timeout: float = 300.0,
        progress: Progress | None = None,
    ) -> Model:
        """Wait until a model's workers are ready, by what the server says of each worker.

        A server that cannot be reached may be starting, so that is waited for too; a model that a server does
        not know is an error at once, since TorchServe opens its ports after it has read its models.

        Args:
            name: the model's name.
            version: its version; None is the default version.
            workers: how many must be ready; None is the model's own minimum.
            timeout: seconds to wait; 0 looks once.
            progress: called with the number of ready workers and of those wanted, whenever one changes.

        Raises:
            NotReady: there are not enough ready workers in time, or none is wanted at all.
            NotReachable: no server was there in time.
            Refused: the server does not know the model.
        """
        return wait_for(lambda: self.describe(name, version), workers, timeout, progress)

    def scale(
        self,
        name: str,
        min_worker: int,
        max_worker: int | None = None,
        version: str | None = None,
        *,
        wait: bool = True,
        timeout: float = 300.0,
        progress: Progress | None = None,
    ) -> Model:
        """Change how many workers a model has.

        TorchServe starts workers until there are `min_worker` and ends those above `max_worker`; between the
        two it leaves them as they are. It does not hold to maxWorkers of the archive's model-config.yaml.

        Args:
            name: the model's name.
            min_worker: how many workers there must be; 0 ends them all.
            max_worker: how many there may be; None is as many as min_worker.
            version: the model's version; None is the default version.
            wait: whether to wait until the workers are ready.
            timeout: seconds to wait.
            progress: as for ready.

        Raises:
            NotReady: the workers are not there in time; TorchServe goes on starting them.
            Refused: the server does not know the model.
        """
        most = min_worker if max_worker is None else max_worker
        check_workers(min_worker, most)
        where = path(name, version)
        query = {"min_worker": min_worker, "max_worker": most, "synchronous": "false"}
        self.call("PUT", where, params=query, retries=2, timeout=max(timeout, self.timeout))
        if not wait or min_worker == 0:
            return self.describe(name, version)
        return wait_for(lambda: self.describe(name, version), None, timeout, progress)

    def register(
        self,
        archive: str,
        name: str | None = None,
        *,
        initial_workers: int = 1,
        batch_size: int | None = None,
        max_batch_delay: int | None = None,
        response_timeout: int | None = None,
        startup_timeout: int | None = None,
        timeout: float = 300.0,
    ) -> Model:
        """Register an archive, wait until its workers are ready, and return the model as the server has it.

        What an archive's model-config.yaml says of workers and of time-outs is stronger than these arguments:
        compare with what is returned. A model whose workers do not start is taken off the server again;
        TorchServe itself would keep it without workers, and refuse the next attempt as a duplicate.

        Args:
            archive: a file's name in the server's model store, or a URL that the server may fetch. What it
                fetches it copies into the model store, and unregister deletes the copy.
            name: the model's name; None is the one in the archive.
            initial_workers: how many workers to start.
            batch_size: the largest batch.
            max_batch_delay: milliseconds to wait for a batch to fill.
            response_timeout: seconds that a worker may take for a batch.
            startup_timeout: seconds that a worker may take to load the model.
            timeout: seconds to wait for it all.
        """
        if name is not None:
            segment("name", name)  # TorchServe would take any name, and then never find the model by it
        if initial_workers < 0:
            raise ValueError(f"initial_workers must be 0 or more, not {initial_workers}")
        query = {
            "url": archive,
            "model_name": name,
            "initial_workers": initial_workers,
            "batch_size": batch_size,
            "max_batch_delay": max_batch_delay,
            "response_timeout": response_timeout,
            "startup_timeout": startup_timeout,
            "synchronous": "true",
        }
        try:
            reply = self.call("POST", "/models", params=query, timeout=timeout)
        except Refused as error:
            self._forget(NOT_STARTED.fullmatch(error.message))
            raise
        found = REGISTERED.match(reply.field("status", str))
        if not found:
            raise BadReply(reply.url, f"does not say what it registered: {reply.text()!r}")
        return self.describe(found["name"], found["version"])

    def unregister(self, name: str, version: str | None = None) -> None:
        """Take one version of a model off the server; None is its default version.

        The default version can only go when it is the last.
        """
        self.call("DELETE", path(name, version), timeout=max(self.timeout, 150.0))

    def set_default(self, name: str, version: str) -> None:
        """Make a version the one that answers where no version is named."""
        self.call("PUT", f"{path(name, version)}/set-default", retries=2)

    def _forget(self, model: re.Match[str] | None) -> None:
        if model:
            with suppress(Refused):  # gone already
                self.unregister(model["name"], model["version"])

    def _names(self) -> Iterator[str]:
        page: str | None = None
        while True:
            reply = self.call("GET", "/models", params={"next_page_token": page}, retries=2)
            yield from (str(model["modelName"]) for model in reply.field("models", list))
            page = reply.json().get("nextPageToken")
            if page is None:
                return

    def _described(self, where: str) -> tuple[Model, ...]:
        reply = self.call("GET", where, retries=2)
        try:
            return tuple(Model.from_json(document) for document in reply.json())
        except (KeyError, TypeError, ValueError) as error:
            raise BadReply(reply.url, f"describes a model without {error}") from error


def path(name: str, version: str | None = None) -> str:
    """Where a model is, or one of its versions."""
    return f"/models/{segment('name', name)}" + ("" if version is None else f"/{segment('version', version)}")


def check_workers(least: int, most: int) -> None:
    """Refuse numbers of workers that TorchServe takes and then mishandles."""
    if least < 0:
        raise ValueError(f"min_worker must be 0 or more, not {least}")
    if most < least:
        raise ValueError(f"max_worker ({most}) cannot be less than min_worker ({least})")
    if least == 0 < most:
        raise ValueError("min_worker 0 ends all workers, so max_worker must be 0 too")
