"""What can go wrong, each with the exit code that a script can rely on.

Nothing here is ever shown as a traceback: ``cli`` prints :meth:`CressetError.__str__` and exits
with :attr:`CressetError.exit_code`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


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

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"why: {self.why}")
        if self.next_step:
            lines.append(f"next: {self.next_step}")
        return "\n".join(lines)


class ConfigError(CressetError):
    """The settings are wrong; holds every mistake found, not only the first."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        super().__init__(f"{count} mistake{'s' if count > 1 else ''} in the settings")

    def __str__(self) -> str:
        return "\n".join([f"{self.what}:", *map(str, self.problems)])


class EngineError(CressetError):
    """No engine could be reached or started, or it was lost."""

    exit_code = 4


class BuildError(CressetError):
    """A stage failed; ``stage``, ``command`` and ``command_exit_code`` say where, if known."""

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

    def __str__(self) -> str:
        lines = [self.what]
        if self.command:
            lines.append(f"command: {self.command}")
        if self.command_exit_code is not None:
            lines.append(f"exit code: {self.command_exit_code}")
        if self.tail:
            lines.append("last lines:")
            lines += [f"    {line}" for line in self.tail.splitlines()]
        if self.why:
            lines.append(f"why: {self.why}")
        if self.next_step:
            lines.append(f"next: {self.next_step}")
        return "\n".join(lines)


class VerifyError(CressetError):
    """The built image is not what the spec says; nothing was delivered."""

    exit_code = 6

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(
            f"the image failed {len(self.problems)} of its checks; nothing was delivered"
        )

    def __str__(self) -> str:
        return "\n".join([f"{self.what}:", *map(str, self.problems)])


class PublishError(CressetError):
    """The image is good but could not be delivered."""

    exit_code = 7


class Interrupted(CressetError):
    """Ctrl-C; the exit code is the one shells give it (128 + SIGINT)."""

    exit_code = 130
