"""Verbs for coming from the original, joining a project, and leaving: migrate, init, eject."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import takes_settings

if TYPE_CHECKING:
    from pipeline.adopt.files import Change

PANEL = "Coming and going"

_FORCE = "--force keeps what is there beside it as .bak; or name another folder with --into"

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Target = Annotated[str, typer.Argument(help="train (or full), devel or simple; default: SERVICE.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
Force = Annotated[
    bool, typer.Option("--force", help="Write over what is there, and keep that as .bak.")
]
Old = Annotated[Path, typer.Argument(help="Checkout of the original.", show_default=False)]
Into = Annotated[
    Path, typer.Option("--into", help="Checkout of Cresset to write to.", file_okay=False)
]
Folder = Annotated[
    Path, typer.Argument(help="Folder of the project; default: the current one.", file_okay=False)
]
Ejected = Annotated[
    Path, typer.Option("--output", "-o", help="New folder for the Dockerfile.", file_okay=False)
]


def add_to(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command(rich_help_panel=PANEL)(migrate)
    app.command(rich_help_panel=PANEL)(takes_settings(init))
    app.command(rich_help_panel=PANEL)(takes_settings(eject))


def migrate(
    path: Old,
    into: Into = Path(),
    dry_run: DryRun = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Take over a checkout of the original; print what became of each thing in it."""
    from pipeline import reqs
    from pipeline.adopt import files, report
    from pipeline.adopt.migrate import migration
    from pipeline.adopt.original import original

    folder = into / reqs.FOLDER
    found = migration(original(path), folder if folder.is_dir() else reqs.FOLDER)
    changes = found.changes(into)
    kept = {} if dry_run else files.apply(changes, force=force, next_step=_FORCE)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "files": {str(it.path): _became(it, dry_run=dry_run) for it in changes},
                    "kept": {str(old): str(new) for old, new in kept.items()},
                    "items": [it.as_json() for it in found.items],
                    "problems": [str(it) for it in found.problems],
                }
            )
        )
        return
    typer.echo(report.table(found.items))
    typer.echo()
    for change in changes:
        beside = f"; what was there is {kept[change.path]}" if change.path in kept else ""
        typer.echo(f"{change.path}: {_became(change, dry_run=dry_run)}{beside}")
    for problem in found.problems:
        typer.echo(f"to mend in {into / '.env'}: {problem}", err=True)
    typer.echo("next: make build, then make up and make exec", err=True)


def init(
    flags: dict[str, str],
    folder: Folder = Path(),
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Add a dev container to a project: one Compose file and the lines of .env that it reads."""
    from pipeline import reqs, settings, validate
    from pipeline.adopt import files, join
    from pipeline.compose import image_of
    from pipeline.errors import ConfigError, CressetError
    from pipeline.host import user
    from pipeline.host.gpu import capabilities

    if not folder.is_dir():
        raise CressetError(f"{folder} is no folder", next_step="make it, or name another")
    # A project's own .env is none of ours, and may hold anything.
    own = folder.resolve() == Path.cwd().resolve()
    loaded = settings.load(flags, env_file=Path("/nonexistent") if own else settings.ENV_FILE)
    if loaded.problems:
        raise ConfigError(loaded.problems)
    chosen = loaded.settings

    def variant(target: str) -> str:
        return validate.image_spec(chosen, target, gpus=capabilities).variant

    values = {"PROJECT": chosen.project or join.project_name(folder)}
    if not chosen.image and not reqs.FOLDER.is_dir():
        raise CressetError(
            "no image is named",
            why="outside a checkout of Cresset nothing says which one the settings make",
            next_step="--image ghcr.io/team/cresset:tag names it; or run `init DIR` in a checkout",
        )
    values["IMAGE"] = image_of(chosen, "train", variant)
    values |= user.identity()
    values["TZ"] = chosen.tz if loaded.origins["TZ"] != "default" else user.time_zone()
    values["PROJECT_ROOT"] = chosen.project_root
    for name in ("UID", "GID", "USR", "GRP"):
        values[name] = getattr(chosen, name.lower()) or values[name]
    changes = join.changes(folder, values)
    for change in changes:
        if change.only_adds and change.was and change.needed:
            added = change.text[len(change.was) :].strip()
            typer.echo(f"added to {change.path}, which stays as it is otherwise:", err=True)
            typer.echo("\n".join(f"    {line}" for line in added.splitlines()), err=True)
    if not dry_run:
        files.apply(changes)
    if as_json:
        made = {str(it.path): _became(it, dry_run=dry_run) for it in changes}
        typer.echo(json.dumps({"files": made, "image": values["IMAGE"]}))
        return
    for change in changes:
        typer.echo(f"{change.path}: {_became(change, dry_run=dry_run)}")
    typer.echo(f"next: docker compose -f {folder / join.COMPOSE} up -d", err=True)


def _became(change: Change, *, dry_run: bool) -> str:
    if not change.needed:
        return "nothing to change"
    if change.in_the_way and dry_run:
        return "would be written over, which takes --force"
    verb = "added to" if change.only_adds and change.was is not None else "written"
    return f"would be {verb}" if dry_run else verb


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
