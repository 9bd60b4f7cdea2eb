"""The verb that lists what CI builds: matrix."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import (
    FILE,
    PANEL,
    AsJson,
    File,
    Frozen,
    HeldTo,
    Only,
    Skip,
    takes_settings,
)
from pipeline.cli.specs import cells_of, mode_of

if TYPE_CHECKING:
    from pipeline.matrix import Cell
    from pipeline.settings import Settings

GITHUB_JOBS = 256
"""A matrix of GitHub makes no more jobs than these:
https://docs.github.com/en/actions/reference/limits"""


def add_to(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(rich_help_panel=PANEL)(takes_settings(matrix))


def matrix(
    flags: dict[str, str],
    file: File = FILE,
    only: Only = None,
    skip: Skip = None,
    missing: Annotated[
        bool, typer.Option("--missing", help="Only those that REGISTRY does not have.")
    ] = False,
    unsigned: Annotated[
        bool,
        typer.Option(
            "--unsigned", help="Only those that REGISTRY does not have, or that nobody has signed."
        ),
    ] = False,
    locked: HeldTo = False,
    frozen: Frozen = False,
    github: Annotated[
        bool, typer.Option("--github", help="Print a line for strategy.matrix of a workflow.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the images of images.toml, and which of them are in the registry already."""
    from pipeline.errors import ConfigError, Problem
    from pipeline.matrix import applied

    planned = cells_of(flags, file, only or (), skip or (), mode_of(locked, frozen))
    cells = planned.cells
    own = [applied(planned.settings, cell.settings) for cell in cells]
    asks = "--missing" if missing else "--unsigned" if unsigned else ""
    nowhere = [cell.variant for cell, it in zip(cells, own, strict=True) if not it.registry]
    if asks and nowhere:
        of = f"for {len(nowhere)} of {len(cells)} images, such as {nowhere[0]}"
        raise ConfigError(
            [
                Problem(
                    "REGISTRY", "", f"{asks} asks a registry what it has, and none is named {of}",
                    allowed="ghcr.io/team or localhost:5000", next_step="set REGISTRY",
                )
            ]
        )  # fmt: skip
    published = _published(cells, own)
    there = _signed(cells, own, published) if unsigned else published
    rows = [
        _row(cell, settings, it)
        for cell, settings, it, left_out in zip(cells, own, published, there, strict=True)
        if not (asks and left_out)
    ]
    if github:
        if left := len(rows[GITHUB_JOBS:]):
            typer.echo(f"note: {left} more cells than GitHub makes jobs are left out", err=True)
        typer.echo(json.dumps({"include": [_for_github(row) for row in rows[:GITHUB_JOBS]]}))
    elif as_json:
        typer.echo(json.dumps(rows))
    else:
        _print_table(rows)


def _published(cells: Sequence[Cell], own: Sequence[Settings]) -> list[bool | None]:
    """Return for each cell whether its registry has its key, None where none is named.

    `own` are the settings of each. Each repository is asked once, whatever the number of its cells.
    """
    from pipeline import publish, tags

    asked: dict[str, frozenset[str]] = {}
    answers: list[bool | None] = []
    for cell, settings in zip(cells, own, strict=True):
        if not settings.registry:
            answers.append(None)
            continue
        repository = tags.repository(settings.image_name, settings.registry)
        if repository not in asked:
            asked[repository] = frozenset(publish.published(repository))
        answers.append(tags.key_tag(cell.spec) in asked[repository])
    return answers


def _signed(
    cells: Sequence[Cell], own: Sequence[Settings], published: Sequence[bool | None]
) -> list[bool]:
    """Return for each cell whether its registry has it, and somebody has signed it."""
    from pipeline import tags
    from pipeline.attest.attached import are_signed

    places = [
        (tags.repository(it.image_name, it.registry), tags.key_tag(cell.spec))
        for cell, it in zip(cells, own, strict=True)
    ]
    there = [place for place, it in zip(places, published, strict=True) if it]
    signed = are_signed(there)
    return [place in signed for place in places]


def _row(cell: Cell, settings: Settings, published: bool | None) -> dict[str, Any]:
    from pipeline import tags

    return {
        "variant": cell.variant,
        "target": cell.spec.target,
        "key": cell.key,
        "settings": dict(cell.settings),
        "compiled": [wheel.variant for wheel in cell.spec.compiled],
        "published": published,
        "tags": list(tags.tags(cell.spec, settings.image_name)),
    }


def _for_github(row: Mapping[str, Any]) -> dict[str, str]:
    """Return a cell as an entry of ``strategy.matrix.include``: a flat object of strings.

    Its ``settings`` are the lines of a ``.env`` file, whose values may have spaces; ``published``
    is ``true`` or ``false``, and empty where no registry is named.
    """
    return {
        "variant": row["variant"],
        "target": row["target"],
        "key": row["key"],
        "published": {True: "true", False: "false", None: ""}[row["published"]],
        "compiled": " ".join(row["compiled"]),
        "settings": "\n".join(f"{name}={value}" for name, value in row["settings"].items()),
    }


def _print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    states = {True: "yes", False: "no", None: "-"}
    table = [("VARIANT", "TARGET", "KEY", "PUBLISHED", "COMPILED")]
    table += [
        (
            row["variant"],
            row["target"],
            row["key"][:12],
            states[row["published"]],
            ", ".join(row["compiled"]) or "-",
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        typer.echo(
            "  ".join(f"{it:<{width}}" for it, width in zip(line, widths, strict=True)).rstrip()
        )
