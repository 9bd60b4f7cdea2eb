"""Verbs that make images: build, build-only, plan."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import takes_settings

if TYPE_CHECKING:
    from pipeline.settings import Settings
    from pipeline.spec import ImageSpec

PANEL = "Images"

Target = Annotated[str, typer.Argument(help="train (or full) or simple; default: SERVICE.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
Force = Annotated[bool, typer.Option("--force", help="Deliver even what is already there.")]
Pull = Annotated[bool, typer.Option("--pull", help="Make the bootstrapped base anew.")]


def add_to(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command(rich_help_panel=PANEL)(takes_settings(build))
    app.command("build-only", rich_help_panel=PANEL, help="The same, starting no container.")(
        takes_settings(build)
    )
    app.command(rich_help_panel=PANEL)(takes_settings(plan))


def build(
    flags: dict[str, str],
    target: Target = "",
    as_json: AsJson = False,
    dry_run: DryRun = False,
    force: Force = False,
    pull: Pull = False,
) -> None:
    """Build, check and deliver an image; print its digest reference."""
    from pipeline import build as building
    from pipeline import publish, validate

    settings, spec = _spec(flags, target)
    where = publish.destination(settings.registry, settings.image_name)
    outcome = None if force or pull else building.found(spec, where)
    if outcome is None:
        # Not before: it takes longer than all of a build with nothing to do.
        validate.check_requirements(spec)
        _note_driver(spec)
    if dry_run:
        _print_plan(spec, as_json=as_json)
        state = "is already in" if outcome else "would go to"
        typer.echo(f"the image {state} {where.name}", err=True)
        return
    if outcome is None:
        outcome = building.build(spec, settings, where, refresh_base=pull)
        typer.echo(f"delivered to {where.name}", err=True)
    else:
        typer.echo(f"nothing to do: {spec.variant} is in {where.name} already", err=True)
    typer.echo(f"next: {outcome.delivered.next_step}", err=True)
    typer.echo(json.dumps(outcome.as_json()) if as_json else outcome.delivered.ref)


def plan(
    flags: dict[str, str],
    target: Target = "",
    as_json: AsJson = False,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Draw it as a Mermaid chart.")] = False,
) -> None:
    """Show what a build would do, and the image's variant and key."""
    from pipeline import plan as planning
    from pipeline import validate

    _, spec = _spec(flags, target)
    validate.check_requirements(spec)
    _note_driver(spec)
    if mermaid:
        typer.echo(planning.mermaid(planning.plan(spec)))
    else:
        _print_plan(spec, as_json=as_json)


def _spec(flags: dict[str, str], target: str) -> tuple[Settings, ImageSpec]:
    from pipeline import settings, validate
    from pipeline.host.gpu import capabilities

    loaded = settings.load(flags)
    for note in loaded.notes:
        typer.echo(f"note: {note}", err=True)
    return loaded.settings, validate.image_spec(
        loaded.settings, target, gpus=capabilities, problems=loaded.problems
    )


def _note_driver(spec: ImageSpec) -> None:
    """Say it where this machine's driver is too old; the image may well be for another machine."""
    from pipeline.compat import rules
    from pipeline.host import gpu

    if spec.torch is None or not (driver := gpu.driver()):
        return
    if problem := rules.check_driver(spec.torch.cuda, driver):
        typer.echo(f"note: {problem}", err=True)


def _print_plan(spec: ImageSpec, *, as_json: bool) -> None:
    from pipeline.plan import plan

    steps = plan(spec)
    if as_json:
        content = {
            "variant": spec.variant,
            "key": spec.key,
            "steps": [{"name": s.name, "makes": s.makes, "needs": s.needs} for s in steps],
        }
        typer.echo(json.dumps(content))
        return
    typer.echo(f"variant  {spec.variant}\nkey      {spec.key}\n")
    for step in steps:
        after = f"after {', '.join(step.needs)}" if step.needs else ""
        typer.echo(f"{step.name:<10} {step.makes:<52} {after}".rstrip())
