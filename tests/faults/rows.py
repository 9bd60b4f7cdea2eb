"""Rows of the table of faults: what fails, where, what must hold after it, and the test of that."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import pytest

ROW: Final = "fault"
"""The name under which a test that has run says which row it was, for the table."""


@dataclass(frozen=True)
class Row:
    """One fault. `check` brings it about, and asserts that all of `holds` is true."""

    where: str
    fault: str
    holds: str
    check: Callable[[Any], None]
    slow: bool = False
    root: bool = False
    """Whether it mounts a disk."""

    @property
    def id(self) -> str:
        return f"{self.where}: {self.fault}"


class Table:
    """Rows, each added by decorating the function that checks it."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def row(
        self, where: str, fault: str, holds: str, *, slow: bool = False, root: bool = False
    ) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
        """Add the function as the check of a row."""

        def add(check: Callable[[Any], None]) -> Callable[[Any], None]:
            self.add(Row(where, fault, holds, check, slow, root))
            return check

        return add

    def add(self, row: Row) -> None:
        self.rows.append(row)

    def parametrized(self) -> pytest.MarkDecorator:
        """Return what makes a test run once for each row, as its parameter `row`."""
        no_mounts = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts disks")
        marked = [
            pytest.param(it, id=it.id, marks=[pytest.mark.slow] * it.slow + [no_mounts] * it.root)
            for it in self.rows
        ]
        return pytest.mark.parametrize("row", marked)
