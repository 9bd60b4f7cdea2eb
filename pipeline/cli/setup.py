"""Verbs that write down and show settings and tables: env, over, config, updates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import takes_settings

if TYPE_CHECKING:
    from pipeline.settings import Loaded

PANEL = "Settings"


def add_to(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command(rich_help_panel=PANEL)(takes_settings(env))
    app.command(rich_help_panel=PANEL)(takes_settings(over))
    app.command(rich_help_panel=PANEL)(takes_settings(config))
    app.command(rich_help_panel=PANEL)(takes_settings(updates))


def env(flags: dict[str, str]) -> None:
    """Write a commented .env for this user and machine; never overwrites one."""
    from pipeline import compose
    from pipeline.cli.project import network_of, variant_of
    from pipeline.host import machine, user
    from pipeline.settings import ENV_FILE, Origin

    loaded = _loaded(flags)
    chosen, here = loaded.settings, compose.here()
    asked = {
        name: getattr(chosen, name.lower())
        for name, origin in loaded.origins.items()
        if origin is Origin.FLAG
    }
    variables = compose.variables(chosen, here, user.identity(), variant_of(chosen))
    images = {name: variables[name] for name in compose.IMAGES.values() if name in variables}
    network = network_of(chosen)
    files = compose.files(chosen, machine.look(), here, network=network)
    for_compose = {
        "COMPOSE_FILE": ":".join(map(str, files)),
        "COMPOSE_PROFILES": compose.service_of(chosen),
        **(network.for_compose() if network.is_own else {}),
    }
    own = {name: variables[name] for name in ("HOST_ROOT", "PROJECT")}
    _write(ENV_FILE, user.env_file(own | images | asked, for_compose))


def over(flags: dict[str, str]) -> None:
    """Write docker-compose.override.yaml for this machine's volumes; never overwrites one."""
    import os

    from pipeline import compose
    from pipeline.host import user
    from pipeline.settings import ENV_FILE

    service = compose.service_of(_loaded(flags).settings)
    _write(compose.OVERRIDE, user.OVERRIDE.format(service=service))
    named = compose.named_files({}, ENV_FILE).split(os.pathsep)
    if named != [""] and str(compose.OVERRIDE) not in named:
        files = os.pathsep.join([*named, str(compose.OVERRIDE)])
        user.set_variable(ENV_FILE, "COMPOSE_FILE", files)
        typer.echo(f"{ENV_FILE}: COMPOSE_FILE names it now", err=True)


def config(
    flags: dict[str, str],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show every setting, its value and where that came from."""
    from pipeline import settings

    loaded = _loaded(flags)
    values = {n: settings.shown(getattr(loaded.settings, n.lower()), n) for n in settings.NAMES}
    if as_json:
        content = {n: {"value": v, "origin": loaded.origins[n]} for n, v in values.items()}
        typer.echo(json.dumps(content))
        return
    for note in loaded.notes:
        typer.echo(f"note: {note}", err=True)
    width = max(map(len, values))
    for name, value in values.items():
        typer.echo(f"{name:<{width}}  {value or '-':<24} {loaded.origins[name]}")


def updates(
    flags: dict[str, str],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the releases of torch and torchvision that the tables of what goes together lack."""
    from pipeline import updates as newer
    from pipeline.host import ca

    chosen = _loaded(flags).settings
    ca.trust(chosen.ca_bundle)
    index = chosen.index_url or newer.PYPI
    found = newer.missing(lambda package: newer.releases(package, index))
    if as_json:
        typer.echo(json.dumps(found))
        return
    for package, versions in found.items():
        said = f"lack {', '.join(versions)}" if versions else "have its newest release"
        typer.echo(f"- {package}: the compatibility tables {said}")


def _loaded(flags: dict[str, str]) -> Loaded:
    from pipeline import settings
    from pipeline.errors import ConfigError

    loaded = settings.load(flags)
    if loaded.problems:
        raise ConfigError(loaded.problems)
    return loaded


def _write(path: Path, text: str) -> None:
    from pipeline.host import user

    written = user.write_new(path, text)
    typer.echo(
        f"{path} written" if written else f"{path} is there already; left as it is", err=True
    )
