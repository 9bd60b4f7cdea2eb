"""Verbs that prove an image: attest, verify."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from pipeline.cli.options import PANEL, AsJson, Frozen, HeldTo, Target, takes_settings
from pipeline.cli.specs import mode_of, spec_of

Reference = Annotated[
    str, typer.Argument(metavar="REF", help="registry/name:tag, registry/name@sha256:…, or both.")
]


def add_to(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command(rich_help_panel=PANEL)(takes_settings(attest))
    app.command(rich_help_panel=PANEL)(takes_settings(verify))


def attest(
    flags: dict[str, str],
    target: Target = "",
    again: Annotated[bool, typer.Option("--again", help="Write its provenance anew.")] = False,
    locked: HeldTo = False,
    frozen: Frozen = False,
) -> None:
    """Attach what is missing to the published image of these settings: SBOM, provenance, signature.

    Prints the reference of the image.
    """
    from pipeline import publish
    from pipeline.attest import proof

    settings, spec = spec_of(flags, target, mode=mode_of(locked, frozen))
    where = publish.destination(settings.registry, settings.image_name)
    typer.echo(proof.attest_published(spec, settings, where, again=again).ref)


def verify(
    reference: Reference,
    flags: dict[str, str],
    shallow: Annotated[
        bool, typer.Option("--shallow", help="Pull no layer to hash it again.")
    ] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Ask the image too, in an engine: packages, GPU code.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check an image in a registry: digest, layers, signature, SBOM, provenance, key, GPUs, tags.

    Exit code 6 if a check fails. VERIFY_KEY is the public key that it must be signed by; signatures
    without a key are told of, with the command of cosign that checks them.
    """
    from pipeline import settings as settings_of
    from pipeline.attest import proof, signing
    from pipeline.attest import verify as checks
    from pipeline.errors import ConfigError
    from pipeline.host import ca

    loaded = settings_of.load(flags)
    if loaded.problems:
        raise ConfigError(loaded.problems)
    ca.trust(loaded.settings.ca_bundle)
    named = loaded.settings.verify_key
    verdict = checks.verify(
        checks.Reference.parse(reference),
        signing.public_key(named) if named else None,
        lambda said: typer.echo(said, err=True),
        layers=not shallow,
    )
    if deep and verdict.sbom:
        verdict = proof.looked_into(verdict, loaded.settings)
    if as_json:
        typer.echo(json.dumps(verdict.as_json()))
    else:
        for check in verdict.checks:
            typer.echo(f"{'ok' if check.passed else 'FAILED':<7} {check.name:<14} {check.told}")
    verdict.demand()
