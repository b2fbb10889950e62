"""What tests of a module's own `server` share."""

from __future__ import annotations

import pytest

from client import ManagementClient


@pytest.fixture
def workers_stay(server):
    """No worker may die of what a client sends."""
    management = ManagementClient(server.management_url)

    def pids():
        return {worker.pid for model in management.models() for worker in model.workers}

    before = pids()
    yield
    assert pids() == before
