"""Which cell is built next and by which engine: pure functions over a state that never changes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from pipeline.errors import BuildError, EngineError, PublishError, VerifyError
from pipeline.spec import ImageSpec, WheelSpec

# Where a stage's result is, it need not be made again. Most take about as long; MAGMA, which no
# wheel store keeps, takes as long as all others together, and libtorch's objects longer.
_WEIGHTS: Final = {"magma": 10, "libtorch": 20}

_FAILED_WITH: Final = {BuildError.exit_code, VerifyError.exit_code}


class Outcome(StrEnum):
    """How a cell ended."""

    DELIVERED = "delivered"
    FAILED = "failed"
    NOT_TRIED = "not tried"
    """Something that it needs could not be made."""
    NOT_BUILT = "not built"
    """No engine was left, or those that there were went away while they built it."""


@dataclass(frozen=True)
class End:
    """How a cell ended, its exit code, and why it was not built."""

    outcome: Outcome
    code: int = 0
    why: str = ""


@dataclass(frozen=True)
class Job:
    """A cell, as far as it matters where it is built."""

    compiles: frozenset[str] = frozenset()
    """The wheels it needs that are to be compiled, and their MAGMA: ``torch:KEY``."""
    inputs: frozenset[str] = frozenset()
    """What goes into its stages; where two cells have one in common, an engine makes it once."""
    libtorch: str = ""
    """What its torch has in common with that of another Python, if it is compiled."""

    @property
    def wheels(self) -> frozenset[str]:
        """What it needs that the wheel store keeps."""
        return frozenset(it for it in self.compiles if not it.startswith("magma:"))


@dataclass(frozen=True)
class State:
    """Where every cell and every engine stands."""

    jobs: Mapping[str, Job]
    engines: Mapping[str, int]
    """How many cells each takes at once."""
    pending: tuple[str, ...]
    asked: frozenset[str] = frozenset()
    """Engines that were asked whether they are there, and get nothing before they answer."""
    again: frozenset[str] = frozenset()
    """Those of the pending whose delivery failed once; they wait for all others to be handed."""
    running: Mapping[str, str] = field(default_factory=dict)
    """The engine of each cell that is being built."""
    ended: Mapping[str, End] = field(default_factory=dict)
    stored: frozenset[str] = frozenset()
    """Wheels that are in the wheel store."""
    holds: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The inputs of all that each engine has built."""
    handed: Mapping[str, int] = field(default_factory=dict)
    """How often a cell was handed out."""
    strikes: Mapping[str, int] = field(default_factory=dict)
    """How often an engine was lost since it last finished a cell."""
    dead: Mapping[str, str] = field(default_factory=dict)
    """Engines that get nothing any more, and why."""

    @property
    def most(self) -> int:
        """How often a cell is handed out at most."""
        return len(self.engines) + 1

    def load(self, engine: str) -> float:
        """Return the share of an engine's places that are taken."""
        return sum(it == engine for it in self.running.values()) / self.engines[engine]

    def to_make(self, cell: str) -> frozenset[str]:
        """Return the wheels that a cell would compile, as the store has them not."""
        return self.jobs[cell].wheels - self.stored

    def awaited(self, cell: str) -> frozenset[str]:
        """Return what other cells wait for while this one compiles.

        That is its wheels, and libtorch: torch for another Python finds its objects in the compiler
        cache afterwards, and would compile them all at the same time.
        """
        made, libtorch = self.to_make(cell), self.jobs[cell].libtorch
        compiles_torch = any(it.startswith("torch:") for it in made)
        return made | {libtorch} if libtorch and compiles_torch else made

    def compiles(self, cell: str, engine: str) -> bool:
        """Say whether a cell compiles if an engine builds it.

        A devel image needs no wheel and has MAGMA, which only the engine that made it has at hand.
        """
        job = self.jobs[cell]
        magma = job.compiles - self.holds.get(engine, frozenset()) if not job.wheels else None
        return bool(self.to_make(cell) or magma)

    def compiling(self, engine: str) -> bool:
        """Say whether an engine is compiling: that takes all of its cores and memory."""
        here = (cell for cell, it in self.running.items() if it == engine)
        return any(self.compiles(cell, engine) for cell in here)


def begin(
    jobs: Mapping[str, Job],
    engines: Mapping[str, int],
    *,
    asked: frozenset[str] = frozenset(),
    stored: frozenset[str] = frozenset(),
    holds: Mapping[str, frozenset[str]] | None = None,
) -> State:
    """Return the state in which nothing is handed out yet."""
    state = State(jobs, engines, tuple(jobs), asked, stored=stored, holds=holds or {})
    return _without_engines(state)


def joined(state: State, engine: str, places: int) -> State:
    """Return the state after an engine answered that takes so many cells at once."""
    engines = {**state.engines, engine: places}
    return replace(state, engines=engines, asked=state.asked - {engine})


def absent(state: State, engine: str, why: str) -> State:
    """Return the state after it was found that an engine does not answer, or not any more."""
    dead = {**state.dead, engine: why}
    return _without_engines(replace(state, dead=dead, asked=state.asked - {engine}))


def next_pair(state: State) -> tuple[str, str] | None:
    """Return the cell to hand out next and the engine to hand it to; None if one must end first.

    The engine is the least loaded of those that can take anything. The cell is one that compiles,
    if there is one, since that takes longest; then the one that has most in common with what that
    engine has built or builds, and least with what another has; then the first in order.
    What a cell compiles is waited for (`State.awaited`), and an engine compiles for one at a time.
    """
    making = frozenset[str]().union(*(state.awaited(cell) for cell in state.running))
    free = [cell for cell in state.pending if not making & state.awaited(cell)]
    first = [cell for cell in free if cell not in state.again]
    if not first and any(cell not in state.again for cell in state.pending):
        return None
    alive = [it for it in state.engines if it not in state.dead and it not in state.asked]
    for engine in sorted((it for it in alive if state.load(it) < 1), key=state.load):
        busy = state.compiling(engine)
        fit = [it for it in first or free if not (busy and state.compiles(it, engine))]
        if fit:
            held = {it: _held(state, it) for it in alive}
            return max(fit, key=lambda it: _fitness(state, it, engine, held)), engine
    return None


def _held(state: State, engine: str) -> frozenset[str]:
    """Return what an engine has built, or is building."""
    building = (state.jobs[cell].inputs for cell, it in state.running.items() if it == engine)
    return state.holds.get(engine, frozenset()).union(*building)


def _fitness(
    state: State, cell: str, engine: str, held: Mapping[str, frozenset[str]]
) -> tuple[bool, int]:
    job = state.jobs[cell]
    # Objects draw no cell whose torch is in the store.
    inputs = job.inputs - ({job.libtorch} - state.awaited(cell))
    here = _weight(inputs & held[engine])
    elsewhere = max(
        (_weight(inputs & it) for name, it in held.items() if name != engine), default=0
    )
    return state.compiles(cell, engine), here - elsewhere


def _weight(inputs: frozenset[str]) -> int:
    return sum(_WEIGHTS.get(it.partition(":")[0], 1) for it in inputs)


def hand(state: State, cell: str, engine: str) -> State:
    """Return the state after a cell was handed to an engine."""
    return replace(
        state,
        pending=tuple(it for it in state.pending if it != cell),
        running={**state.running, cell: engine},
        handed={**state.handed, cell: state.handed.get(cell, 0) + 1},
    )


def delivered(state: State, cell: str) -> State:
    """Return the state after a cell was built and delivered."""
    engine, job = state.running[cell], state.jobs[cell]
    return replace(
        _ended(state, cell, End(Outcome.DELIVERED)),
        stored=state.stored | job.wheels,
        holds={**state.holds, engine: state.holds.get(engine, frozenset()) | job.inputs},
        strikes={**state.strikes, engine: 0},
    )


def failed(state: State, cell: str, code: int, stage: str = "") -> State:
    """Return the state after a cell failed with an exit code, in a stage.

    What could not be delivered is tried once more at the end. Where it was a wheel, or its MAGMA,
    that could not be made, the cells that need the same are not tried.
    """
    engine = state.running[cell]
    state = replace(state, strikes={**state.strikes, engine: 0})
    if code == PublishError.exit_code and cell not in state.again:
        return _without_engines(_back(replace(state, again=state.again | {cell}), cell, last=True))
    state = _ended(state, cell, End(Outcome.FAILED, code))
    missing = _made_by(state.jobs[cell], stage) if code in _FAILED_WITH else frozenset()
    why = f"needs {_named(missing)}, which failed in {cell}"
    for other in state.pending:
        if missing & state.jobs[other].compiles:
            state = _ended(state, other, End(Outcome.NOT_TRIED, code, why))
    return state


def lost(state: State, cell: str, why: str) -> State:
    """Return the state after the engine of a cell went away under it, and the cell was taken back.

    The engine is to be asked whether it is there before it gets anything. One that is lost twice
    without having finished anything in between is not asked any more.
    """
    engine = state.running[cell]
    # Several cells of one engine are lost with it, one after the other, and that is one loss.
    strikes = state.strikes.get(engine, 0) + (engine not in state.asked)
    state = replace(state, strikes={**state.strikes, engine: strikes})
    if strikes > 1:
        dead = {**state.dead, engine: state.dead.get(engine, why)}
        state = replace(state, dead=dead, asked=state.asked - {engine})
    elif engine not in state.dead:
        state = replace(state, asked=state.asked | {engine})
    if state.handed[cell] >= state.most:
        told = f"handed out {state.handed[cell]} times, and the engine went away each time: {why}"
        state = _ended(state, cell, End(Outcome.NOT_BUILT, EngineError.exit_code, told))
    else:
        state = _back(state, cell, last=False)
    return _without_engines(state)


def _without_engines(state: State) -> State:
    """Return the state, in which every pending cell has ended if there is no engine left."""
    if state.asked or state.engines.keys() - state.dead.keys():
        return state
    for cell in state.pending:
        end = End(Outcome.NOT_BUILT, EngineError.exit_code, "no engine was left")
        state = _ended(state, cell, end)
    return state


def _ended(state: State, cell: str, end: End) -> State:
    return replace(
        state,
        pending=tuple(it for it in state.pending if it != cell),
        running={it: engine for it, engine in state.running.items() if it != cell},
        ended={**state.ended, cell: end},
    )


def _back(state: State, cell: str, *, last: bool) -> State:
    pending = (*state.pending, cell) if last else (cell, *state.pending)
    running = {it: engine for it, engine in state.running.items() if it != cell}
    return replace(state, pending=pending, running=running)


def _made_by(job: Job, stage: str) -> frozenset[str]:
    """Return what a stage was to make of that which a cell compiles."""
    package, _, part = stage.rpartition("-")
    if stage == "magma":
        package, part = stage, "wheel"
    wanted = part in {"wheel", "check"}
    return frozenset(it for it in job.compiles if wanted and it.startswith(f"{package}:"))


def _named(compiled: frozenset[str]) -> str:
    return " and ".join(
        f"the {it.partition(':')[0]} {it.partition(':')[2][:12]}" for it in compiled
    )


def job(spec: ImageSpec) -> Job:
    """Return what matters of a cell's spec."""
    wheels = spec.compiled if spec.target != "devel" else ()
    compiles = {wheel_id(it) for it in wheels}
    libtorch = ""
    inputs = {
        _id("base", spec.base.model_dump_json()),
        _id("shell", spec.base.codename, *spec.shell),
        _id("python", spec.base.codename, spec.python),
        _id("apt", spec.base.codename, *spec.apt),
        _id("pip", spec.python, *(file.sha256 for file in spec.pip)),
    }
    if spec.torch:
        inputs.add(_id("torch", spec.python, spec.torch.cuda, *spec.torch.pins))
    for it in spec.compiled:
        inputs.add(_id("toolchain", it.toolchain.model_dump_json()))
        if it.magma and it.magma.is_compiled:
            tools = (it.toolchain.cuda, it.toolchain.base.codename, it.arch_list)
            compiles.add(_id("magma", it.magma.model_dump_json(), *tools))
    for it in wheels:
        if it.package == "torch":
            chain = it.toolchain.model_dump_json(exclude={"python", "python_from_distribution"})
            source = it.source.model_dump_json()
            libtorch = _id("libtorch", source, it.version, it.arch_list, repr(it.flags), chain)
            inputs.add(libtorch)
    return Job(frozenset(compiles), frozenset(inputs | compiles), libtorch)


def wheel_id(wheel: WheelSpec) -> str:
    """Return the name of a compiled wheel among what cells compile: ``torchvision:KEY``."""
    return f"{wheel.package}:{wheel.key}"


def _id(kind: str, *parts: str) -> str:
    return f"{kind}:{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"


# What stops more than its own cell comes first; an engine that went away says nothing of the image.
_WORST: Final = (130, 143, 2, 5, 6, 1, 7, 8, 9, 3, 4)


def exit_code(codes: Sequence[int]) -> int:
    """Return the exit code of a whole matrix: that of its worst cell, 0 if all are delivered.

    Worst first: 130 (Ctrl-C), 143 (SIGTERM), 2 (settings), 5 (build), 6 (verification), 1 (anything
    else, as a child that was killed), 7 (publish), 8 (unfinished), 9, 3, 4 (no engine).
    """
    bad = {code if code in _WORST else 1 for code in codes if code}
    return min(bad, key=_WORST.index, default=0)
