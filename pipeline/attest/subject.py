"""The image that a proof is about, and what its build tells."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Subject:
    """An image by its digest, and what it was published as."""

    repository: str
    """As ``ghcr.io/team/cresset``."""
    digest: str
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Made:
    """What a build tells of itself; of one that is over only what its labels say."""

    origin: str
    """Where the base came from."""
    engine: str = ""
    """How its engine was come by, as ``local``."""
    engine_version: str = ""
    started: datetime | None = None
    finished: datetime | None = None
    arches: str = ""
    """The GPU code that was found in it."""
    torch_commit: str = ""
    """The commit that the torch in it tells it is of, where it was compiled."""
