"""Verbs of containers: install-compose."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

PANEL = "Containers"


def add_to(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command(rich_help_panel=PANEL)(install_compose)


def install_compose(
    source: Annotated[
        Literal["auto", "release", "apt", "go"],
        typer.Option(
            "--from",
            help="Docker's release, the distribution's package, or the Go module; "
            "`auto` takes the first that works.",
        ),
    ] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace the one that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Put Docker's Compose plugin in place for this user, unless one is there; needs no root."""
    import dataclasses
    import shutil

    from pipeline.host import compose_plugin
    from pipeline.report import reporting

    found = None if force else compose_plugin.installed()
    if found is None:
        with reporting("install-compose", ["compose"]) as report:
            with report.stage("compose", in_engine=False):
                found = compose_plugin.install(source, report.say)
            why = "".join(f"; not {reason}" for reason in found.refused)
            report.note(f"Docker Compose {found.version} ({found.source}{why})")
    else:
        typer.echo(f"Docker Compose {found.version} is there already; left as it is", err=True)
    if shutil.which("docker") is None:
        typer.echo("note: there is no docker on PATH, which the plugin belongs to", err=True)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found), default=str))
    else:
        typer.echo(found.path)
