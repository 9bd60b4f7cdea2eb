"""What a person and a program see of a matrix: the cells while they run, and the report after."""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TextIO

import platformdirs

from pipeline.host import whole

_REPORT: Final = "report.json"
_KEEP_RUNS: Final = 20
# Longer than a run may take; one that was killed never says that it ended.
_FORGOTTEN_SECONDS: Final = 14 * 86400
_STAGE: Final = re.compile(r"([a-z]+(?:-[a-z]+)*): (running|cached|done|failed)\b ?(.*)")

# States beside those of a cell that was handed out (pipeline.fleet.handout.Outcome).
WAITING, BUILDING, THERE, INTERRUPTED, UNFINISHED = (
    "waiting", "building", "there already", "interrupted", "unfinished",
)  # fmt: skip
GOOD: Final = frozenset({"delivered", THERE})


@dataclass
class Row:
    """A cell in the report."""

    variant: str
    target: str
    key: str
    destination: str = ""
    """Where it goes, in words."""
    state: str = WAITING
    engine: str = ""
    began: float = 0.0
    took: float = 0.0
    """Seconds of the last time it was handed out."""
    stage: str = ""
    last: str = ""
    code: int = 0
    why: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)
    """What a build prints as JSON."""
    error: Mapping[str, Any] = field(default_factory=dict)
    log: str = ""
    command: str = ""
    """What builds it again, of one that is not delivered."""

    def told(self, line: str) -> None:
        """Take a line of the log of its build."""
        if match := _STAGE.match(line):
            self.stage, self.last = match[1], match[3]

    def as_json(self) -> dict[str, Any]:
        """Return it as the report has it."""
        return {
            **self.result,
            "variant": self.variant,
            "target": self.target,
            "key": self.key,
            "destination": self.destination,
            "state": self.state,
            "engine": self.engine,
            "took": round(self.took, 1),
            "exit_code": self.code,
            "why": self.why,
            "error": self.error or None,
            "log": self.log,
            "command": self.command,
        }


class View(Protocol):
    """How cells are shown."""

    def changed(self, row: Row) -> None: ...
    def note(self, text: str) -> None: ...
    def beat(self) -> None: ...
    def close(self) -> None: ...


class Plain:
    """A line when a cell starts and ends, and now and then one of each that is being built."""

    def __init__(self, out: TextIO, rows: Sequence[Row]) -> None:
        self._out, self._rows = out, rows

    def changed(self, row: Row) -> None:
        at = f" by {row.engine}" if row.engine else ""
        took = f" after {row.took:.0f} s" if row.took and row.state != BUILDING else ""
        why = f" ({row.why})" if row.why else ""
        self.note(f"{row.variant}: {row.state}{at}{took}{why}")

    def note(self, text: str) -> None:
        self._out.write(f"{text}\n")
        self._out.flush()

    def beat(self) -> None:
        for row in self._rows:
            if row.state == BUILDING:
                seconds = time.monotonic() - row.began
                self.note(f"{row.variant}: {row.stage} {seconds:.0f} s  {row.last[:80]}".rstrip())

    def close(self) -> None:
        pass


class Live:
    """A table that is drawn over itself: what runs, what failed, and how many are left."""

    def __init__(self, console: Any, rows: Sequence[Row]) -> None:  # noqa: ANN401 - rich's Console
        from rich.live import Live as Drawn  # noqa: PLC0415 - only where there is a terminal

        self._rows, self._console = rows, console
        self._live = Drawn(console=console, get_renderable=self._table, refresh_per_second=4)
        self._live.start()

    def _table(self) -> Any:  # noqa: ANN401 - rich's Table
        from rich.table import Table  # noqa: PLC0415 - as above
        from rich.text import Text  # noqa: PLC0415

        table = Table.grid(padding=(0, 2))
        # What does not fit on the screen would not be drawn over but scrolled away.
        shown = [row for row in self._rows if row.state not in (WAITING, *GOOD)]
        for row in shown[: max(3, self._console.height - 4)]:
            building = row.state == BUILDING
            seconds = time.monotonic() - row.began if building else row.took
            style = "bold cyan" if building else "bold red"
            table.add_row(
                row.variant,
                Text(row.state, style=style),
                Text(f"{seconds:.0f} s", justify="right"),
                row.engine,
                Text(f"{row.stage} {row.last}"[:50] if building else row.why[:50], style="dim"),
            )
        good = sum(row.state in GOOD for row in self._rows)
        left = sum(row.state == WAITING for row in self._rows)
        table.add_row(Text(f"{good} delivered, {left} waiting, {len(self._rows)} in all"))
        return table

    def changed(self, row: Row) -> None: ...

    def note(self, text: str) -> None:
        from rich.text import Text  # noqa: PLC0415 - as above

        self._live.console.print(Text(text))

    def beat(self) -> None: ...

    def close(self) -> None:
        self._live.stop()


def view(rows: Sequence[Row]) -> View:
    """Return the table on a terminal, plain lines elsewhere."""
    import sys  # noqa: PLC0415 - whose stderr a test replaces

    from rich.console import Console  # noqa: PLC0415 - a matrix with nothing to do draws nothing

    console = Console(stderr=True)
    if console.is_terminal and not console.no_color:
        return Live(console, rows)
    return Plain(sys.stderr, rows)


@dataclass(frozen=True)
class Report:
    """How a matrix ended."""

    rows: Sequence[Row]
    engines: Sequence[Mapping[str, Any]]
    seconds: float
    exit_code: int

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints, and what is kept in the state folder."""
        return {
            "cells": [row.as_json() for row in self.rows],
            "engines": list(self.engines),
            "seconds": round(self.seconds, 1),
            "exit_code": self.exit_code,
        }

    def lines(self) -> list[str]:
        """Return it for a person: each cell, then what to do about those that are not delivered."""
        width = max((len(row.variant) for row in self.rows), default=0)
        lines = []
        for row in self.rows:
            parts = [f"{row.variant:<{width}}  {row.state:<13}  {row.took:6.0f} s  {row.engine}"]
            parts += [_compiled(it) for it in row.result.get("compiled", ())]
            if row.result.get("digest"):
                parts.append(str(row.result["digest"])[:19])
            lines.append("  ".join(parts).rstrip())
        for row in self.rows:
            if row.state in GOOD:
                continue
            why = row.why or row.error.get("what", "")
            lines += ["", f"{row.variant}: {row.state}, exit code {row.code}: {why}"]
            lines += [f"    {line}" for line in row.error.get("details", ())]
            more = {name: row.error.get(name, "") for name in ("why", "next", "stage")}
            more |= {"log": row.log, "again": row.command}
            lines += [f"    {name}: {text}" for name, text in more.items() if text]
        good = sum(row.state in GOOD for row in self.rows)
        by = ", ".join(f"{it['name']} {it['cells']}" for it in self.engines)
        lines += ["", f"{good} of {len(self.rows)} delivered in {self.seconds:.0f} s"]
        if by:
            lines[-1] += f"; cells by engine: {by}"
        return lines


def _compiled(wheel: Mapping[str, Any]) -> str:
    from pipeline.summary import compiled  # noqa: PLC0415 - one wording for both

    return compiled(wheel)


def folder() -> Path:
    """Return the folder in which runs of matrices are kept, newest last by name."""
    return platformdirs.user_state_path("cresset") / "matrix"


def new_run() -> Path:
    """Return the folder of a new run; the oldest go, but for those that may run still.

    OSError where it cannot be made.
    """
    now = datetime.datetime.now(tz=datetime.UTC).astimezone()
    run = folder() / f"{now:%Y%m%d-%H%M%S-%f}"
    run.mkdir(parents=True)
    for old in sorted(folder().iterdir())[:-_KEEP_RUNS]:
        if _is_over(old):
            shutil.rmtree(old, ignore_errors=True)
    return run


def _is_over(run: Path) -> bool:
    """Say whether a run has ended, or has written nothing anew for so long that it must have."""
    with contextlib.suppress(OSError):  # somebody else was faster
        forgotten = run.stat().st_mtime < time.time() - _FORGOTTEN_SECONDS
        return forgotten or (run / _REPORT).exists()
    return False


def keep(run: Path, report: Report) -> Path:
    """Write the report into the folder of its run, whole or not at all; return its file."""
    file = run / _REPORT
    whole.write(file, json.dumps(report.as_json(), indent=1))
    return file


def last_delivered() -> dict[tuple[str, str], dict[str, Any]]:
    """Return the cells that the last run on record delivered or found, by key and destination."""
    for file in sorted(folder().glob(f"*/{_REPORT}"), reverse=True):
        try:
            cells = json.loads(file.read_text())["cells"]
            return {
                (cell["key"], cell["destination"]): cell for cell in cells if cell["state"] in GOOD
            }
        except (OSError, ValueError, KeyError, TypeError):
            continue  # of another version
    return {}


def command(variant: str, words: Sequence[str]) -> str:
    """Return the command that builds one cell of the matrix again."""
    return shlex.join(
        ["python", "-m", "pipeline", "build-only", "--matrix", "--only", variant, *words]
    )
