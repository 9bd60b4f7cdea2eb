"""The verbs: parse, call, print. What they call is imported by them, so that each starts fast."""

from __future__ import annotations

import typer

from pipeline.cli import (
    adopt,
    bundle,
    containers,
    engine,
    host,
    image,
    lock,
    matrix,
    proof,
    registry,
    setup,
)

app = typer.Typer(
    name="cresset",
    help="Deep-learning dev images: PyTorch for your GPU, checked, published, shared.",
    epilog="With `--json`, an error is printed on standard output too: "
    '`{"error": {"what", "why", "next", "details", "stage", "log", "exit_code"}}`.',
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
image.add_to(app)
lock.add_to(app)
matrix.add_to(app)
proof.add_to(app)
registry.add_to(app)
setup.add_to(app)
containers.add_to(app)
host.add_to(app)
adopt.add_to(app)
app.add_typer(engine.app, name="engine", rich_help_panel="Engine")
app.add_typer(bundle.app, name="bundle", rich_help_panel="Images")
