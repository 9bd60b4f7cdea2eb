"""What can go wrong, each with the exit code that a script can rely on.

Nothing here is ever shown as a traceback: ``cli`` prints :meth:`CressetError.__str__` and exits
with :attr:`CressetError.exit_code`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True)
class Problem:
    """One mistake: the field, what it holds, what is allowed, why, and the next thing to do."""

    field: str
    value: str
    why: str
    allowed: str = ""
    next_step: str = ""
    source: str = ""

    def __str__(self) -> str:
        lines = [f"{self.field}={self.value!r}: {self.why}"]
        for label, text in (
            ("allowed", self.allowed),
            ("next", self.next_step),
            ("source", self.source),
        ):
            if text:
                lines.append(f"    {label}: {text}")
        return "\n".join(lines)


class CressetError(Exception):
    """An end that the user is told of in words: what happened, why, and the next step."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, why: str = "", next_step: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.next_step = next_step
        self.stage = ""
        self.log: Path | None = None

    def details(self) -> list[str]:
        """Return the lines that stand between what happened and why."""
        return []

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints of it, under the name ``error``."""
        return {
            "what": self.what,
            "why": self.why,
            "next": self.next_step,
            "details": self.details(),
            "stage": self.stage,
            "log": str(self.log or ""),
            "exit_code": self.exit_code,
        }

    def __str__(self) -> str:
        labelled = (
            ("why", self.why),
            ("next", self.next_step),
            ("stage", self.stage),
            ("log", self.log),
        )
        return "\n".join(
            [
                self.what,
                *self.details(),
                *(f"{label}: {text}" for label, text in labelled if text),
            ]
        )


class ConfigError(CressetError):
    """The settings are wrong; holds every mistake found, not only the first."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        super().__init__(f"{count} mistake{'s' if count > 1 else ''} in the settings:")

    def details(self) -> list[str]:
        return [str(problem) for problem in self.problems]


class NothingSelected(CressetError):
    """What was asked for by name or pattern leaves nothing to do."""

    exit_code = 3


class EngineError(CressetError):
    """No engine could be reached or started, or it was lost."""

    exit_code = 4


class BuildError(CressetError):
    """A stage failed; with the command, its exit code and its last lines, where there is one."""

    exit_code = 5

    def __init__(
        self,
        what: str,
        *,
        why: str = "",
        next_step: str = "",
        command: str = "",
        command_exit_code: int | None = None,
        tail: str = "",
    ) -> None:
        super().__init__(what, why=why, next_step=next_step)
        self.command = command
        self.command_exit_code = command_exit_code
        self.tail = tail

    def details(self) -> list[str]:
        lines = [f"command: {self.command}"] if self.command else []
        if self.command_exit_code is not None:
            lines.append(f"exit code: {self.command_exit_code}")
        if self.tail:
            lines += ["last lines:", *(f"    {line}" for line in self.tail.splitlines())]
        return lines


class VerifyError(CressetError):
    """The built image is not what the spec says; nothing was delivered."""

    exit_code = 6

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        super().__init__(f"the image failed {count} of its checks, and nothing was delivered:")

    def details(self) -> list[str]:
        return [str(problem) for problem in self.problems]


class ProofError(CressetError):
    """An image is not proved to be what it is said to be; every check that failed is named."""

    exit_code = 6

    def __init__(self, image: str, problems: Sequence[Problem], next_step: str = "") -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        checks = "check" if count == 1 else "checks"
        super().__init__(f"{image} failed {count} {checks}:", next_step=next_step)

    def details(self) -> list[str]:
        return [str(problem) for problem in self.problems]


class BundleError(CressetError):
    """A bundle is not there, not whole, damaged, or lacks what is asked of it."""

    exit_code = 6


class PublishError(CressetError):
    """The image is good but could not be delivered."""

    exit_code = 7


class Unfinished(CressetError):
    """The deadline came before the end of a compile; what is compiled so far is kept."""

    exit_code = 8


class ComposeError(CressetError):
    """Docker or Compose is not there, or did not do what it was asked."""

    exit_code = 9


class Interrupted(CressetError):
    """Ctrl-C; the exit code is the one shells give it (128 + SIGINT)."""

    exit_code = 130


class Terminated(Interrupted):
    """A service manager's or CI's way to end it; the exit code is the shells' (128 + SIGTERM)."""

    exit_code = 143


_terminated = threading.Event()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Turn Ctrl-C, and SIGTERM, into an end that says what is left and how to go on."""

    def terminate(_number: int, _frame: object) -> None:
        _terminated.set()
        # A script's background jobs, and those of nohup, ignore Ctrl-C, and hear SIGTERM (issue 6).
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            raise KeyboardInterrupt
        # asyncio, and all that cleans up, knows what to do at a Ctrl-C.
        signal.raise_signal(signal.SIGINT)

    # Only the main thread may, and only where nobody else has a use for it.
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if ours:
        signal.signal(signal.SIGTERM, terminate)
        # No terminal's Ctrl-C reaches who leads a session: a child, which is told by it of its end.
        if os.getsid(0) == os.getpid() and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        kind = Terminated if _terminated.is_set() else Interrupted
        raise kind(
            "stopped; what is finished stays in the engine's cache",
            next_step="run the same command again to go on",
        ) from None
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _terminated.clear()
