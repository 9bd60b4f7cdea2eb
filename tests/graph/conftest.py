"""Graphs are read offline: the same guard as the unit tests'."""

from tests.unit.conftest import offline

__all__ = ["offline"]
