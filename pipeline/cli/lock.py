"""The verb that writes cresset.lock: lock."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import (
    FILE,
    PANEL,
    AsJson,
    DryRun,
    File,
    Only,
    Skip,
    check_matrix_options,
    takes_settings,
)

if TYPE_CHECKING:
    from pipeline.lock import Asked, Lock
    from pipeline.settings import Settings
    from pipeline.spec import ImageSpec

Matrix = Annotated[
    bool, typer.Option("--matrix", help="Lock every image of images.toml, for build --matrix.")
]


def add_to(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(rich_help_panel=PANEL)(takes_settings(lock))


def lock(
    flags: dict[str, str],
    targets: Annotated[
        list[str] | None, typer.Argument(help="train, simple, or both; default: SERVICE.")
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Ask everything anew, and show what moves.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; refuse what has moved.")
    ] = False,
    matrix: Matrix = False,
    only: Only = None,
    skip: Skip = None,
    file: File = FILE,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Write down in cresset.lock what the image is made of, for builds with --locked."""
    from pipeline import lock as locks
    from pipeline import relock
    from pipeline.cli.specs import commit_of
    from pipeline.errors import ConfigError, Problem

    check_matrix_options(targets or (), matrix=matrix, only=only, skip=skip, file=file)
    wanted = _Wanted(flags, tuple(targets or ("",)), matrix, file, tuple(only or ()),
                     tuple(skip or ()))  # fmt: skip
    if check:
        if update or as_json or dry_run:
            why = "it writes nothing, and ends with 2 where something has moved"
            raise ConfigError([Problem("--check", "yes", why, next_step="leave the others out")])
        _check(wanted)
        return
    old = new = written = locks.read()
    waiting = []
    images = wanted.asked(None if update else old)
    for number, asked in enumerate(images, 1):
        done = relock.relocked(asked, new, commit_of(asked.settings), update=update)
        new = done.lock
        if done.waits:
            waiting.append(asked.spec.variant)
        # An update that ends half-way would leave one image's base beside another's old packages.
        if new != written and not update and not dry_run:
            locks.write(new)
            written = new
            if matrix:
                at = f"{number} of {len(images)}"
                typer.echo(f"{locks.FILE} has {asked.spec.variant} now, {at}", err=True)
    moves = locks.moves(old, new)
    if new != written and not dry_run:
        locks.write(new)
    for note in _waiting(waiting, new):
        typer.echo(f"note: {note}", err=True)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(it) for it in moves]))
    else:
        for it in moves:
            typer.echo(str(it))
    how = "would change" if dry_run else "changed"
    typer.echo(f"{locks.FILE}: {len(moves)} entries {how}" if moves
               else f"{locks.FILE}: nothing moves", err=True)  # fmt: skip


def _waiting(variants: Sequence[str], lock: Lock) -> list[str]:
    """Return what is to be said of images whose wheels are not compiled yet."""
    kept = [it for it in variants if it in lock.image]
    without = [it for it in variants if it not in lock.image]
    return [
        f"their wheels are not compiled yet, so {what}: {', '.join(names)}; next: "
        f"`python -m pipeline wheels --locked` with the settings of each, then `{verb}` again"
        for names, what, verb in (
            (kept, "the packages of these stay as they were", "lock --update"),
            (
                without,
                "these are locked without packages, and no build with --locked takes them",
                "lock",
            ),
        )
        if names
    ]


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """Which images are locked, as the command line says."""

    flags: dict[str, str]
    targets: Sequence[str]
    matrix: bool
    file: Path
    only: Sequence[str]
    skip: Sequence[str]

    def asked(self, lock: Lock | None) -> list[Asked]:
        """Return each image as a lock is to hold it; what `lock` has is not asked for."""
        from pipeline.cli import specs
        from pipeline.matrix import check_lockable

        if not self.matrix:
            return [specs.asked_of(self.flags, it, lock=lock) for it in self.targets]
        found = specs.planned(self.flags, self.file, self.only, self.skip, lock=lock)
        check_lockable(found.cells)
        return found.asked

    def held(self) -> list[tuple[Settings, ImageSpec]]:
        """Return each image held to the lock, of which nothing has moved as far as is known here.

        Raises:
            LockError: something has.
            PublishError: nobody knows.

        """
        from pipeline import lock as locks
        from pipeline.cli import specs

        if not self.matrix:
            return [
                specs.spec_of(self.flags, it, mode="locked", strict=True) for it in self.targets
            ]
        lock = locks.read()
        found = specs.planned(self.flags, self.file, self.only, self.skip, lock=lock, ask=False)
        for asked in found.asked:
            specs.refuse_drift(asked, lock, strict=True)
        return [(it.settings, locks.held(it.spec, lock)) for it in found.asked]


def _check(wanted: _Wanted) -> None:
    from pipeline import build as building
    from pipeline import lock as locks

    for settings, spec in wanted.held():
        building.check(spec, settings)
        typer.echo(f"{spec.variant} is as {locks.FILE} has it", err=True)
