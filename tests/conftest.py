"""How ``make test`` spreads the tests over two processes."""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# Their tests share this machine's engine, its interfaces and its mounts.
ALONE = ("tests/engine/", "tests/compose/", "tests/faults/")


class Spread(LoadScopeScheduling):
    """Keep in one process, one after another, what takes the machine; the rest runs beside it.

    By folder: the groups of xdist 3.8 are lost on pytest 9.2, which keeps a copy of each test's id.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "machine" if nodeid.startswith(ALONE) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Spread:
    return Spread(config, log)
