"""What compiles took, for the next one's estimate."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import platformdirs

from pipeline.errors import PublishError
from pipeline.host import whole
from pipeline.spec import ImageSpec, WheelSpec, sm

if TYPE_CHECKING:
    from pipeline.store import Store

_KEEP: Final = 200
# Up to this share compiled, the time on record is that of the compiler cache.
_MOSTLY: Final = 0.5


@dataclass(frozen=True)
class Job:
    """A compile, as far as records tell one from another."""

    package: str
    variant: str
    source: str
    """What is compiled: the source as it is in the wheel's key."""
    arches: int


def job(wheel: WheelSpec) -> Job:
    """Return the compile of a wheel."""
    source = wheel.source.model_dump_json()
    return Job(wheel.package, wheel.variant, source, len(wheel.arches))


def magma_job(wheel: WheelSpec) -> Job | None:
    """Return the compile of the MAGMA that a wheel links; None where there is none."""
    if wheel.magma is None or not wheel.magma.is_compiled:
        return None
    toolchain = wheel.toolchain
    cuda = "cu" + toolchain.cuda.replace(".", "")
    variant = f"magma-{wheel.magma.version}-{cuda}-{sm(wheel.arches)}-{toolchain.base.codename}"
    return Job("magma", variant, wheel.magma.source.model_dump_json(), len(wheel.arches))


@dataclass(frozen=True)
class Record(Job):
    """One finished compile."""

    seconds: int
    jobs: int
    steps: int
    peak_memory: int
    """Bytes, with page cache, as the kernel counts for the container."""
    size: int
    """Bytes of the wheel, or of MAGMA's library."""
    hits: int
    """Objects that came from the compiler cache."""
    misses: int

    @property
    def compiled(self) -> float:
        """The share of the objects that the compiler cache did not have."""
        asked = self.hits + self.misses
        return self.misses / asked if asked else 1.0


def path() -> Path:
    """Return the file in which this machine keeps its records, one a line."""
    return platformdirs.user_state_path("cresset") / "compiles.jsonl"


def record(it: Job, facts: dict[str, Any], size: int) -> Record:
    """Return the record of what ``compile.py`` says of a compile."""
    counts = facts["cache"].values()
    return Record(
        **asdict(it),
        seconds=facts["seconds"],
        jobs=facts["jobs"],
        steps=facts["of"],
        peak_memory=facts["peak_memory"],
        size=size,
        hits=sum(count.get("hits", 0) for count in counts),
        misses=sum(count.get("misses", 0) for count in counts),
    )


def seen(new: Record) -> bool:
    """Say whether the same source was compiled for the same on this machine before."""
    return any((it.variant, it.source) == (new.variant, new.source) for it in _all())


def known(took: Record) -> bool:
    """Say whether this very compile is on record: the engine has had its result in its cache."""
    return took in _all()


def keep(new: Record) -> None:
    """Add a record, if the disk lets it; the oldest go when there are many."""
    file = path()
    lines = [json.dumps(asdict(it)) for it in (*_all(), new)][-_KEEP:]
    # What was compiled for hours is not lost for want of a line about it.
    with contextlib.suppress(OSError):
        whole.write(file, "\n".join(lines) + "\n")


def estimate(wanted: Job) -> Record | None:
    """Return the compile on record that tells most of this one, None if there is none of its kind.

    One that found most of its objects in the compiler cache says little of a first one, so what was
    compiled most goes first, in tenths; then the same variant, the same source, as many
    architectures; of those what was compiled most, in hundredths, and then the newest.
    """
    alike = [it for it in _all() if it.package == wanted.package]
    return max(
        reversed(alike),
        key=lambda it: (
            round(it.compiled, 1),
            it.variant == wanted.variant,
            it.source == wanted.source,
            -abs(it.arches - wanted.arches),
            round(it.compiled, 2),
        ),
        default=None,
    )


@dataclass(frozen=True)
class Expected:
    """Where a wheel, or its MAGMA, will come from, and what a compile is expected to take."""

    package: str
    stage: str
    """The step of the plan that makes it."""
    store: str
    """The wheel store that has it; empty: it is compiled."""
    unknown: str
    """Why the store could not be asked; empty if it was."""
    like: Record | None
    """The compile on record that is most like it."""

    def __str__(self) -> str:
        if self.store:
            return f"is in {self.store}"
        how = (
            f"is compiled, unless the store has it ({self.unknown})"
            if self.unknown
            else "is compiled"
        )
        if self.like is None:
            return f"{how}; none is on record on this machine to tell how long that takes"
        took = self.like
        made = "a library" if took.package == "magma" else "a wheel"
        longer = "" if took.compiled > _MOSTLY else ": without them it takes longer"
        return (
            f"{how}; {took.variant} took {took.seconds / 60:.0f} min with {took.jobs} jobs and "
            f"{took.peak_memory / 1e9:.1f} GB of memory for {made} of {took.size / 1e6:.0f} MB, "
            f"with {took.hits} of {took.hits + took.misses} objects from the compiler cache{longer}"
        )


def expected(spec: ImageSpec, store: Store | None) -> list[Expected]:
    """Return what to expect of each compile; a registry that cannot be asked has it for no one.

    The devel image compiles the MAGMA that torch would link, and no wheel.
    """
    found = []
    for wheel in spec.compiled:
        only_magma = spec.target == "devel"
        where, unknown = ("", "") if only_magma else _where(wheel, store)
        if not where and (magma := magma_job(wheel)):
            found.append(Expected(magma.package, "magma", "", unknown, estimate(magma)))
        if not only_magma:
            took = estimate(job(wheel))
            found.append(Expected(wheel.package, f"{wheel.package}-wheel", where, unknown, took))
    return found


def _where(wheel: WheelSpec, store: Store | None) -> tuple[str, str]:
    """Return the store that has the wheel, and why it could not be asked."""
    if store is None:
        return "", ""
    try:
        return (store.name if store.has(wheel) else ""), ""
    except PublishError as error:
        return "", error.what


def _all() -> Iterator[Record]:
    with contextlib.suppress(OSError):
        for line in path().read_text(errors="replace").splitlines():
            # A line of another version, or half of one, says nothing.
            with contextlib.suppress(ValueError, TypeError):
                yield Record(**json.loads(line))
