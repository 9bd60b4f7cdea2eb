"""The engines of a fleet: what their machines hold, whether they answer, what each has built."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs

from pipeline.engine import select
from pipeline.host import machine, whole
from pipeline.settings import Settings

GIB: Final = 1 << 30

# A build that compiles nothing unpacks, installs and compresses: two cores are enough to keep it
# from waiting, and uv, apt and the engine's compression hold less than this together.
_CORES_EACH: Final = 2
_MEMORY_EACH: Final = 4 * GIB
_KEEP: Final = 2000
_PAUSE: Final = 10.0
_LOGIN_PAUSE: Final = 60.0


@dataclass(frozen=True)
class Engine:
    """An engine that cells are handed to; `host` is empty where ENGINE chooses it."""

    name: str
    host: str
    environment: Mapping[str, str]
    """What makes a child take this engine and no other."""
    here: bool
    """Whether it is on this machine, and comes back when it is called again."""

    @property
    def pause(self) -> float:
        """How many seconds to leave between two questions: by ssh each is a login."""
        return _LOGIN_PAUSE if self.host.startswith("ssh://") else _PAUSE

    def why_silent(self) -> str:
        """Return why it does not answer, empty if it does, or if only Dagger could tell."""
        return "" if self.here or not self.host else select.no_answer(self.host) or ""


@dataclass(frozen=True)
class Machine:
    """What an engine's machine holds; `memory` in bytes."""

    cores: int
    memory: int

    @property
    def places(self) -> int:
        """How many cells it builds at once. Of these one compiles, which takes what it can get."""
        return max(1, min(self.cores // _CORES_EACH, self.memory // _MEMORY_EACH))


def engines(settings: Settings, say: Callable[[str], None]) -> list[Engine]:
    """Return the engines of ENGINES, without them the one that ENGINE chooses.

    EngineError where ENGINES is empty and there is none.
    """
    if named := select.hosts(settings.engines):
        return [Engine(host, host, {"ENGINES": host}, here=host == select.LOCAL) for host in named]
    choice = select.choose(settings.engine, say)
    host = os.environ.get(select.RUNNER_HOST, "") if choice.kind == "remote" else ""
    here = choice.kind == "local"
    return [Engine(host or choice.kind, host, {"ENGINE": choice.kind}, here=here)]


def this_machine() -> Machine:
    """Return what this machine, or the container that this runs in, holds."""
    memory, _ = machine.memory_bytes()
    return Machine(len(os.sched_getaffinity(0)), memory)


def record() -> Path:
    """Return the file in which this machine keeps what each engine has built."""
    return platformdirs.user_state_path("cresset") / "fleet.json"


def built() -> dict[str, frozenset[str]]:
    """Return the inputs of what each engine has built, as far as this machine knows."""
    # A file of another version, or half of one, says nothing.
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        content = json.loads(record().read_text())
        return {str(name): frozenset(map(str, inputs)) for name, inputs in content.items()}
    return {}


def keep(holds: Mapping[str, frozenset[str]]) -> None:
    """Write down what each engine has built; an engine that was not asked keeps what it had."""
    file = record()
    every = {**built(), **holds}
    content = {name: sorted(inputs)[-_KEEP:] for name, inputs in every.items()}
    with contextlib.suppress(OSError):  # it only makes the next run faster
        whole.write(file, json.dumps(content))
