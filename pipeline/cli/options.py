"""Options that several verbs have, and one for every setting, made from the settings themselves."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.settings import NAMES, group_of

PANEL = "Images"
FILE = Path("images.toml")

Target = Annotated[
    str, typer.Argument(help="train (or full), devel, simple or ngc; default: SERVICE.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
HeldTo = Annotated[
    bool,
    typer.Option("--locked", help="Take what cresset.lock has; refuse what has moved since."),
]
Frozen = Annotated[
    bool, typer.Option("--frozen", help="Take what cresset.lock has, and ask nobody what moved.")
]
File = Annotated[Path, typer.Option("--file", help="File that names the images.", dir_okay=False)]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="GLOB", help="Only variants that fit; several are an or."),
]
Skip = Annotated[
    list[str] | None, typer.Option("--skip", metavar="GLOB", help="No variants that fit.")
]


def check_matrix_options(
    targets: Sequence[str],
    *,
    matrix: bool,
    only: Sequence[str] | None,
    skip: Sequence[str] | None,
    file: Path,
    resume: bool = False,
) -> None:
    """Refuse what goes with one image alone, or with a matrix alone, beside the other.

    Raises:
        ConfigError: each option that would change nothing.

    """
    from pipeline.errors import ConfigError, Problem

    if matrix and targets:
        why = "images.toml says which targets there are"
        step = f"leave it out, and choose by --only '{targets[0]}*'"
        raise ConfigError([Problem("TARGET", targets[0], why, next_step=step)])
    if matrix:
        return
    given = {"--only": ", ".join(only or ()), "--skip": ", ".join(skip or ())}
    given["--file"] = str(file) if file != FILE else ""
    given["--resume"] = "yes" if resume else ""
    problems = [
        Problem(name, value, "chooses among images, and this is one", next_step="add --matrix")
        for name, value in given.items()
        if value
    ]
    if problems:
        raise ConfigError(problems)


def takes_settings(verb: Callable[..., object]) -> Callable[..., None]:
    """Return the verb with an option a setting; it gets them as ``flags``, by variable name."""
    own = [
        p for p in inspect.signature(verb, eval_str=True).parameters.values() if p.name != "flags"
    ]
    options = {f"set_{name.lower()}": name for name in NAMES}

    def with_options(**given: Any) -> None:  # noqa: ANN401 - whatever the verb's own options are
        flags = {name: given.pop(parameter) for parameter, name in options.items()}
        verb(flags=flags, **given)

    parameters = own + [
        inspect.Parameter(
            parameter,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=str,
            default=typer.Option(
                "",
                f"--{name.lower().replace('_', '-')}",
                help=NAMES[name].description,
                rich_help_panel=f"Settings: {group_of(NAMES[name])}",
                show_default=False,
                metavar=name,
            ),
        )
        for parameter, name in options.items()
    ]
    with_options.__name__ = verb.__name__
    with_options.__doc__ = verb.__doc__
    with_options.__annotations__ = {p.name: p.annotation for p in parameters}
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return with_options
