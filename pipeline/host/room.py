"""Room for a build, on disks and in memory: what cannot fit, and what may not. Pure.

One place for `doctor` and for the guard before a build, so that both say the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

GB: Final = 10**9

Kind = Literal["simple", "wheels", "compile"]
"""What is built: without torch, with its wheels, or from its source."""

Verdict = Literal["fits", "low", "full"]
"""`low` may not fit, `full` cannot."""


@dataclass(frozen=True)
class Need:
    """Bytes of disk: with less than `least` a first build ends half-way; `usual` leaves a margin.

    They are the engine's, so what it holds already counts as free: it throws that away for more.
    """

    least: int
    usual: int


DISK: Final[dict[Kind, Need]] = {
    # A base and a few packages: 2 GB were left behind with the file of the image.
    "simple": Need(1 * GB, 5 * GB),
    # An engine of 9 GB and a file of 3.3 GB were left behind (README, Figures).
    "wheels": Need(9 * GB, 20 * GB),
    # The toolchain, and the torch that torchvision is compiled against, take as much again.
    "compile": Need(12 * GB, 60 * GB),
}

COMPILER: Final = 4_500_000_000
"""Bytes of memory of one compiler of CUDA (the program that runs them allows as much)."""

COMPILER_LEAST: Final = 2 * GB
"""The same of MAGMA, whose compilers are the smallest (1.8 GB); torchvision's took 2.5 GB."""


def disk(kind: Kind, free: int, held: int = 0) -> Verdict:
    """Return whether a build fits on a disk; `held` is what the engine's cache takes of it."""
    need = DISK[kind]
    if free + held < need.least:
        return "full"
    return "low" if free + held < need.usual else "fits"


def memory(total: int, *, torch: bool) -> Verdict:
    """Return whether compilers, of `torch` itself, fit into so much memory, swap included."""
    if total < (COMPILER if torch else COMPILER_LEAST):
        return "full"
    return "low" if total < 2 * COMPILER else "fits"
