"""What a person sees of the work: stages on a terminal, plain lines elsewhere, a log of it all."""

from __future__ import annotations

import contextlib
import datetime
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol, TextIO

from platformdirs import user_state_path
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.errors import CressetError

_KEEP_LOGS: Final = 20
_HEARTBEAT_SECONDS: Final = 20.0
TAIL_LINES: Final = 40


class State(StrEnum):
    """How a stage stands; ``cached`` is a stage that ended without running anything."""

    WAITING = "waiting"
    RUNNING = "running"
    CACHED = "cached"
    DONE = "done"
    FAILED = "failed"


@dataclass
class Stage:
    """One row of the report."""

    name: str
    state: State = State.WAITING
    started: float = 0.0
    seconds: float = 0.0
    in_engine: bool = True
    worked: int = 0
    """Steps of the engine's that were not in its cache."""
    last_line: str = ""

    def elapsed(self) -> float:
        """Return the seconds it has run, or took."""
        return time.monotonic() - self.started if self.state is State.RUNNING else self.seconds


class View(Protocol):
    """How stages are shown; called with the report's lock held."""

    def changed(self, stage: Stage) -> None: ...
    def note(self, text: str) -> None: ...
    def beat(self, stage: Stage) -> None: ...
    def close(self) -> None: ...


class PlainView:
    """A line when a stage starts and ends, and now and then one in between."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def changed(self, stage: Stage) -> None:
        took = "" if stage.state is State.RUNNING else f" {stage.seconds:.1f} s"
        self.note(f"{stage.name}: {stage.state}{took}")

    def note(self, text: str) -> None:
        self._out.write(f"{text}\n")
        self._out.flush()

    def beat(self, stage: Stage) -> None:
        self.note(f"{stage.name}: {stage.state} {stage.elapsed():.0f} s  {stage.last_line[:100]}")

    def close(self) -> None:
        pass


_STYLES = {
    State.WAITING: "dim",
    State.RUNNING: "bold cyan",
    State.CACHED: "dim green",
    State.DONE: "green",
    State.FAILED: "bold red",
}


class LiveView:
    """A table that is drawn over itself."""

    def __init__(self, console: Console, stages: Sequence[Stage]) -> None:
        self._stages = stages
        self._console = console
        self._live = Live(
            console=console, get_renderable=self._table, refresh_per_second=4, transient=False
        )
        self._live.start()

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for stage in self._stages:
            seconds = "" if stage.state is State.WAITING else f"{stage.elapsed():.1f} s"
            last = stage.last_line if stage.state is State.RUNNING else ""
            table.add_row(
                stage.name,
                Text(stage.state, style=_STYLES[stage.state]),
                Text(seconds, justify="right"),
                Text(last[: max(20, self._console.width - 40)], style="dim", no_wrap=True),
            )
        return table

    def changed(self, stage: Stage) -> None: ...

    def note(self, text: str) -> None:
        self._live.console.print(Text(text))

    def beat(self, stage: Stage) -> None: ...

    def close(self) -> None:
        self._live.stop()


@dataclass
class Report:
    """Keeps the stages of one run, writes its log, and tells the view."""

    log: Path
    stages: list[Stage]
    view: View
    stream: TextIO
    """The log, for programs that write into it themselves."""
    watched: bool = False
    """Whether the engine tells what it does; without that, nothing is said to be cached."""
    _current: Stage | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @contextlib.contextmanager
    def stage(self, name: str, *, in_engine: bool = True) -> Iterator[None]:
        """Show the stage as running while the context is open, and how it ended after.

        A stage that is not `in_engine` is never cached, and what the engine says is not its output.
        """
        stage = next(stage for stage in self.stages if stage.name == name)
        with self._lock:
            stage.started, stage.state, self._current = time.monotonic(), State.RUNNING, stage
            stage.in_engine = in_engine
            self._write(f"=== {name}\n")
            self.view.changed(stage)
        state = State.FAILED
        try:
            yield
            known = in_engine and self.watched
            state = State.CACHED if known and not stage.worked else State.DONE
        except CressetError as error:
            error.stage, error.log = name, self.log
            raise
        finally:
            with self._lock:
                stage.seconds = stage.elapsed()
                stage.state, self._current = state, None
                self._write(f"\n=== {name}: {state} after {stage.seconds:.1f} s\n")
                self.view.changed(stage)

    def note(self, text: str) -> None:
        """Show a line of its own."""
        with self._lock:
            self._write(f"{text}\n")
            self.view.note(text)

    def output(self, text: str) -> None:
        """Take a piece of a command's output: into the log, its last line onto the screen."""
        with self._lock:
            self._write(text)
            if self._current is not None and not self._current.in_engine:
                return
            lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
            if lines and self._current is not None:
                self._current.last_line = lines[-1].strip()

    def say(self, line: str) -> None:
        """Take one whole line of what this machine does itself."""
        with self._lock:
            self._write(f"{line}\n")
            if self._current is not None:
                self._current.last_line = line

    def ran(self, step: str) -> None:
        """Count a step of the engine's that was not in its cache."""
        with self._lock:
            self._write(f"--- {step}\n")
            if self._current is not None:
                self._current.worked += 1

    def beat(self) -> None:
        """Give a sign of life of a stage that is running."""
        with self._lock:
            if self._current is not None:
                self.view.beat(self._current)

    def seconds(self) -> dict[str, float]:
        """Return what each stage took, in seconds."""
        return {stage.name: round(stage.seconds, 2) for stage in self.stages}

    def cached(self) -> list[str]:
        """Return the stages that ran nothing."""
        return [stage.name for stage in self.stages if stage.state is State.CACHED]

    def _write(self, text: str) -> None:
        # A full disk must not hide the error that says so.
        with contextlib.suppress(OSError):
            self.stream.write(text)
            self.stream.flush()


@contextlib.contextmanager
def reporting(verb: str, stages: Sequence[str], console: Console | None = None) -> Iterator[Report]:
    """Open a report with a log file of its own, and say where the log is."""
    console = console or Console(stderr=True)
    path = _new_log(verb)
    rows = [Stage(name) for name in stages]
    live = console.is_terminal and not console.no_color
    # Said before the table is drawn, so that it stands above it whatever comes.
    console.print(Text(f"log: {path}", style="dim"), soft_wrap=True)
    view: View = LiveView(console, rows) if live else PlainView(sys.stderr)
    stop = threading.Event()
    file = path.open("w")
    report = Report(path, rows, view, file)
    heart = threading.Thread(target=_heartbeat, args=(report, stop), daemon=True)
    heart.start()
    try:
        yield report
    finally:
        stop.set()
        heart.join()
        view.close()
        with contextlib.suppress(OSError):
            file.close()


def _new_log(verb: str) -> Path:
    """Return an empty log file, and throw the oldest away."""
    folder = user_state_path("cresset") / "logs"
    now = datetime.datetime.now(tz=datetime.UTC).astimezone()
    path = folder / f"{now:%Y%m%d-%H%M%S-%f}-{verb}.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in sorted(folder.glob("*.log"), key=_modified)[: -_KEEP_LOGS + 1]:
            old.unlink(missing_ok=True)
        path.touch()
    except OSError as error:
        raise CressetError(
            f"the log {path} cannot be written",
            why=str(error.strerror),
            next_step="free disk space, or name another folder in XDG_STATE_HOME",
        ) from error
    return path


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another build has just thrown it away
        return 0.0


def _heartbeat(report: Report, stop: threading.Event) -> None:
    while not stop.wait(_HEARTBEAT_SECONDS):
        report.beat()


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """Return the last lines of a log file."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
