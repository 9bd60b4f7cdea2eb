"""Verbs that make images: build, build-only, plan."""

from __future__ import annotations

import dataclasses
import json
import re
import time
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
    Frozen,
    HeldTo,
    Only,
    Skip,
    Target,
    check_matrix_options,
    takes_settings,
)
from pipeline.cli.specs import mode_of, spec_of

if TYPE_CHECKING:
    from pipeline import records
    from pipeline.plan import Step
    from pipeline.spec import ImageSpec

Force = Annotated[bool, typer.Option("--force", help="Deliver even what is already there.")]
Deadline = Annotated[
    str,
    typer.Option(
        "--deadline",
        envvar="DEADLINE",
        help="Stop a compile in good order after this time: 170m, 5h.",
    ),
]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="Folder to write the wheels to.", file_okay=False)
]
Pull = Annotated[bool, typer.Option("--pull", help="Make the bootstrapped base anew.")]
Matrix = Annotated[
    bool,
    typer.Option(
        "--matrix",
        help="Build every cell of images.toml that is not there yet, on all ENGINES, and report at "
        "the end; a cell that fails keeps no other from being built. Starts no container.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Of a matrix: what the last run delivered is not asked for again, wherever it is now.",
    ),
]
LeaveEnv = Annotated[bool, typer.Option("--leave-env", hidden=True)]
"""For the cells of a matrix, of which none is the image that .env should name."""


def add_to(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command(rich_help_panel=PANEL)(takes_settings(build))
    app.command("build-only", rich_help_panel=PANEL)(takes_settings(build_only))
    app.command(rich_help_panel=PANEL)(takes_settings(wheels))
    app.command(rich_help_panel=PANEL)(takes_settings(plan))


def build(
    flags: dict[str, str],
    target: Target = "",
    as_json: AsJson = False,
    dry_run: DryRun = False,
    force: Force = False,
    pull: Pull = False,
    deadline: Deadline = "",
    locked: HeldTo = False,
    frozen: Frozen = False,
    matrix: Matrix = False,
    only: Only = None,
    skip: Skip = None,
    file: File = FILE,
    resume: Resume = False,
) -> None:
    """Build, check and deliver an image, and start a fresh container; print its reference."""
    built = build_only(
        flags, target, as_json, dry_run, force, pull, deadline, locked, frozen, matrix, only, skip,
        file, resume,
    )  # fmt: skip
    if not dry_run and not matrix:
        _start(flags, built)


def build_only(
    flags: dict[str, str],
    target: Target = "",
    as_json: AsJson = False,
    dry_run: DryRun = False,
    force: Force = False,
    pull: Pull = False,
    deadline: Deadline = "",
    locked: HeldTo = False,
    frozen: Frozen = False,
    matrix: Matrix = False,
    only: Only = None,
    skip: Skip = None,
    file: File = FILE,
    resume: Resume = False,
    leave_env: LeaveEnv = False,
) -> dict[str, str]:
    """Build, check and deliver an image, starting no container; print its digest reference."""
    from pipeline import build as building
    from pipeline import compose, publish, validate
    from pipeline import plan as planning
    from pipeline.cli import fleet
    from pipeline.errors import ConfigError, Problem

    until = _until(deadline)
    mode = mode_of(locked, frozen)
    targets = [target] if target else []
    check_matrix_options(targets, matrix=matrix, only=only, skip=skip, file=file, resume=resume)
    if resume and (force or pull):
        why = "the one delivers all anew, the other leaves what the last run delivered as it is"
        anew = "--force" if force else "--pull"
        raise ConfigError([Problem("--resume", "yes", f"{anew} goes against it: {why}",
                                   allowed=f"{anew} or --resume", next_step="leave one out")]
                          )  # fmt: skip
    if matrix:
        asked = fleet.Asked(
            tuple(only or ()), tuple(skip or ()), file, resume, force, pull, dry_run, as_json, mode
        )
        fleet.build_matrix(flags, asked, until)
        return {}
    settings, spec = spec_of(flags, target, mode=mode)
    where = publish.destination(settings.registry, settings.image_name)
    outcome = None if force or pull else building.found(spec, where)
    there = outcome is not None
    if outcome is None:
        # Not before: it takes longer than all of a build with nothing to do.
        validate.check_requirements(spec)
        _note_driver(spec)
    if dry_run:
        _print_plan(spec, planning.plan(spec, attest=settings.attest != "off"), as_json=as_json)
        state = "is already in" if outcome else "would go to"
        typer.echo(f"the image {state} {where.name}", err=True)
        return {}
    if outcome is None:
        with fleet.summarized(spec):
            outcome = building.build(
                spec, settings, where, refresh_base=pull, check_index=locked, deadline=until
            )
        typer.echo(f"delivered to {where.name}", err=True)
    else:
        from pipeline.attest import proof

        typer.echo(f"nothing to do: {spec.variant} is in {where.name} already", err=True)
        proof.complete(
            spec, settings, where, outcome.delivered, lambda said: typer.echo(said, err=True)
        )
    fleet.summarize(outcome, there=there)
    image = outcome.delivered.image
    if image and not leave_env:
        _write_down(compose.IMAGES[spec.target], image)
    typer.echo(f"next: {outcome.delivered.next_step}", err=True)
    typer.echo(json.dumps(outcome.as_json()) if as_json else outcome.delivered.ref)
    return {"SERVICE": spec.target, compose.IMAGES[spec.target]: image} if image else {}


def _write_down(name: str, image: str) -> None:
    """Let the user's .env name the image, so that containers start from it."""
    from pipeline.host import user
    from pipeline.settings import ENV_FILE

    try:
        written = ENV_FILE.is_file() and user.set_variable(ENV_FILE, name, image)
    except OSError as error:  # the image is where it was asked for all the same
        typer.echo(f"warning: {ENV_FILE} does not get {name}={image}: {error.strerror}", err=True)
        return
    if written:
        typer.echo(f"{ENV_FILE}: {name}={image}", err=True)


def _start(flags: dict[str, str], built: dict[str, str]) -> None:
    """Start a container from what was built, if a Docker has it, and there are Compose files."""
    from pipeline import compose
    from pipeline.cli import project

    if not built or not compose.BASE.is_file() or not compose.can_start():
        typer.echo(
            "no container is started: that takes Docker with Compose, and a checkout", err=True
        )
        return
    project.project(flags | built).up(project.say)


def wheels(
    flags: dict[str, str],
    output: Output = Path("dist"),
    as_json: AsJson = False,
    dry_run: DryRun = False,
    deadline: Deadline = "",
    locked: HeldTo = False,
    frozen: Frozen = False,
) -> None:
    """Compile torch and torchvision as BUILD_MODE or their sources say; print the wheels' files."""
    from pipeline import build as building
    from pipeline import plan as planning
    from pipeline import records, store
    from pipeline.errors import ConfigError, Problem

    until = _until(deadline)
    settings, spec = spec_of(flags, "train", wheels_only=True, mode=mode_of(locked, frozen))
    if spec.torch is None or not spec.torch.compiled:
        raise ConfigError(
            [
                Problem(
                    "BUILD_MODE",
                    settings.build_mode,
                    "takes wheels as they are on the index, and there is nothing to compile",
                    next_step="set BUILD_MODE=include, or TORCH_SOURCE or VISION_SOURCE; "
                    "`pip download` fetches the official wheels",
                )
            ]
        )
    if dry_run:
        expected = records.expected(spec, store.store(settings))
        _print_plan(spec, planning.wheel_plan(spec), as_json=as_json, expected=expected)
        return
    files = building.wheels(spec, settings, output, deadline=until)
    typer.echo(json.dumps([str(file) for file in files]) if as_json else "\n".join(map(str, files)))


def plan(
    flags: dict[str, str],
    target: Target = "",
    as_json: AsJson = False,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Draw it as a Mermaid chart.")] = False,
    locked: HeldTo = False,
    frozen: Frozen = False,
) -> None:
    """Show what a build would do, and the image's variant and key."""
    from pipeline import plan as planning
    from pipeline import records, store, validate

    settings, spec = spec_of(flags, target, mode=mode_of(locked, frozen))
    validate.check_requirements(spec)
    _note_driver(spec)
    steps = planning.plan(spec, attest=settings.attest != "off")
    if mermaid:
        typer.echo(planning.mermaid(steps))
        return
    expected = records.expected(spec, store.store(settings))
    _print_plan(spec, steps, as_json=as_json, expected=expected)


def _until(deadline: str) -> float:
    """Return when a time from now is, in seconds since the epoch; 0 if none is given."""
    from pipeline.errors import ConfigError, Problem

    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", deadline)
    seconds = 0
    if match:
        hours, minutes, rest = (int(number or 0) for number in match.groups())
        seconds = hours * 3600 + minutes * 60 + rest
    if deadline and not seconds:
        raise ConfigError(
            [Problem("--deadline", deadline, "not a time from now", allowed="170m, 5h or 5h30m")]
        )
    return time.time() + seconds if deadline else 0


def _note_driver(spec: ImageSpec) -> None:
    """Say it where this machine's driver is too old; the image may well be for another machine."""
    from pipeline.compat import rules
    from pipeline.host import gpu

    if spec.torch is None or not (driver := gpu.driver()):
        return
    if problem := rules.check_driver(spec.torch.cuda, driver):
        typer.echo(f"note: {problem}", err=True)


def _print_plan(
    spec: ImageSpec,
    steps: Sequence[Step],
    *,
    as_json: bool,
    expected: Sequence[records.Expected] = (),
) -> None:
    if as_json:
        content = {
            "variant": spec.variant,
            "key": spec.key,
            "steps": [{"name": s.name, "makes": s.makes, "needs": s.needs} for s in steps],
            "compile": [dataclasses.asdict(it) for it in expected],
            "magma": _about_magma(spec),
        }
        typer.echo(json.dumps(content))
        return
    typer.echo(f"variant  {spec.variant}\nkey      {spec.key}\n")
    _print_steps(steps)
    why = _about_magma(spec)
    if expected or why:
        typer.echo()
    for it in expected:
        typer.echo(f"{it.stage:<18} {it}")
    if why:
        typer.echo(f"{'MAGMA':<18} {why}")


def _about_magma(spec: ImageSpec) -> str:
    """Return which MAGMA torch gets and why, nothing where torch is not compiled."""
    return next((wheel.magma_reason for wheel in spec.compiled), "")


def _print_steps(steps: Sequence[Step]) -> None:
    for step in steps:
        after = f"after {', '.join(step.needs)}" if step.needs else ""
        typer.echo(f"{step.name:<18} {step.makes:<52} {after}".rstrip())
