"""Specs as users come by them: from settings and the repository's ``reqs/``."""

from __future__ import annotations

from pathlib import Path

from pipeline.settings import load
from pipeline.spec import Arch, ImageSpec
from pipeline.validate import image_spec
from pipeline.validate_source import Resolve, unresolved
from tests.unit.running import ROOT


def spec(target: str = "", **settings: str) -> ImageSpec:
    """Return the spec of these settings, with the repository's ``reqs/``."""
    return spec_in(ROOT / "reqs", target, unresolved, **settings)


def spec_in(
    folder: Path, target: str = "", resolve: Resolve = unresolved, /, **settings: str
) -> ImageSpec:
    """Return the spec of these settings and of no other on this machine."""
    loaded = load(settings, environ={}, env_file=Path("/nonexistent/.env"))
    return image_spec(
        loaded.settings, target, folder=folder, resolve=resolve, problems=loaded.problems
    )


def arches(text: str) -> list[Arch]:
    return [Arch.parse(word) for word in text.split()]
