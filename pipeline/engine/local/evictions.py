"""What the engine threw out of its cache by itself, as its log tells of it."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Of dagger v0.21.8, dagql/cache_prune.go. What somebody asked for by `engine prune` stands between
# the first two.
_ASKED: Final = "field=EngineCache.prune "
_PRUNED: Final = 'msg="dagql pruned result"'
_LINE: Final = re.compile(r"^time=(?P<time>\S+) .* reclaimedBytes=(?P<size>\d+)$")


@dataclass(frozen=True)
class Evicted:
    """How many results of builds are gone, and the bytes that this freed."""

    results: int = 0
    size: int = 0

    def __str__(self) -> str:
        return f"{self.size / 1e9:.1f} GB of its cache ({self.results} results)"


def evicted(log: Path, since: float) -> Evicted:
    """Return what an engine evicted since then, in seconds since the epoch; nothing of no log."""
    results = size = 0
    # What an engine that has ended since said is in the log beside its successor's.
    for file in (log.with_name(f"{log.name}.old"), log):
        try:
            with file.open(errors="replace") as lines:
                found = [it for time, it in _by_itself(lines) if time >= since]
        except FileNotFoundError:
            continue
        results, size = results + len(found), size + sum(found)
    return Evicted(results, size)


def _by_itself(lines: Iterable[str]) -> Iterator[tuple[float, int]]:
    """Yield when and how much, for each result that nobody asked to be pruned."""
    asked = False
    for line in lines:
        if _ASKED in line:
            asked = 'msg="start call"' in line
        elif _PRUNED in line and not asked and (match := _LINE.match(line.rstrip())):
            yield datetime.datetime.fromisoformat(match["time"]).timestamp(), int(match["size"])
