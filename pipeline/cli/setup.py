"""Verbs that write down and show settings: env, over, config."""

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
    app.command(rich_help_panel=PANEL)(env)
    app.command(rich_help_panel=PANEL)(takes_settings(over))
    app.command(rich_help_panel=PANEL)(takes_settings(config))


def env() -> None:
    """Write a commented .env for this user and machine; never overwrites one."""
    from pipeline.host import user
    from pipeline.settings import ENV_FILE

    _write(ENV_FILE, user.env_file())


def over(flags: dict[str, str]) -> None:
    """Write docker-compose.override.yaml for this machine's volumes; never overwrites one."""
    from pipeline.host import user

    service = _loaded(flags).settings.service.replace("full", "train")
    _write(Path("docker-compose.override.yaml"), user.OVERRIDE.format(service=service))


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
