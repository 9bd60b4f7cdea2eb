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

from pipeline.cli.matrix import FILE, File, Only, Skip
from pipeline.cli.options import takes_settings

if TYPE_CHECKING:
    from pipeline import records
    from pipeline.lock import Asked, Lock, Mode
    from pipeline.plan import Step
    from pipeline.settings import Settings
    from pipeline.spec import ImageSpec
    from pipeline.validate_source import Resolve

PANEL = "Images"

Target = Annotated[
    str, typer.Argument(help="train (or full), devel, simple or ngc; default: SERVICE.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
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
HeldTo = Annotated[
    bool,
    typer.Option("--locked", help="Take what cresset.lock has; refuse what has moved since."),
]
Frozen = Annotated[
    bool, typer.Option("--frozen", help="Take what cresset.lock has, and ask nobody what moved.")
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
    app.command(rich_help_panel=PANEL)(takes_settings(lock))


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

    until = _until(deadline)
    held = "--locked" if locked else "--frozen" if frozen else ""
    fleet.check_options(target, matrix=matrix, only=only, skip=skip, resume=resume, held=held)
    if matrix:
        asked = fleet.Asked(
            tuple(only or ()), tuple(skip or ()), file, resume, force, pull, dry_run, as_json
        )
        fleet.build_matrix(flags, asked, until)
        return {}
    settings, spec = spec_of(flags, target, mode=mode_of(locked, frozen))
    where = publish.destination(settings.registry, settings.image_name)
    outcome = None if force or pull else building.found(spec, where)
    there = outcome is not None
    if outcome is None:
        # Not before: it takes longer than all of a build with nothing to do.
        validate.check_requirements(spec)
        _note_driver(spec)
    if dry_run:
        _print_plan(spec, planning.plan(spec), as_json=as_json)
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
        if proof.lacks_signature(settings, where, outcome.delivered):
            proof.attest_published(spec, settings, where, again=False)
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
    if mermaid:
        typer.echo(planning.mermaid(planning.plan(spec)))
        return
    expected = records.expected(spec, store.store(settings))
    _print_plan(spec, planning.plan(spec), as_json=as_json, expected=expected)


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
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Write down in cresset.lock what the image is made of, for builds with --locked."""
    from pipeline import build as building
    from pipeline import lock as locks
    from pipeline import relock
    from pipeline.errors import ConfigError, Problem

    if check:
        if update or as_json or dry_run:
            why = "it writes nothing, and ends with 2 where something has moved"
            raise ConfigError([Problem("--check", "yes", why, next_step="leave the others out")])
        for target in targets or [""]:
            settings, spec = spec_of(flags, target, mode="locked", strict=True)
            building.check(spec, settings)
            typer.echo(f"{spec.variant} is as {locks.FILE} has it", err=True)
        return
    old = new = locks.read()
    for target in targets or [""]:
        asked = _asked(flags, target, lock=None if update else old)
        new = relock.relocked(asked, new, _commit(asked.settings), update=update)
        if asked.spec.variant not in new.image:
            typer.echo(
                f"note: the packages of {asked.spec.variant} are locked once its wheels are there: "
                "`python -m pipeline wheels --locked`, then `lock` again",
                err=True,
            )
    moves = locks.moves(old, new)
    if moves and not dry_run:
        locks.write(new)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(it) for it in moves]))
    else:
        for it in moves:
            typer.echo(str(it))
    done = "would change" if dry_run else "changed"
    typer.echo(f"{locks.FILE}: {len(moves)} entries {done}" if moves
               else f"{locks.FILE}: nothing moves", err=True)  # fmt: skip


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


def mode_of(locked: bool, frozen: bool) -> Mode:
    """Return how a build is held to the lock; ConfigError for both ways at once."""
    from pipeline.errors import ConfigError, Problem

    if locked and frozen:
        why = "the one refuses what has moved, the other does not ask"
        raise ConfigError([Problem("--locked", "--frozen", why, allowed="one of them")])
    return "locked" if locked else "frozen" if frozen else ""


def spec_of(
    flags: dict[str, str],
    target: str,
    *,
    wheels_only: bool = False,
    mode: Mode = "",
    strict: bool = False,
) -> tuple[Settings, ImageSpec]:
    """Return the settings and their spec, held to the lock where a mode says so.

    With `strict` it is an error where nobody could be asked whether something has moved.
    """
    from pipeline import lock as locks

    if not mode:
        asked = _asked(flags, target, wheels_only=wheels_only)
        return asked.settings, asked.spec
    lock = locks.read()
    asked = _asked(flags, target, wheels_only=wheels_only, lock=lock, ask=False)
    spec = locks.held(asked.spec, lock, image=not wheels_only)
    if mode == "locked":
        _refuse_drift(asked, lock, strict=strict)
    return asked.settings, spec


def _refuse_drift(asked: Asked, lock: Lock, *, strict: bool) -> None:
    from pipeline import lock as locks
    from pipeline import publish
    from pipeline.errors import PublishError

    moved, unasked = locks.drift(
        asked.spec,
        lock,
        [*asked.branches, *locks.tags(asked.spec)],
        digest=publish.digest,
        commit=_commit(asked.settings),
    )
    for text in unasked:
        typer.echo(f"note: nobody knows whether it has moved: {text}", err=True)
    if moved:
        raise locks.LockError(moved)
    if strict and unasked:
        raise PublishError(
            "whether something has moved is not known",
            why="; ".join(map(str, unasked)),
            next_step="run it again where they answer",
        )


def _commit(settings: Settings) -> Resolve:
    from pipeline.host import repository

    mirror = (settings.git_old, settings.git_new)
    return lambda url, ref: repository.commit(url, ref, mirror)


def _asked(
    flags: dict[str, str],
    target: str,
    *,
    wheels_only: bool = False,
    lock: Lock | None = None,
    ask: bool = True,
) -> Asked:
    """Return the spec of the settings, and each branch in it with its commit.

    What a `lock` has of them is not asked for; without `ask` nothing is.
    """
    from pipeline import settings, validate, validate_source
    from pipeline.errors import Problem
    from pipeline.host import ca
    from pipeline.host.gpu import capabilities
    from pipeline.lock import Asked, resolver

    loaded = settings.load(flags)
    for note in loaded.notes:
        typer.echo(f"note: {note}", err=True)
    ca.trust(loaded.settings.ca_bundle)
    known = resolver(lock) if lock else None
    ask_for = _commit(loaded.settings)
    branches: dict[tuple[str, str], str] = {}

    def recorded(url: str, ref: str) -> str | Problem:
        commit = known(url, ref) if known else ask_for(url, ref)
        if ask and known and isinstance(commit, Problem):
            commit = ask_for(url, ref)
        if not isinstance(commit, Problem):
            branches[url, ref] = commit
        return commit

    spec = validate.image_spec(
        loaded.settings,
        target,
        gpus=capabilities,
        resolve=recorded,
        problems=loaded.problems,
        wheels_only=wheels_only,
    )
    for note in validate_source.unread(loaded.settings, spec):
        typer.echo(f"note: {note}", err=True)
    return Asked(spec, loaded.settings, branches)


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
