"""How ``make test`` spreads the tests over two processes."""

from __future__ import annotations

import pytest

MACHINE = ("engine", "docker")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep in one process, one after another, what shares this machine's engine and interfaces.

    The rest runs beside it, while the engine is compiled for the first time.
    """
    for item in items:
        if any(item.get_closest_marker(name) for name in MACHINE):
            item.add_marker(pytest.mark.xdist_group("machine"))
