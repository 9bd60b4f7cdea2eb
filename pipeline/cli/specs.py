"""From the command line to specs: of one image, or of the cells of a matrix; held to the lock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pipeline.errors import Problem
    from pipeline.lock import Asked, Lock, Mode
    from pipeline.matrix import Cell, Matrix
    from pipeline.settings import Loaded, Settings
    from pipeline.spec import ImageSpec
    from pipeline.validate_source import Resolve


def mode_of(locked: bool, frozen: bool) -> Mode:
    """Return how a build is held to the lock; ConfigError for both ways at once."""
    from pipeline.errors import ConfigError, Problem

    if locked and frozen:
        why = "the one refuses what has moved, the other does not ask"
        raise ConfigError([Problem("--locked", "--frozen", why, allowed="one of them")])
    return "locked" if locked else "frozen" if frozen else ""


@dataclass(eq=False)
class Branches:
    """Answers for a branch or tag with its commit, and keeps what it has answered.

    What the lock has is not asked for; without `ask` nothing is.
    """

    ask: Resolve | None
    lock: Lock | None = None
    commits: dict[tuple[str, str], str] = field(default_factory=dict)
    """By URL and name."""

    def __call__(self, url: str, ref: str) -> str | Problem:
        """Return the commit, or why there is none."""
        from pipeline.errors import Problem
        from pipeline.lock import resolver

        answer: str | Problem | None = resolver(self.lock)(url, ref) if self.lock else None
        if self.ask and (answer is None or isinstance(answer, Problem)):
            answer = self.ask(url, ref)
        assert answer is not None, "somebody is asked"
        if not isinstance(answer, Problem):
            self.commits[url, ref] = answer
        return answer


def commit_of(settings: Settings) -> Resolve:
    """Return what asks a repository, or its mirror, where a branch or tag stands."""
    from pipeline.host import repository

    mirror = (settings.git_old, settings.git_new)
    return lambda url, ref: repository.commit(url, ref, mirror)


# One image


def spec_of(
    flags: dict[str, str],
    target: str,
    *,
    wheels_only: bool = False,
    mode: Mode = "",
    strict: bool = False,
) -> tuple[Settings, ImageSpec]:
    """Return the settings and their spec, held to the lock where a mode says so.

    With `strict` it is an error where nobody could be asked whether something has moved.

    Raises:
        ConfigError: every mistake in the settings.
        LockError: the lock is of something else, or something has moved.

    """
    from pipeline import lock as locks

    if not mode:
        asked = asked_of(flags, target, wheels_only=wheels_only)
        return asked.settings, asked.spec
    lock = locks.read()
    asked = asked_of(flags, target, wheels_only=wheels_only, lock=lock, ask=False)
    spec = locks.held(asked.spec, lock, image=not wheels_only)
    if mode == "locked":
        refuse_drift(asked, lock, strict=strict)
    return asked.settings, spec


def asked_of(
    flags: dict[str, str],
    target: str,
    *,
    wheels_only: bool = False,
    lock: Lock | None = None,
    ask: bool = True,
) -> Asked:
    """Return the spec of the settings, and each branch in it with its commit.

    What a `lock` has of them is not asked for; without `ask` nothing is.
    """
    from pipeline import settings, validate, validate_source
    from pipeline.host import ca
    from pipeline.host.gpu import capabilities
    from pipeline.lock import Asked

    loaded = settings.load(flags)
    for note in loaded.notes:
        typer.echo(f"note: {note}", err=True)
    ca.trust(loaded.settings.ca_bundle)
    branches = Branches(commit_of(loaded.settings) if ask else None, lock)
    spec = validate.image_spec(
        loaded.settings,
        target,
        gpus=capabilities,
        resolve=branches,
        problems=loaded.problems,
        wheels_only=wheels_only,
    )
    for note in validate_source.unread(loaded.settings, spec):
        typer.echo(f"note: {note}", err=True)
    return Asked(spec, loaded.settings, branches.commits)


def refuse_drift(asked: Asked, lock: Lock, *, strict: bool) -> None:
    """Refuse what has moved since it was locked; with `strict`, also what could not be asked.

    Raises:
        LockError: what has moved.
        PublishError: with `strict`, that nobody knows.

    """
    from pipeline import lock as locks
    from pipeline import publish
    from pipeline.errors import PublishError

    moved, unasked = locks.drift(
        asked.spec,
        lock,
        [*asked.branches, *locks.tags(asked.spec)],
        digest=publish.digest,
        commit=commit_of(asked.settings),
    )
    for text in unasked:
        typer.echo(f"note: nobody knows whether it has moved: {text}", err=True)
    if moved:
        raise locks.LockError(moved)
    if strict and unasked:
        raise PublishError(
            "whether something has moved is not known",
            why="; ".join(map(str, unasked)),
            next_step="run it again where they answer",
        )


# A matrix


@dataclass(frozen=True)
class Planned:
    """The cells of a matrix on top of the user's settings."""

    settings: Settings
    cells: tuple[Cell, ...]
    branches: Branches
    """Of all cells."""

    @property
    def asked(self) -> list[Asked]:
        """Each cell as an image that a lock is to hold."""
        from pipeline.lock import Asked
        from pipeline.matrix import applied

        return [
            Asked(cell.spec, applied(self.settings, cell.settings), self.branches.commits)
            for cell in self.cells
        ]


def cells_of(
    flags: dict[str, str], file: Path, only: Sequence[str], skip: Sequence[str], mode: Mode = ""
) -> Planned:
    """Return the cells that are left by the globs, held to the lock where a mode says so.

    Whether something has moved is not asked: the build of each cell does.

    Raises:
        ConfigError: every mistake in the settings and in the file.
        NothingSelected: no cell is left.
        LockError: the lock is of something else.

    """
    from dataclasses import replace

    from pipeline import lock as locks
    from pipeline import matrix

    if not mode:
        return planned(flags, file, only, skip)
    lock = locks.read()
    found = planned(flags, file, only, skip, lock=lock, ask=False)
    return replace(found, cells=matrix.held(found.cells, lock))


def planned(
    flags: dict[str, str],
    file: Path,
    only: Sequence[str],
    skip: Sequence[str],
    *,
    lock: Lock | None = None,
    ask: bool = True,
) -> Planned:
    """Return the cells that are left by the globs, held to nothing yet.

    What a `lock` has of their branches is not asked for; without `ask` nothing is.

    Raises:
        ConfigError: every mistake in the settings and in the file.
        NothingSelected: no cell is left.

    """
    from pipeline import matrix as planning
    from pipeline import settings
    from pipeline.errors import ConfigError
    from pipeline.host import ca
    from pipeline.host.gpu import capabilities

    loaded = settings.load(flags)
    for note in loaded.notes:
        typer.echo(f"note: {note}", err=True)
    read = planning.read(file)
    problems = [*loaded.problems, *_overruled(loaded, read)]
    if problems:
        raise ConfigError(problems)
    ca.trust(loaded.settings.ca_bundle)
    for note in _from_here(loaded, read):
        typer.echo(f"note: {note}", err=True)
    branches = Branches(commit_of(loaded.settings) if ask else None, lock)
    found = planning.cells(read, loaded.settings, gpus=capabilities, resolve=branches)
    return Planned(loaded.settings, planning.select(found, only, skip), branches)


def _overruled(loaded: Loaded, read: Matrix) -> list[Problem]:
    """Return the problems of options that would change nothing, for the file sets the same."""
    from pipeline.errors import Problem
    from pipeline.settings import Origin, shown

    return [
        Problem(
            f"--{name.lower().replace('_', '-')}",
            shown(getattr(loaded.settings, name.lower()), name),
            f"{read.file} sets {name} itself, so this would change nothing",
            next_step="choose images by --only and --skip, or build one by `build`",
        )
        for name in sorted(read.names)
        if loaded.origins[name] is Origin.FLAG
    ]


def _from_here(loaded: Loaded, read: Matrix) -> list[str]:
    """Return what this machine sets that is part of every image which does not set it itself."""
    from pipeline.settings import BASE, IMAGE, NAMES, SOURCES, Origin, group_of

    return [
        f"{name} is from {loaded.origins[name]}, and part of every image that {read.file} does not "
        "set it for"
        for name, field in NAMES.items()
        if group_of(field) in {IMAGE, BASE, SOURCES}
        and loaded.origins[name] in {Origin.SHELL, Origin.FILE}
        and name not in read.settings
    ]
