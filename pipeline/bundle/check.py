"""Run by an export in a network namespace with no route: builds from the bundle, keeps nothing."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import build, lock, settings, validate
from pipeline.bundle import importing
from pipeline.engine import local
from pipeline.errors import CressetError
from pipeline.publish import Delivered
from pipeline.spec import ImageSpec

if TYPE_CHECKING:
    from dagger import Container


@dataclass(frozen=True)
class Nowhere:
    """A place for an image that is only made, and checked."""

    name: str = "nowhere"
    repository: str = "nowhere"

    def find(self, _: ImageSpec) -> Delivered | None:
        """Return nothing: there is nothing here."""
        return None

    async def deliver(self, image: Container, spec: ImageSpec) -> Delivered:
        """Make all of the image."""
        image = await image.sync()
        return Delivered(spec.key, spec.key, 0)


def main(target: str, held: str) -> int:
    """Build the target of the settings from the bundle that they name; print the image's key.

    `held` is a lock that the build is held to, as a file; empty for none.
    """
    try:
        chosen = settings.load({"ATTEST": "off"}).settings  # there is nothing to prove
        spec = validate.image_spec(chosen, target)
        if held:
            spec = lock.held(spec, lock.read(Path(held)))
        importing.put_in_place(Path(chosen.bundle))
        try:
            done = build.build(spec, chosen, Nowhere())
        finally:
            local.stop(lambda line: None)  # noqa: ARG005 - an engine that nobody else knows of
    except CressetError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(done.delivered.ref)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
