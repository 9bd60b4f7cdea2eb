"""All cells of a matrix, built by as many engines as there are; the report of it."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from pipeline import publish, store, summary
from pipeline.attest import proof, referrers
from pipeline.errors import EngineError, Interrupted, Terminated, Unfinished
from pipeline.fleet import child, handout, report
from pipeline.fleet import engines as fleet
from pipeline.fleet.engines import Engine, Machine
from pipeline.fleet.report import Report, Row
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pipeline.matrix import Cell

PROGRAM: Final = (sys.executable, "-m", "pipeline")

TO_ATTACH: Final = "to be attached"
FOR_OTHERS: Final = "missing"
"""Of the proof that an image lacks, in what is printed as JSON."""

# All that would end us alone: the children are in groups of their own, and hear of none of them.
_ENDINGS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AT_ONCE: Final = 8
_HEARTBEAT_SECONDS: Final = 20.0
_TOGETHER_SECONDS: Final = 30.0
# The base may have to be made first; later it is there.
_FIRST_ANSWER_SECONDS: Final = 600.0
_NEXT_ANSWER_SECONDS: Final = 60.0
# Of an engine that cells are running on: a busy machine may miss one or two.
_SILENCES: Final = 3


@dataclass(frozen=True)
class Wanted:
    """One cell, and where it goes."""

    cell: Cell
    settings: Settings
    """Of the cell."""
    where: publish.Destination

    @property
    def name(self) -> str:
        return self.cell.variant


@dataclass(frozen=True)
class Options:
    """What the user said of the whole run."""

    variables: Mapping[str, str] = field(default_factory=dict)
    """Settings from the command line, by name."""
    arguments: tuple[str, ...] = ()
    """Of each child's verb."""
    words: tuple[str, ...] = ()
    """What the command to repeat a cell has beside its name."""
    until: float = 0
    """When compiles stop in good order, in seconds since the epoch; 0: never."""
    resume: bool = False
    force: bool = False


def found(wanted: Sequence[Wanted], options: Options) -> dict[str, Mapping[str, Any]]:
    """Return the images that are there, as ``--json`` prints them, by the name of the cell.

    That is what the destinations have, asked at once, but with `force`; with `resume` what the
    last run delivered is not asked for again. What lacks its proof has a ``proof``: TO_ATTACH, or
    FOR_OTHERS where this login may not.

    Raises:
        ConfigError: SIGN_KEY is no key.
        PublishError: a registry cannot be asked.

    """
    there: dict[str, Mapping[str, Any]] = {}
    if options.resume:
        before = report.last_delivered()
        for it in wanted:
            if cell := before.get((it.cell.key, it.where.name)):
                there[it.name] = {
                    name: cell[name] for name in ("ref", "digest", "size") if name in cell
                }
    if options.force:
        return there
    asked = [it for it in wanted if it.name not in there]
    answers = publish.find_all([(it.cell.spec, it.where) for it in asked])
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        lacking = threads.map(_lacks_proof, asked, answers)
    may_push = functools.cache(referrers.may_push)
    for it, delivered, lacks in zip(asked, answers, lacking, strict=True):
        if delivered:
            about = {"ref": delivered.ref, "digest": delivered.digest, "size": delivered.size}
            if lacks:
                mine = may_push(it.where.repository)
                about["proof"] = TO_ATTACH if mine else FOR_OTHERS
            there[it.name] = about
    return there


def _lacks_proof(wanted: Wanted, delivered: publish.Delivered | None) -> bool:
    return delivered is not None and proof.lacks_proof(wanted.settings, wanted.where, delivered)


def stored(wanted: Sequence[Wanted]) -> frozenset[str]:
    """Return the wheels that are in the wheel stores, by the names that `handout` has for them.

    Raises:
        PublishError: a registry cannot be asked.

    """
    by_store: dict[store.Store, list[Wanted]] = {}
    for it in wanted:
        if it.cell.spec.compiled and (kept := store.store(it.settings)):
            by_store.setdefault(kept, []).append(it)
    there = set()
    for kept, cells in by_store.items():
        wheels = [wheel for it in cells for wheel in it.cell.spec.compiled]
        keys = store.present(kept, wheels)
        there |= {handout.wheel_id(wheel) for wheel in wheels if wheel.key in keys}
    return frozenset(there)


def build(wanted: Sequence[Wanted], settings: Settings, options: Options) -> Report:
    """Build every cell that is not there yet; return how each ended.

    One that fails keeps no other from being built. Standard error shows what runs. Ctrl-C and
    SIGTERM end what runs in good order, and are the report's exit code: 130, 143.

    Raises:
        EngineError: ENGINES is empty, and there is no engine.
        PublishError: a registry cannot be asked what it has.

    """
    begun = time.monotonic()
    images = found(wanted, options)
    # What may get its proof here is handed out for it.
    there = {name: it for name, it in images.items() if it.get("proof") != TO_ATTACH}
    rows = [
        Row(
            it.name,
            it.cell.spec.target,
            it.cell.key,
            it.where.name,
            state=report.THERE if it.name in there else report.WAITING,
            result=there.get(it.name, {}),
        )
        for it in wanted
    ]
    left = [it for it in wanted if it.name not in there]
    kept = stored(left)
    run = report.new_run()
    shown = report.view(rows)
    hands = _Run(rows={row.variant: row for row in rows}, view=shown, folder=run, options=options)
    hands.stored = kept
    try:
        shown.note(f"{len(there)} of {len(rows)} cells are there already; log: {run}")
        for it in wanted:
            if there.get(it.name, {}).get("proof") == FOR_OTHERS:
                shown.note(f"{it.name} {proof.for_others(it.where)}")
        if left:
            hands.engines = fleet.engines(settings, shown.note)
            hands.run(left)
    finally:
        shown.close()
    return hands.ended(begun)


@dataclass
class _Run:
    """A matrix while it runs."""

    rows: Mapping[str, Row]
    view: report.View
    folder: Path
    options: Options
    engines: Sequence[Engine] = ()
    machines: dict[str, Machine] = field(default_factory=dict)
    state: handout.State | None = None
    wanted: Mapping[str, Wanted] = field(default_factory=dict)
    stored: frozenset[str] = frozenset()
    stopped_by: type[Interrupted] | None = None
    """By whom, if somebody has: Ctrl-C, or what ends services."""
    _group: TaskGroup | None = None
    """Of children, and of what asks and watches over engines."""
    _changed: anyio.Event = field(default_factory=anyio.Event)
    _scopes: dict[str, anyio.CancelScope] = field(default_factory=dict)
    """Of the children that run, by cell."""
    _silent: dict[str, str] = field(default_factory=dict)
    """Engines that were found silent while they were to work, and why."""

    def run(self, left: Sequence[Wanted]) -> None:
        """Build what is left; Ctrl-C ends every child first."""
        self.wanted = {it.name: it for it in left}
        try:
            anyio.run(self._work, left)
        except BaseExceptionGroup as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from group

    async def _work(self, left: Sequence[Wanted]) -> None:
        work = anyio.CancelScope()
        async with anyio.create_task_group() as listening:
            # Outside of what it stops, so that a second Ctrl-C does not cut that short.
            listening.start_soon(self._listen, work)
            with work:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._beat)
                    await self._build(left)
                    group.cancel_scope.cancel()
            listening.cancel_scope.cancel()

    async def _listen(self, work: anyio.CancelScope) -> None:
        with anyio.open_signal_receiver(*_ENDINGS) as signals:
            async for number in signals:
                self.stopped_by = Terminated if number == signal.SIGTERM else Interrupted
                self.view.note("stopping: every build ends in good order")
                work.cancel()

    async def _beat(self) -> None:
        while True:
            await anyio.sleep(_HEARTBEAT_SECONDS)
            self.view.beat()

    async def _build(self, left: Sequence[Wanted]) -> None:
        jobs = {it.name: handout.job(it.cell.spec) for it in left}
        asked = frozenset(it.name for it in self.engines)
        self.state = handout.begin(jobs, {}, asked=asked, stored=self.stored, holds=fleet.built())
        async with anyio.create_task_group() as group:
            self._group = group
            for engine in self.engines:
                group.start_soon(self._join, engine, left[0], _FIRST_ANSWER_SECONDS)
            # Those that answer at once begin together, and share the cells evenly.
            with anyio.move_on_after(_TOGETHER_SECONDS):
                while self.state.asked:
                    await self._news()
            while self._hand_out():
                await self._news()
            group.cancel_scope.cancel()

    async def _news(self) -> None:
        """Wait until a child has ended, or an engine has answered."""
        await self._changed.wait()
        self._changed = anyio.Event()

    async def _join(self, engine: Engine, first: Wanted, seconds: float) -> None:
        """Ask an engine what it holds, give it cells if it answers, and watch over it then."""
        assert self.state
        name = engine.name
        machine: Machine | None = None
        self._silent.pop(name, None)
        if engine.here:
            machine = fleet.this_machine()
        elif why := await to_thread.run_sync(engine.why_silent):
            self._silent[name] = why
        else:
            machine = await self._ask(engine, first, seconds)
        if machine:
            self.machines[name] = machine
            self.view.note(
                f"engine {name}: {machine.cores} cores, {machine.memory / 1e9:.1f} GB, "
                f"{machine.places} cells at once"
            )
            self.state = handout.joined(self.state, name, machine.places)
        else:
            self.view.note(f"engine {name} is left out: {self._silent[name]}")
            self.state = handout.absent(self.state, name, self._silent[name])
        self._changed.set()
        if machine:
            await self._watch(engine)

    def _hand_out(self) -> bool:
        """Hand out all that can be; return whether there is anything to wait for then."""
        assert self.state
        assert self._group
        late = self.options.until and time.time() >= self.options.until
        while not late and (pair := handout.next_pair(self.state)):
            cell, name = pair
            self.state = handout.hand(self.state, cell, name)
            engine = next(it for it in self.engines if it.name == name)
            self._group.start_soon(self._one, cell, engine)
        self._show()
        more = self.state.asked and self.state.pending and not late
        return bool(self.state.running or more)

    async def _one(self, cell: str, engine: Engine) -> None:
        """Have one engine build one cell."""
        assert self.state
        row, wanted = self.rows[cell], self.wanted[cell]
        row.state, row.engine, row.began = report.BUILDING, engine.name, time.monotonic()
        row.stage = row.last = row.why = ""
        row.log = str(self.folder / f"{cell}.{self.state.handed[cell]}.log")
        self.view.changed(row)
        argv = [*PROGRAM, "build-only", wanted.cell.spec.target, "--json", *self.options.arguments]
        if self.options.until:
            argv.append(f"--deadline={max(1, int(self.options.until - time.time()))}s")
        env = _environment(self.options.variables, wanted.cell.settings, engine)
        ended: child.Ended | None = None
        with anyio.CancelScope() as scope:
            self._scopes[cell] = scope
            ended = await child.run(argv, env, Path(row.log), row.told)
        self._scopes.pop(cell)
        row.took = time.monotonic() - row.began
        await self._ended(cell, engine, ended)

    async def _ended(self, cell: str, engine: Engine, ended: child.Ended | None) -> None:
        """Take in how a child ended; None: it was stopped, since its engine did not answer."""
        assert self.state
        row = self.rows[cell]
        if ended is None or ended.code == EngineError.exit_code:
            said = self._silent.get(engine.name, "")
            if ended:
                said = said or ended.said.get("error", {}).get("why", "")
            asked = engine.name in self.state.asked
            self.state = handout.lost(self.state, cell, said or "it went away")
            row.state = report.WAITING
            row.why = f"{engine.name} went away: {said}" if said else f"{engine.name} went away"
            self.view.changed(row)
            if engine.name in self.state.asked and not asked:
                assert self._group
                wanted = self.wanted[cell]
                self._group.start_soon(self._join, engine, wanted, _NEXT_ANSWER_SECONDS)
        elif ended.code == 0:
            self.state = handout.delivered(self.state, cell)
            row.result, row.error, row.code = ended.said, {}, 0
            # Another than was planned where a working tree was edited since.
            row.key = str(ended.said.get("key", row.key))
        else:
            error = ended.said.get("error") or _unsaid(ended.code)
            row.error, row.code = error, ended.code
            self._save_log(row)
            self.state = handout.failed(self.state, cell, ended.code, error.get("stage", ""))
            if cell in self.state.pending:
                row.state, row.why = report.WAITING, "not delivered; tried once more at the end"
                self.view.changed(row)
        self._changed.set()

    def _save_log(self, row: Row) -> None:
        """Keep the whole log of a build that failed: the folder of logs forgets it sooner."""
        if log := row.error.get("log"):
            with contextlib.suppress(OSError):
                whole = Path(row.log).with_suffix(".whole.log")
                whole.hardlink_to(log)
                row.log = str(whole)

    def _show(self) -> None:
        """Show the cells that have ended since this was last called."""
        assert self.state
        for cell, end in self.state.ended.items():
            row = self.rows[cell]
            if row.state not in (report.WAITING, report.BUILDING):
                continue
            stopped = end.code == Unfinished.exit_code
            row.state = report.UNFINISHED if stopped else str(end.outcome)
            row.code = end.code
            row.why = end.why or str(row.error.get("what", ""))
            self.view.changed(row)

    async def _ask(self, engine: Engine, first: Wanted, seconds: float) -> Machine | None:
        """Ask an engine what its machine holds, which tells as well whether it can build."""
        log = self.folder / f"engine-{list(self.engines).index(engine)}.log"
        argv = [*PROGRAM, "engine", "machine", "--json"]
        env = _environment(self.options.variables, first.cell.settings, engine)
        ended: child.Ended | None = None
        with anyio.move_on_after(seconds):
            ended = await child.run(argv, env, log, lambda _: None)
        if ended is None:
            # Something may take connections in its place, and Dagger's client tries for minutes.
            self._silent[engine.name] = f"no answer in {seconds:.0f} s; log: {log}"
            return None
        if ended.code == 0:
            return Machine(ended.said["cores"], ended.said["memory"])
        error = ended.said.get("error", {})
        why = error.get("why") or error.get("what") or f"exit code {ended.code}"
        if ended.code == EngineError.exit_code:
            self._silent[engine.name] = why
            return None
        # It is there. What it cannot do now it will say of the cell that needs it.
        self.view.note(f"engine {engine.name}: its machine is not known ({why})")
        return Machine(cores=1, memory=0)

    async def _watch(self, engine: Engine) -> None:
        """Stop the children of an engine that no longer answers: they might wait for ever."""
        assert self.state
        silences = 0
        while engine.name not in self.state.asked and engine.name not in self.state.dead:
            await anyio.sleep(engine.pause)
            why = await to_thread.run_sync(engine.why_silent)
            silences = silences + 1 if why else 0
            if silences == _SILENCES:
                self.view.note(f"engine {engine.name} does not answer any more: {why}")
            if silences >= _SILENCES:
                # Whatever was handed to it, since then as well.
                self._silent[engine.name] = why
                for cell, name in self.state.running.items():
                    if name == engine.name and (scope := self._scopes.get(cell)):
                        scope.cancel()

    def ended(self, begun: float) -> Report:
        """Return the report, kept and appended to the step summary.

        Where it cannot be kept, standard error says so: whoever waits for it has it all the same.
        """
        rows = list(self.rows.values())
        if self.state:
            fleet.keep(self.state.holds)
        for row in rows:
            if row.state in (report.WAITING, report.BUILDING):
                row.code = (self.stopped_by or Unfinished).exit_code
                row.state = report.INTERRUPTED if self.stopped_by else report.UNFINISHED
                row.why = "" if self.stopped_by else "the deadline came before its turn"
            if row.state not in report.GOOD:
                row.command = report.command(row.variant, self.options.words)
        made = report.Report(
            rows,
            [self._about(engine, rows) for engine in self.engines],
            time.monotonic() - begun,
            handout.exit_code([row.code for row in rows]),
        )
        try:
            report.keep(self.folder, made)
        except OSError as error:
            self.view.note(f"note: the report is not kept, so no --resume knows of it: {error}")
        good = sum(row.state in report.GOOD for row in rows)
        title = f"{good} of {len(rows)} images delivered in {made.seconds:.0f} s"
        summary.append(title, [row.as_json() for row in rows])
        return made

    def _about(self, engine: Engine, rows: Sequence[Row]) -> dict[str, Any]:
        machine = self.machines.get(engine.name)
        dead = self.state.dead if self.state else {}
        return {
            "name": engine.name,
            "cores": machine.cores if machine else 0,
            "memory": machine.memory if machine else 0,
            "places": machine.places if machine else 0,
            "cells": sum(r.engine == engine.name and r.state == "delivered" for r in rows),
            "lost": dead.get(engine.name, "") or self._silent.get(engine.name, ""),
        }


def _unsaid(code: int) -> dict[str, str]:
    """Return the error of a child that ended without a word."""
    if code < 0:
        return {
            "what": f"the build was killed by signal {-code}",
            "next": "look into its log, and whether the machine ran out of memory (dmesg)",
        }
    return {"what": f"the build ended with exit code {code}", "next": "look into its log"}


def _environment(
    variables: Mapping[str, str], settings: Mapping[str, str], engine: Engine
) -> dict[str, str]:
    """Return the environment of a child. Settings go there and not on its command line.

    A URL among them may hold a password, and command lines can be read by anybody.
    """
    # The report is the summary; colors and tables are for the terminal that the child has not.
    ours = {summary.FILE, "FORCE_COLOR"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return {**kept, "NO_COLOR": "1", **variables, **settings, **engine.environment}
