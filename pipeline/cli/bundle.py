"""Verbs for places without a network: bundle export, bundle import, bundle show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import AsJson, DryRun, Frozen, HeldTo, Target, takes_settings

app = typer.Typer(
    help="All that a build takes, in one file, for places without a network.",
    no_args_is_help=True,
)

File = Annotated[Path, typer.Argument(help="The bundle.", show_default=False)]


def export(
    flags: dict[str, str],
    target: Target = "",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write.", dir_okay=False)
    ] = Path("dist/bundle.tar"),
    check: Annotated[
        bool,
        typer.Option(
            "--check/--no-check", help="Build from it without any network before it is there."
        ),
    ] = True,
    locked: HeldTo = False,
    frozen: Frozen = False,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Write image, base, packages, wheels and engine to one file, an OCI layout; print its path."""
    from pipeline import validate
    from pipeline.cli.specs import mode_of, spec_of

    settings, spec = spec_of(flags, target, mode=mode_of(locked, frozen))
    validate.check_requirements(spec)
    if dry_run:
        typer.echo(f"{spec.variant} and all that it takes would go to {output}", err=True)
        return
    from pipeline.bundle import export as exporting

    done = exporting.export(spec, settings, output, check=check)
    for role, size in done.parts.items():
        typer.echo(f"{role:<8} {size / 1e6:>9.1f} MB", err=True)
    proved = "built from it without a network" if done.checked else "not checked"
    typer.echo(f"{done.size / 1e9:.2f} GB, {proved}, {done.digest}", err=True)
    typer.echo(f"next: bring it along, and python -m pipeline bundle import {output}", err=True)
    typer.echo(json.dumps(done.as_json()) if as_json else done.path)


def bring_in(
    file: File,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder for the image, where no Docker is.", file_okay=False
        ),
    ] = Path("dist"),
    as_json: AsJson = False,
) -> None:
    """Check a bundle, and put its engine, wheels and image in place; print the image."""
    from pipeline.bundle import importing

    done = importing.bring_in(file, output)
    typer.echo(f"{done.size / 1e9:.2f} GB, each blob as its hash says, {done.digest}", err=True)
    typer.echo(f"next: python -m pipeline build --bundle {file}", err=True)
    typer.echo(json.dumps(done.as_json()) if as_json else done.image or done.archive)


def show(file: File, as_json: AsJson = False) -> None:
    """List what a bundle has; only its index is read."""
    from pipeline.bundle.layout import NAME, Bundle

    bundle = Bundle.opened(file)
    bundle.close()
    rows = [
        {
            "role": part.role,
            "digest": part.manifest.digest,
            "size": part.size,
            "files": len(part.files),
            "name": part.annotations.get(NAME, ""),
        }
        for part in bundle.parts
    ]
    if as_json:
        typer.echo(json.dumps({"digest": bundle.digest, "parts": rows}))
        return
    typer.echo(f"{bundle.digest}  {dict(bundle.annotations).get('dev.cresset.version', '')}")
    for it in rows:
        what = it["name"] or f"{it['files']} files"
        typer.echo(f"{it['role']:<8} {float(str(it['size'])) / 1e6:>9.1f} MB  {what}")


app.command()(takes_settings(export))
app.command("import")(bring_in)
app.command()(show)
