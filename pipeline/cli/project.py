"""The containers that the command line and .env describe."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pipeline.compose import Project
    from pipeline.host.network import Network
    from pipeline.settings import Settings


def project(flags: dict[str, str], *, is_new: bool = True, doubting: bool = False) -> Project:
    """Return the containers that the settings describe; ConfigError for wrong settings.

    Only for one that `is_new` is the machine looked at: what runs has its GPUs already. With
    `doubting` it is said what in ``.env`` may be out of date.
    """
    import os

    from pipeline import compose, settings
    from pipeline.errors import ConfigError
    from pipeline.host import machine, user

    loaded = settings.load(flags)
    if loaded.problems:
        raise ConfigError(loaded.problems)
    for note in loaded.notes:
        typer.echo(f"note: {note}", err=True)
    here = compose.here()
    compose.check_folder(here)
    named = compose.named_files(os.environ, settings.ENV_FILE)
    looked = machine.look() if doubting or (is_new and not named) else None
    network = network_of(loaded.settings) if is_new else None
    variant = variant_of(loaded.settings)
    it = compose.Project(
        compose.service_of(loaded.settings),
        compose.variables(loaded.settings, here, user.identity(), variant)
        | (network.for_compose() if network and network.is_own else {}),
        compose.files(loaded.settings, looked, here, named, network),
    )
    if is_new and not it.image:
        compose.image_of(loaded.settings, it.service, variant)  # raises, and so says why
    if doubting and looked:
        made = ""
        with contextlib.suppress(ConfigError):
            unnamed = loaded.settings.model_copy(update={compose.IMAGES[it.service].lower(): ""})
            made = compose.image_of(unnamed, it.service, variant)
        for doubt in compose.doubts(loaded.settings, looked, it, made):
            typer.echo(f"note: {doubt}", err=True)
    return it


def network_of(settings: Settings) -> Network:
    """Return what containers have to know of this machine's network; say what they are not told."""
    import os

    from pipeline.host import ca, network

    ca.trust(settings.ca_bundle)
    found = network.look(settings, os.environ)
    for name in found.left_out:
        say(
            f"note: containers do not get {name}: the login in it would be in `docker inspect`; "
            "~/.netrc or the tool's own settings in the project take it"
        )
    return found


def variant_of(settings: Settings) -> Callable[[str], str]:
    """Return what answers with the variant that the settings make of a target."""
    from pipeline import validate

    return lambda target: validate.image_spec(settings, target).variant


def say(said: str) -> None:
    """Print what is not a result."""
    typer.echo(said, err=True)
