"""Verbs for coming from the original, for joining a project, and for leaving: eject."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import takes_settings

PANEL = "Coming and going"

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Target = Annotated[str, typer.Argument(help="train (or full), devel or simple; default: SERVICE.")]
Ejected = Annotated[
    Path, typer.Option("--output", "-o", help="New folder for the Dockerfile.", file_okay=False)
]


def add_to(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command(rich_help_panel=PANEL)(takes_settings(eject))


def eject(
    flags: dict[str, str],
    target: Target = "",
    output: Ejected = Path("ejected"),
    as_json: AsJson = False,
) -> None:
    """Write the image as a plain Dockerfile, with what it copies; print where it is."""
    from pipeline import settings, tags, validate
    from pipeline.adopt import eject as ejecting
    from pipeline.adopt.dockerfile import WHEELS
    from pipeline.host.gpu import capabilities

    loaded = settings.load(flags)
    for note in loaded.notes:
        typer.echo(f"note: {note}", err=True)
    chosen = loaded.settings
    if (target or chosen.service) == "devel":
        typer.echo(
            "note: a compile is no layer of an image, so this is train with the wheels that devel "
            "compiles",
            err=True,
        )
        target = "train"
    spec = validate.image_spec(chosen, target, gpus=capabilities, problems=loaded.problems)
    validate.check_requirements(spec)
    files = ejecting.ejected(spec, tags.repository(chosen.image_name))
    ejecting.write(files, output)
    if spec.compiled:
        typer.echo(f"next: put the wheels into {output / WHEELS}/", err=True)
    typer.echo(f"next: docker build {output}", err=True)
    if as_json:
        typer.echo(json.dumps({"folder": str(output), "files": sorted(files)}))
    else:
        typer.echo(str(output / "Dockerfile"))
