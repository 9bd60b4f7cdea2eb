"""What became of each thing of the original: the migration's answer, one line a thing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Fate(StrEnum):
    """What can become of a thing."""

    CARRIED = "carried over"
    MAPPED = "mapped"
    LEFT = "not carried over"
    REFUSED = "refused"


@dataclass(frozen=True)
class Item:
    """One thing of the original: where it stood, what it was, and what became of it and why."""

    place: str
    """A file, or a service of docker-compose.yaml or of the override."""
    kind: str
    name: str
    """Never with the value of a variable: any may be a secret."""
    fate: Fate
    word: str

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints of it."""
        return asdict(self)


def table(items: Sequence[Item]) -> str:
    """Return the items for people, under the place where each stood."""
    lines: list[str] = []
    width = max((len(f"{it.kind} {it.name}") for it in items), default=0)
    width = min(width, 44)
    for place, group in itertools.groupby(items, lambda it: it.place):
        lines += ["", place]
        for it in group:
            what = f"{it.kind} {it.name}"
            lines.append(f"  {what:<{width}}  {it.fate}: {it.word}")
    return "\n".join(lines[1:])
