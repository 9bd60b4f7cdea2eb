"""The images of a repository as one HTML file, for people who look for the one they need."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import CressetError
from pipeline.listing import Image


def page(repository: str, images: Sequence[Image]) -> str:
    """Return the page: complete in itself, readable without a script, escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415 - one verb's

    environment = Environment(
        loader=PackageLoader("pipeline", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"size": _size, "version": _sortable}
    template = environment.get_template("tags.html.j2")
    return template.render(repository=repository, images=images) + "\n"


def write(path: Path, text: str) -> None:
    """Write the page, whole or not at all; CressetError if it cannot be written."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CressetError(
            f"{path} cannot be written",
            why=str(error.strerror),
            next_step="name another file with --output",
        ) from error


def _size(count: int) -> str:
    """Return bytes as people read them: powers of ten, as registries count."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"  # noqa: PLR2004


def _sortable(text: str) -> str:
    """Return a version as a text that sorts as versions do."""
    return ".".join(f"{part:>06}" for part in text.split("."))
