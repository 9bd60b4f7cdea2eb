"""Verbs of containers, with the meaning that they had in the original."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from pipeline.cli.options import takes_settings
from pipeline.cli.project import project, say

PANEL = "Containers"

Command = Annotated[
    list[str] | None,
    typer.Argument(help="Command, with its own options; default: COMMAND, else a shell."),
]
_HANDS_OVER = {"ignore_unknown_options": True, "allow_interspersed_args": False}


def add_to(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command(rich_help_panel=PANEL)(takes_settings(up))
    app.command("exec", rich_help_panel=PANEL, context_settings=_HANDS_OVER)(takes_settings(enter))
    app.command(rich_help_panel=PANEL)(takes_settings(start))
    app.command(rich_help_panel=PANEL)(takes_settings(down))
    app.command(rich_help_panel=PANEL, context_settings=_HANDS_OVER)(takes_settings(run))
    app.command(rich_help_panel=PANEL)(ls)
    app.command(rich_help_panel=PANEL)(takes_settings(fixes))
    app.command("compose", rich_help_panel=PANEL)(takes_settings(show))
    app.command(rich_help_panel=PANEL)(takes_settings(devcontainer))
    app.command(rich_help_panel=PANEL)(install_compose)


def up(
    flags: dict[str, str],
    build: Annotated[bool, typer.Option("--build", help="Build the image first.")] = False,
) -> None:
    """Start a fresh container from the image, which is pulled if its registry has it."""
    if build:
        from pipeline.cli.image import build as build_image

        build_image(flags)
        return
    project(flags, doubting=True).up(say)


def enter(flags: dict[str, str], command: Command = None) -> None:
    """Enter the running container, as the user, in the project's folder."""
    project(flags, is_new=False).hand_over("exec", command or [], say)


def start(flags: dict[str, str]) -> None:
    """Start the stopped container again, as it was left."""
    project(flags, is_new=False).start()


def down(
    flags: dict[str, str],
    volumes: Annotated[
        bool, typer.Option("--volumes", help="Delete history and IDE servers as well.")
    ] = False,
) -> None:
    """Stop and delete the containers; what is in mounted folders and volumes stays."""
    project(flags, is_new=False).down(volumes=volumes)


def run(flags: dict[str, str], command: Command = None) -> None:
    """Run a command in a container of its own, which goes with it: to see why one won't start."""
    project(flags).hand_over("run", command or [], say)


def ls(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List all Compose projects, those that are stopped too."""
    from pipeline import compose

    projects = compose.projects()
    if as_json:
        typer.echo(json.dumps(projects))
        return
    width = max((len(it["name"]) for it in projects), default=0)
    for it in projects:
        typer.echo(f"{it['name']:<{width}}  {it['status']:<12}  {', '.join(it['files'])}")


def fixes(
    flags: dict[str, str],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say it, and mend nothing.")] = False,
) -> None:
    """Say what keeps the running container from working, and mend it."""
    typer.echo(project(flags, is_new=False).fixes(dry_run=dry_run))


def show(
    flags: dict[str, str],
    kubernetes: Annotated[
        bool, typer.Option("--kubernetes", help="Print a manifest for kubectl instead.")
    ] = False,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of the Pod.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what Compose makes of its files and the settings."""
    if not kubernetes:
        project(flags).show(as_json=as_json)
    import yaml

    from pipeline import kubernetes as cluster
    from pipeline.compose import BASE, IMAGES
    from pipeline.errors import ComposeError

    described = project(flags, is_new=False)
    if not described.image:
        raise ComposeError(
            f"there is no image of {described.service}",
            next_step=f"run `make build SERVICE={described.service}`, or name one by "
            f"{IMAGES[described.service]}",
        )
    if "/" not in described.image:
        say(f"note: a cluster cannot pull {described.image}; REGISTRY names where it can")
    made = cluster.manifests(
        described.service,
        described.image,
        described.variables,
        cluster.environment(BASE.read_text(), described.variables),
        gpus=gpus,
    )
    if as_json:
        typer.echo(json.dumps({"apiVersion": "v1", "kind": "List", "items": made}))
    else:
        typer.echo(yaml.safe_dump_all(made, sort_keys=False), nl=False)


def devcontainer(
    flags: dict[str, str],
    stdout: Annotated[
        bool, typer.Option("--stdout", help="Print devcontainer.json, and write nothing.")
    ] = False,
) -> None:
    """Write .devcontainer/ for VS Code and its kin; never overwrites a file."""
    from pipeline import devcontainer as it
    from pipeline.host import user

    described = project(flags)
    files = it.files(described, described.variables["PROJECT_ROOT"])
    if stdout:
        typer.echo(files[it.FOLDER / "devcontainer.json"], nl=False)
        return
    it.FOLDER.mkdir(exist_ok=True)
    for path, text in files.items():
        if user.write_new(path, text):
            say(f"{path} written")
        elif path.read_text() == text:
            say(f"{path} is there already, as it would be written")
        else:
            say(f"{path} is there already and differs; left as it is: delete it for a new one")


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
