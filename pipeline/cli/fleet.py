"""Building a whole matrix, and the step summary of any build."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from pipeline.build import Outcome
    from pipeline.fleet.build import Options, Wanted
    from pipeline.lock import Mode
    from pipeline.spec import ImageSpec


@dataclass(frozen=True)
class Asked:
    """The options of a matrix."""

    only: tuple[str, ...]
    skip: tuple[str, ...]
    file: Path
    resume: bool
    force: bool
    pull: bool
    dry_run: bool
    as_json: bool
    mode: Mode

    @property
    def held(self) -> tuple[str, ...]:
        """The option that holds a build to the lock, if one does."""
        return (f"--{self.mode}",) if self.mode else ()


def build_matrix(flags: dict[str, str], asked: Asked, until: float) -> None:
    """Build the cells of a matrix; print the references of what is delivered.

    Raises:
        ConfigError: the settings or the matrix are wrong, or the lock is of something else.
        NothingSelected: no cell is left.
        typer.Exit: a cell was not delivered; with the exit code of the worst.

    """
    from pipeline import publish
    from pipeline.cli.specs import cells_of
    from pipeline.errors import interruptible
    from pipeline.fleet import build as fleet
    from pipeline.matrix import applied
    from pipeline.validate_source import at_commits

    planned = cells_of(flags, asked.file, asked.only, asked.skip, asked.mode)
    settings = planned.settings
    # Once for all that go to the same place: whether Docker answers can take seconds.
    destination = functools.cache(publish.destination)
    # A branch may move before its cell is built, which then were not the one that is planned here.
    # One of a lock does not, and whether it has moved since is for the build to ask.
    commits = {} if asked.mode else planned.branches.commits
    wanted = [
        fleet.Wanted(
            replace(cell, settings={**cell.settings, **at_commits(own, commits)}),
            own,
            destination(own.registry, own.image_name),
        )
        for cell in planned.cells
        for own in [applied(settings, cell.settings)]
    ]
    given = {name: value for name, value in flags.items() if value}
    options = fleet.Options(
        variables=given,
        arguments=("--leave-env", *(["--force"] if asked.force else []),
                   *(["--pull"] if asked.pull else []), *asked.held),
        words=_words(given, asked),
        until=until,
        resume=asked.resume,
        force=asked.force or asked.pull,
    )  # fmt: skip
    if asked.dry_run:
        _print_planned(wanted, options, asked)
        return
    with interruptible():
        report = fleet.build(wanted, settings, options)
    for line in report.lines():
        typer.echo(line, err=True)
    if asked.as_json:
        typer.echo(json.dumps(report.as_json()))
    else:
        for row in report.rows:
            if row.result.get("ref"):
                typer.echo(row.result["ref"])
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def _words(given: dict[str, str], asked: Asked) -> tuple[str, ...]:
    """Return what the command of a single cell has beside its name; no password is among it."""
    from pipeline.cli.options import FILE
    from pipeline.settings import shown

    words = [*asked.held, *([] if asked.file == FILE else ["--file", str(asked.file)])]
    for name, value in given.items():
        words += [f"--{name.lower().replace('_', '-')}", shown(value, name)]
    return tuple(words)


def _print_planned(wanted: Sequence[Wanted], options: Options, asked: Asked) -> None:
    from pipeline.fleet import build as fleet
    from pipeline.fleet import handout

    there = fleet.found(wanted, options)
    kept = fleet.stored([it for it in wanted if it.name not in there])
    rows: list[dict[str, Any]] = []
    for it in wanted:
        job = handout.job(it.cell.spec)
        compiles = sorted(it.partition(":")[0] for it in job.wheels - kept)
        rows.append(
            {
                "variant": it.name,
                "key": it.cell.key,
                "destination": it.where.name,
                "there": it.name in there,
                "proof": there.get(it.name, {}).get("proof", ""),
                "compiles": [] if it.name in there else compiles,
            }
        )
    if asked.as_json:
        typer.echo(json.dumps({"cells": rows}))
        return
    width = max((len(it.name) for it in wanted), default=0)
    for row in rows:
        what = "there already" if row["there"] else "would be built"
        if row["proof"] == fleet.TO_ATTACH:
            what += ", and its proof would be attached"
        more = f", compiling {', '.join(row['compiles'])}" if row["compiles"] else ""
        typer.echo(f"{row['variant']:<{width}}  {row['key'][:12]}  {what}{more}")


@contextlib.contextmanager
def summarized(spec: ImageSpec) -> Iterator[None]:
    """Put a build that fails into the step summary of GitHub Actions."""
    from pipeline import summary
    from pipeline.errors import CressetError

    try:
        yield
    except CressetError as error:
        row = {"variant": spec.variant, "state": "failed", "error": error.as_json()}
        summary.append(f"{spec.variant} is not built", [row])
        raise


def summarize(outcome: Outcome, *, there: bool) -> None:
    """Put a build into the step summary of GitHub Actions."""
    from pipeline import summary

    state, took = ("there already", 0.0) if there else ("delivered", sum(outcome.seconds.values()))
    row = {**outcome.as_json(), "state": state, "took": took}
    summary.append(f"{outcome.spec.variant} is {state}", [row])
