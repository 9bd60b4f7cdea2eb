"""Verbs about what a registry has: page, find."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import PANEL, AsJson, takes_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.host.machine import Machine
    from pipeline.listing import Image
    from pipeline.settings import Settings


def add_to(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command(rich_help_panel=PANEL)(takes_settings(find))
    app.command(rich_help_panel=PANEL)(takes_settings(page))


def page(
    flags: dict[str, str],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write.", dir_okay=False)
    ] = Path("dist/tags.html"),
) -> None:
    """Write a page of the images that REGISTRY has: one HTML file that needs nothing else."""
    from pipeline import listing
    from pipeline import page as pages

    _, repository = _repository(flags)
    images = listing.images(repository)
    pages.write(output, pages.page(repository, images))
    typer.echo(f"{len(images)} images", err=True)
    typer.echo(output)


def find(
    flags: dict[str, str],
    driver: Annotated[
        str, typer.Option("--driver", help="A driver's version, in place of this machine's.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Find the image in REGISTRY for this machine's GPUs, or for those of --cca; print it."""
    from pipeline.doctor import fit
    from pipeline.listing import images

    settings, repository = _repository(flags)
    machine = _machine(flags, driver)
    has = machine.nvidia.driver if machine.nvidia else ""
    devices = fit.gpus(machine)
    named = " ".join(map(str, devices)) or "no GPU"
    typer.echo(f"for {named}, {f'driver {has}' if has else 'any driver'}: {repository}", err=True)
    wanted = [it for it in images(repository, everything=False) if _is_asked_for(it, settings)]
    judged = fit.judged(wanted, devices, has)
    for it in judged:
        typer.echo(f"  {it.image.tag}: {'; '.join(it.why_not) or 'runs'}", err=True)
    best = next((it.image for it in judged if not it.why_not), None)
    if as_json:
        typer.echo(json.dumps({
            "ref": best.ref if best else None,
            "judged": [{"ref": it.image.ref, "why_not": it.why_not} for it in judged],
        }))  # fmt: skip
    if best is None:
        raise _nothing(settings, machine, repository, judged)
    if not as_json:
        typer.echo(best.ref)


def _repository(flags: dict[str, str]) -> tuple[Settings, str]:
    """Return the settings and the repository that they name; ConfigError if they name none."""
    from pipeline import settings, tags
    from pipeline.errors import ConfigError, Problem
    from pipeline.host import ca

    loaded = settings.load(flags)
    problems = list(loaded.problems)
    chosen = loaded.settings
    if not chosen.registry and not problems:
        problems.append(
            Problem("REGISTRY", "", "is where the images are looked for",
                    allowed="ghcr.io/team or localhost:5000", next_step="set it")
        )  # fmt: skip
    if problems:
        raise ConfigError(problems)
    ca.trust(chosen.ca_bundle)
    return chosen, tags.repository(chosen.image_name, chosen.registry)


def _machine(flags: dict[str, str], driver: str) -> Machine:
    """Return the GPUs and the driver of this machine, or of the one that is asked for."""
    from pipeline import validate
    from pipeline.errors import ConfigError, Problem
    from pipeline.host import gpu
    from pipeline.host.gpu import Gpu
    from pipeline.host.machine import Machine, Nvidia

    if driver and not re.fullmatch(r"\d+(\.\d+)*", driver):
        allowed = "550 or 550.54.15"
        raise ConfigError([Problem("--driver", driver, "not a driver's version", allowed=allowed)])
    asked = flags.get("CCA", "")
    if not asked or asked.lower() == "auto":
        seen = gpu.seen()
        return Machine(nvidia=Nvidia(driver=driver or seen.driver, gpus=seen.gpus))
    try:
        arches = validate.arch_list(asked)
    except ValueError as error:
        raise ConfigError(
            [Problem("CCA", asked, str(error), allowed="8.6, or '7.5 8.6'")]
        ) from error
    gpus = tuple(Gpu(name=f"a GPU of {it.number}", capability=it.number) for it in arches)
    return Machine(nvidia=Nvidia(driver=driver, gpus=gpus))


def _is_asked_for(image: Image, settings: Settings) -> bool:
    """Say whether an image has the versions that were set, if any were."""
    torch = (settings.pytorch_version_tag or settings.pytorch_version).removeprefix("v")
    wanted = {"python": settings.python_version, "torch": torch, "cuda": settings.cuda_version}
    return all(image.told(name) == text for name, text in wanted.items() if text)


def _nothing(
    settings: Settings, machine: Machine, repository: str, judged: Sequence[object]
) -> Exception:
    from pipeline import validate
    from pipeline.doctor import fit
    from pipeline.errors import NothingSelected

    arches = list(fit.gpus(machine))
    advice = fit.best(
        machine,
        # The GPUs are the machine's.
        settings.model_copy(update={"cca": ""}),
        lambda of: validate.image_spec(
            of, gpus=lambda: arches, resolve=lambda _url, _ref: "0" * 40
        ),
    )
    step = "publish one: nothing on record serves these GPUs"
    if advice:
        first = f"update the driver to {advice.least_driver}, then " if advice.least_driver else ""
        step = f"{first}`{advice.command}` makes one: {advice.why}"
    return NothingSelected(
        f"no image of {repository} runs there",
        why=f"{len(judged)} were looked at"
        if judged
        else "it has none with torch that was asked for",
        next_step=step,
    )
