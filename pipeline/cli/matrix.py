"""The verb that lists what CI builds: matrix."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import takes_settings

if TYPE_CHECKING:
    from pipeline.matrix import Cell, Matrix
    from pipeline.settings import Loaded, Settings

PANEL = "Images"

FILE = Path("images.toml")
GITHUB_JOBS = 256
"""A matrix of GitHub makes no more jobs than these:
https://docs.github.com/en/actions/reference/limits"""

File = Annotated[Path, typer.Option("--file", help="File that names the images.", dir_okay=False)]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="GLOB", help="Only variants that fit; several are an or."),
]
Skip = Annotated[
    list[str] | None, typer.Option("--skip", metavar="GLOB", help="No variants that fit.")
]


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
    github: Annotated[
        bool, typer.Option("--github", help="Print a line for strategy.matrix of a workflow.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the images of images.toml, and which of them are in the registry already."""
    from pipeline.errors import ConfigError, Problem

    settings, cells = planned(flags, file, only or (), skip or ())
    if missing and not settings.registry:
        raise ConfigError(
            [
                Problem(
                    "REGISTRY", "", "--missing asks a registry what it has, and none is named",
                    allowed="ghcr.io/team or localhost:5000", next_step="set REGISTRY",
                )
            ]
        )  # fmt: skip
    rows = [
        _row(cell, settings, published)
        for cell, published in zip(cells, _published(cells, settings), strict=True)
        if not (missing and published)
    ]
    if github:
        if left := len(rows[GITHUB_JOBS:]):
            typer.echo(f"note: {left} more cells than GitHub makes jobs are left out", err=True)
        typer.echo(json.dumps({"include": [_for_github(row) for row in rows[:GITHUB_JOBS]]}))
    elif as_json:
        typer.echo(json.dumps(rows))
    else:
        _print_table(rows)


def planned(
    flags: dict[str, str], file: Path, only: Sequence[str], skip: Sequence[str]
) -> tuple[Settings, tuple[Cell, ...]]:
    """Return the user's settings and the cells that are left by the globs.

    Raises:
        ConfigError: every mistake in the settings and in the file.
        NothingSelected: no cell is left.

    """
    from pipeline import matrix as planning
    from pipeline import settings
    from pipeline.errors import ConfigError
    from pipeline.host import ca, repository
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
    mirror = (loaded.settings.git_old, loaded.settings.git_new)
    found = planning.cells(
        read,
        loaded.settings,
        gpus=capabilities,
        resolve=lambda url, ref: repository.commit(url, ref, mirror),
    )
    return loaded.settings, planning.select(found, only, skip)


def _overruled(loaded: Loaded, read: Matrix) -> list[Any]:
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


def _published(cells: Sequence[Cell], settings: Settings) -> list[bool | None]:
    """Return for each cell whether its registry has its key, None where none is named.

    Each repository is asked once, whatever the number of its cells.
    """
    from pipeline import publish, tags
    from pipeline.matrix import applied

    asked: dict[str, frozenset[str]] = {}
    answers: list[bool | None] = []
    for cell in cells:
        own = applied(settings, cell.settings)
        if not own.registry:
            answers.append(None)
            continue
        repository = tags.repository(own.image_name, own.registry)
        if repository not in asked:
            asked[repository] = frozenset(publish.published(repository))
        answers.append(tags.key_tag(cell.spec) in asked[repository])
    return answers


def _row(cell: Cell, settings: Settings, published: bool | None) -> dict[str, Any]:
    from pipeline import tags
    from pipeline.matrix import applied

    return {
        "variant": cell.variant,
        "target": cell.spec.target,
        "key": cell.key,
        "settings": dict(cell.settings),
        "compiled": [wheel.variant for wheel in cell.spec.compiled],
        "published": published,
        "tags": list(tags.tags(cell.spec, applied(settings, cell.settings).image_name)),
    }


def _for_github(row: Mapping[str, Any]) -> dict[str, str]:
    """Return a cell as an entry of ``strategy.matrix.include``: a flat object of strings.

    Its ``settings`` are the lines of a ``.env`` file, whose values may have spaces.
    """
    return {
        "variant": row["variant"],
        "target": row["target"],
        "key": row["key"],
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
