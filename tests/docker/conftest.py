"""What takes minutes, root or other programs runs where its marker is asked for; else it is deselected."""

from __future__ import annotations

import pytest

ASKED_FOR = ("image", "monitoring")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    asked = config.option.markexpr
    out = [item for item in items for name in ASKED_FOR if item.get_closest_marker(name) and name not in asked]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]
