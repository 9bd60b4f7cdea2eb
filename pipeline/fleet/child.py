"""One cell as a process of its own: started, followed, and ended in good order."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio
from anyio.abc import Process

# What a child and the engine may take to end a session: the client's own farewell is 30 s.
_PATIENCE: Final = ((signal.SIGINT, 45.0), (signal.SIGTERM, 15.0), (signal.SIGKILL, 15.0))
_LOOK_SECONDS: Final = 0.5


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, and what it printed as JSON."""

    code: int
    seconds: float
    said: Mapping[str, Any]


async def run(
    argv: Sequence[str], env: Mapping[str, str], log: Path, told: Callable[[str], None]
) -> Ended:
    """Run a child to its end; `told` gets the last line of its log whenever there is a new one.

    Its log is what it writes to standard error; the JSON stays beside it. A child whose wait is
    cancelled is sent SIGINT with all that it started, and killed if it does not end by that. One
    that cannot be started, as on a full disk, has ended with 1 and says why.
    """
    begun = time.monotonic()
    printed = log.with_suffix(".json")
    try:
        with log.open("wb") as err, printed.open("wb") as out:
            # A group of its own: a terminal's Ctrl-C comes to us, and is handed on once.
            process = await anyio.open_process(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=env,
                start_new_session=True,
            )
    except OSError as error:
        return Ended(1, time.monotonic() - begun, {"error": _unstarted(error, log)})
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(_follow, log, told)
            code = await process.wait()
            group.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await _end(process)
    said: dict[str, Any] = {}
    with contextlib.suppress(ValueError, OSError):
        said = json.loads(printed.read_text())
    return Ended(code, time.monotonic() - begun, said)


def _unstarted(error: OSError, log: Path) -> dict[str, str]:
    return {
        "what": "no process could be started for it",
        "why": str(error),
        "next": f"make room in {log.parent} and in the memory, and run it again",
    }


async def _follow(log: Path, told: Callable[[str], None]) -> None:
    # Nobody is told then; the child and its log go on.
    with contextlib.suppress(OSError), log.open(errors="replace") as written:
        while True:
            lines = [line for line in written.read().splitlines() if line.strip()]
            for line in lines:
                told(line)
            await anyio.sleep(_LOOK_SECONDS)


async def _end(process: Process) -> None:
    """End a child that still runs, and what a killed one has left."""
    for number, seconds in _PATIENCE:
        if process.returncode is not None:
            break
        _signal(process.pid, number)
        with anyio.move_on_after(seconds):
            await process.wait()
    _signal(process.pid, signal.SIGTERM)


def end(process: subprocess.Popen[str]) -> None:
    """Do the same where nothing else goes on; the child leads a group of its own."""
    for number, seconds in _PATIENCE:
        if process.poll() is not None:
            break
        _signal(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    _signal(process.pid, signal.SIGTERM)


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)
