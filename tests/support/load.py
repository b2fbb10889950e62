"""Clients that ask without a pause until they are refused, and what became of each request."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

import requests

TEXTS = {"texts": ["the film was not good at all and I would not see it again " * 4] * 30}


class Load:
    """They ask over one connection each, or over a new one each time.

    Args:
        url: where they post.
        clients: how many.
        keep_alive: whether each has a connection.
        body: what they post.
        headers: what they say with it.
    """

    def __init__(
        self,
        url: str,
        clients: int,
        keep_alive: bool,
        body: object = TEXTS,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.url = url
        self.body = body
        self.headers = headers
        self.ended = False
        self.keep_alive = keep_alive
        self.outcomes: Counter[str] = Counter()
        self.answered = threading.Event()
        self.threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        for thread in self.threads:
            thread.start()

    def _ask(self) -> None:
        session = requests.Session()
        while not self.ended:
            try:
                client = session if self.keep_alive else requests
                status = client.post(self.url, json=self.body, headers=self.headers, timeout=60).status_code
            except requests.ConnectionError as err:
                self.outcomes["refused" if "refused" in str(err) else f"lost: {err}"] += 1
                return
            self.outcomes[str(status)] += 1
            self.answered.set()

    def end(self) -> Counter[str]:
        """What became of them, once each has the answer to its last."""
        self.ended = True
        return self.join()

    def join(self) -> Counter[str]:
        """What became of them, once all have been refused."""
        for thread in self.threads:
            thread.join(60)
        return self.outcomes
