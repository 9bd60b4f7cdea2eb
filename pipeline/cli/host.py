"""Verbs about this machine: doctor."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import takes_settings

if TYPE_CHECKING:
    from pipeline.doctor import Advice, Finding
    from pipeline.host.machine import Machine

PANEL = "This machine"

Tag = Annotated[
    str, typer.Argument(help="Tag of an image to judge in place of the settings'.", metavar="TAG")
]
Recorded = Annotated[
    str,
    typer.Option(
        "--machine",
        help="Judge the machine that `doctor --json` wrote into this file; - reads it from stdin.",
        metavar="FILE",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command(rich_help_panel=PANEL)(takes_settings(doctor))


def doctor(
    flags: dict[str, str],
    tag: Tag = "",
    machine: Recorded = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, the facts too.")] = False,
) -> None:
    """Say what is wrong with this machine, why it matters, and the command that mends it.

    Ends with the image that fits, and with 0, or 1 for warnings, or the code of the worst error: 4
    nothing can build, 9 an image would not run here, 2 the settings do not fit, 7 no delivery.
    """
    from pipeline import doctor as judging
    from pipeline import settings, tags, validate
    from pipeline.errors import ConfigError, Problem
    from pipeline.host import ca
    from pipeline.host.machine import look
    from pipeline.spec import Arch, ImageSpec

    loaded = settings.load(flags)
    chosen = loaded.settings
    name = tags.repository(chosen.image_name, chosen.registry) if chosen.registry else ""
    with contextlib.suppress(ConfigError):  # of which the settings' own check tells
        ca.trust(chosen.ca_bundle)
    facts = _recorded(machine) if machine else look(name)
    found = facts.nvidia.gpus if facts.nvidia else ()
    arches = [Arch.parse(it.capability) for it in found if it.capability]

    def image(of: settings.Settings, wrong: Sequence[Problem] = ()) -> ImageSpec:
        # Where a branch stands is nothing to a GPU, and would be asked of the network.
        return validate.image_spec(
            of, gpus=lambda: arches, resolve=lambda _url, _ref: "0" * 40, problems=wrong
        )

    problems = loaded.problems
    subject = judging.by_tag(tag) if tag else None
    if isinstance(subject, Problem):
        raise ConfigError([subject])
    try:
        spec = image(chosen, problems)
        subject = subject or judging.by_spec(spec)
    except ConfigError as error:
        problems = error.problems
    advice = judging.best(facts, chosen, image)
    findings = judging.judge(facts, chosen, subject, advice, problems)
    code = judging.exit_code(findings)
    if as_json:
        typer.echo(json.dumps(_content(findings, advice, facts, code)))
    else:
        _print(findings, advice, "mend the settings first" if problems else _NOTHING)
    raise typer.Exit(code)


def _recorded(path: str) -> Machine:
    """Return the machine in a file: the facts alone, or all that `doctor --json` prints."""
    from pydantic import ValidationError

    from pipeline.errors import ConfigError, Problem
    from pipeline.host.machine import Machine

    try:
        content = json.loads(sys.stdin.read() if path == "-" else Path(path).read_text())
        return Machine.model_validate(
            content["machine"] if isinstance(content, dict) and "machine" in content else content
        )
    except (OSError, ValueError, ValidationError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        raise ConfigError(
            [
                Problem(
                    "--machine",
                    path,
                    f"not the recording of a machine: {why}",
                    next_step="write one with `python -m pipeline doctor --json`",
                )
            ]
        ) from error


def _content(
    findings: Sequence[Finding], advice: Advice | None, facts: Machine, code: int
) -> dict[str, object]:
    import dataclasses

    return {
        "findings": [it.model_dump(mode="json", exclude={"stops"}) for it in findings],
        "advice": dataclasses.asdict(advice) if advice else None,
        "exit_code": code,
        "machine": facts.model_dump(mode="json", exclude_defaults=True),
    }


_NOTHING = "nothing on record serves these GPUs"


def _print(findings: Sequence[Finding], advice: Advice | None, otherwise: str) -> None:
    from rich.console import Console
    from rich.text import Text

    styles = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
    # A command that is broken into lines could not be copied.
    console = Console(file=sys.stdout, soft_wrap=True, highlight=False)
    for it in findings:
        console.print(Text(f"{it.level}: ", styles[it.level]) + Text(f"{it.what} ({it.id})"))
        rest = (("why", it.why), ("mend", it.mend), ("source", it.source))
        for label, text in rest:
            if text:
                console.print(Text(f"    {label}: ", "dim") + Text(text))
    if not findings:
        console.print(Text("nothing is wrong"))
    if advice is None:
        console.print(Text("fits: ", "bold") + Text(otherwise))
        return
    console.print(Text("fits: ", "bold green") + Text(f"{advice.ref}: {advice.why}"))
    if advice.least_driver:
        console.print(Text("    first: ", "dim") + Text(f"driver {advice.least_driver} or newer"))
    console.print(Text("    get it: ", "dim") + Text(advice.command))
