"""One command-line option for every setting, made from the settings themselves."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import typer

from pipeline.settings import NAMES, group_of


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
