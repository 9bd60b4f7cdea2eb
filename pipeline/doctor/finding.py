"""What doctor says of a machine: one finding each, and the exit code that their worst is."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final, Literal

from pipeline.spec import Frozen


class Level(StrEnum):
    """How bad a finding is, worst first."""

    ERROR = "error"
    """What the settings ask for cannot be built here, or what is built does not run here."""
    WARNING = "warning"
    """It will hurt, but not at once or not everybody."""
    NOTE = "note"
    """Worth knowing; nothing need be done."""


Stops = Literal["build", "run", "settings", "delivery"]

EXIT: Final[dict[Stops, int]] = {"build": 4, "run": 9, "settings": 2, "delivery": 7}
"""The exit code of an error by what it stops, worst first: those of the verbs that would fail."""

EXIT_OF_WARNINGS: Final = 1


class Finding(Frozen):
    """One thing: what it is, why it matters, and the one command that mends it."""

    id: str
    level: Level
    what: str
    why: str
    mend: str
    source: str = ""
    stops: Stops = "run"


def error(
    name: str, what: str, why: str, mend: str, source: str = "", *, stops: Stops = "run"
) -> Finding:
    """Return a finding that stops something."""
    return Finding(
        id=name, level=Level.ERROR, what=what, why=why, mend=mend, source=source, stops=stops
    )


def warning(name: str, what: str, why: str, mend: str, source: str = "") -> Finding:
    """Return a finding that will hurt."""
    return Finding(id=name, level=Level.WARNING, what=what, why=why, mend=mend, source=source)


def note(name: str, what: str, why: str, mend: str, source: str = "") -> Finding:
    """Return a finding that is worth knowing."""
    return Finding(id=name, level=Level.NOTE, what=what, why=why, mend=mend, source=source)


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings by level, and the errors by what they stop; else in their order."""
    levels, stops = list(Level), list(EXIT)
    return sorted(findings, key=lambda it: (levels.index(it.level), stops.index(it.stops)))


def exit_code(findings: Sequence[Finding]) -> int:
    """Return 0 for nothing but notes, 1 for warnings, else the code of the worst error."""
    worst = next(iter(worst_first(findings)), None)
    if worst is None or worst.level is Level.NOTE:
        return 0
    return EXIT_OF_WARNINGS if worst.level is Level.WARNING else EXIT[worst.stops]
