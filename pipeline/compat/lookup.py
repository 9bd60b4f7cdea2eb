"""Lookups in the tables: each returns the row, or the `Problem` of not having it.

What no row speaks of is refused, with what is there and the nearest of it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from functools import cache

from pipeline.compat import tables
from pipeline.compat.tables import CudaRelease, Distribution, NgcMonths, TorchRelease, numbers
from pipeline.errors import Problem
from pipeline.spec import Arch

RELEASES = "https://github.com/pytorch/pytorch/blob/main/RELEASE.md"
TOOLKITS = "https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/index.html"
CAPABILITIES = "https://developer.nvidia.com/cuda-gpus"


def torch_release(version: str) -> TorchRelease | Problem:
    """Return the row of a torch release, given as ``2.6.0`` or as its git tag ``v2.6.0``."""
    found = tables.torch().get(bare(version))
    return found or no_row("PYTORCH_VERSION_TAG", version, "torch", tables.torch(), RELEASES)


def newest_torch() -> TorchRelease:
    """Return the newest torch release on record."""
    return list(tables.torch().values())[-1]


def distributions() -> tuple[Distribution, ...]:
    """Return every distribution on record, each name's releases oldest first."""
    return tables.distributions()


@cache
def distribution(name: str, version: str = "") -> Distribution | Problem:
    """Return a distribution by name and version or codename; without a version its newest."""
    named = [row for row in distributions() if row.name == name.lower()]
    if not named:
        known = dict.fromkeys(row.name for row in distributions())
        return no_row("LINUX_DISTRO", name, "distribution", known, distributions()[0].source)
    if not version:
        return named[-1]
    found = next((row for row in named if version.lower() in (row.version, row.codename)), None)
    known = dict.fromkeys(row.version for row in named)
    return found or no_row("DISTRO_VERSION", version, name, known, named[-1].source)


def ngc_months(month: str) -> NgcMonths | Problem:
    """Return the row of a month's PyTorch image of NVIDIA's, given as ``25.09``."""
    rows, want = tables.ngc(), numbers(month)
    found = next((it for it in rows if numbers(it.first) <= want <= numbers(it.last)), None)
    if found:
        return found
    near = rows[0].first if want < numbers(rows[0].first) else rows[-1].last
    year, _, last = near.partition(".")
    return Problem(
        "NGC_MONTH",
        month,
        f"no row for NVIDIA's image of {month}, and unknown means refused",
        allowed=f"{rows[0].first} to {rows[-1].last}",
        next_step=f"set NGC_YEAR={year} and NGC_MONTH={last}, the nearest",
        source=rows[-1].source,
    )


def newest_ngc_month() -> str:
    """Return the newest month on record of NVIDIA's images."""
    return tables.ngc()[-1].last


def cuda_release(version: str) -> CudaRelease | Problem:
    """Return the row of a CUDA release, given as ``12.4`` or ``12.4.1``."""
    found = tables.cuda().get(minor(version))
    return found or no_row("CUDA_VERSION", version, "CUDA", tables.cuda(), TOOLKITS)


def known_arch(arch: Arch) -> Problem | None:
    """Return the problem of a compute capability that no row speaks of."""
    if arch.number in tables.arches():
        return None
    return no_row("CCA", str(arch), "compute capability", tables.arches(), CAPABILITIES)


@cache
def named_archs() -> Mapping[str, tuple[Arch, ...]]:
    """Return what TORCH_CUDA_ARCH_LIST makes of ``ampere`` and the like, by lower-case name."""
    return {row.name.lower(): row.archs for row in tables.names()}


def known_python(version: str) -> Problem | None:
    """Return the problem of a Python that neither a distribution nor a torch on record has."""
    if version in (known := pythons()):
        return None
    return no_row(
        "PYTHON_VERSION", version, "Python", known, "https://devguide.python.org/versions/"
    )


def pythons() -> list[str]:
    """Return every Python on record, oldest first."""
    known = {row.python for row in distributions()}
    for release in tables.torch().values():
        known.update(release.pythons.stable, release.pythons.preview)
    return sorted(known, key=numbers)


@cache
def bare(tag: str) -> str:
    """Return the version that a git tag names."""
    return tag.removeprefix("v")


@cache
def minor(version: str) -> str:
    """Return ``12.4`` of ``12.4.1``."""
    return ".".join(version.split(".")[:2])


def nearest(wanted: str, known: Iterable[str]) -> str:
    """Return the known version to take instead; of words the closest in spelling, or nothing.

    That is one which `wanted` begins, else the newest that is older, else the oldest. The tables
    are in that order.
    """
    names, want = list(known), numbers(bare(wanted))
    if not (want and names and all(map(numbers, names))):
        return next(iter(difflib.get_close_matches(wanted, names, 1, 0.5)), "")
    alike = [name for name in names if numbers(name)[: len(want)] == want]
    older = [name for name in names if numbers(name) <= want]
    return (alike or older or names[:1])[-1]


def no_row(field: str, value: str, what: str, known: Iterable[str], source: str) -> Problem:
    """Return the refusal of what the tables do not know."""
    names = list(known)
    near = nearest(value, names)
    tag = "v" if field.endswith("_TAG") else ""
    return Problem(
        field,
        value,
        f"no row for {what} {bare(value)}, and unknown means refused",
        allowed=", ".join(names),
        next_step=f"set {field}={tag}{near}, the nearest" if near else "set one of those",
        source=source,
    )
