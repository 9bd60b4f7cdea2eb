"""What is wrong with a machine before it hurts: pure, from facts and settings to findings."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.doctor import engines, graphics, surroundings
from pipeline.doctor.finding import Finding, Level, exit_code, worst_first
from pipeline.doctor.finding import error as _error
from pipeline.doctor.fit import Advice, Subject, best, by_spec, by_tag
from pipeline.errors import Problem
from pipeline.host.machine import Machine
from pipeline.settings import Settings

__all__ = [
    "Advice",
    "Finding",
    "Level",
    "Subject",
    "best",
    "by_spec",
    "by_tag",
    "exit_code",
    "judge",
]


def judge(
    machine: Machine,
    settings: Settings,
    subject: Subject | None,
    advice: Advice | None,
    problems: Sequence[Problem] = (),
) -> list[Finding]:
    """Return all that is wrong, worst first; each with the command that mends it.

    `subject` is the image that is to run here, None for one without torch, or where `problems`,
    those of the settings, leave none; `advice` is the image that would fit.
    """
    found = [
        *(_of_settings(problem) for problem in problems),
        *graphics.judge(machine, subject, advice),
        *engines.judge(machine, settings),
        *surroundings.judge(machine, settings, simple=subject is None and not problems),
    ]
    if machine.uid == 0:
        # Where nothing but root is, sudo is often not there.
        found = [it.model_copy(update={"mend": it.mend.replace("sudo ", "")}) for it in found]
    return worst_first(found)


def _of_settings(problem: Problem) -> Finding:
    return _error(
        "settings",
        f"{problem.field}={problem.value!r}",
        problem.why,
        problem.next_step or f"set it to one of: {problem.allowed}",
        problem.source,
        stops="settings",
    )
