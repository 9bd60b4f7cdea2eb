"""Names under which an image is found: tags for people, one tag for its key."""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, date, datetime

from pipeline.spec import ImageSpec

_DATED = re.compile(r".+-(20\d{6})")


def repository(image_name: str, registry: str = "") -> str:
    """Return the repository, as ``localhost:5000/cresset``: registry and name without a tag."""
    name = image_name.lower().partition(":")[0]
    return f"{registry.lower()}/{name}" if registry else name


def key_tag(spec: ImageSpec) -> str:
    """Return the tag that names the spec's key, by which a finished image is found again."""
    return f"key-{spec.key}"


def dated(spec: ImageSpec, day: date) -> str:
    """Return the tag of an image that was delivered on a day of UTC: ``<variant>-20261128``.

    It stays where the variant's own tag moves on. Nothing is found by it, so that the next day has
    nothing to do either.
    """
    return f"{spec.variant}-{day:%Y%m%d}"


def tags(spec: ImageSpec, image_name: str) -> tuple[str, ...]:
    """Return every tag of the image: its variant, the one IMAGE_NAME adds, the key's last.

    The key's tag comes last so that nobody finds an image by it that lacks its other tags.
    """
    extra = image_name.partition(":")[2]
    return tuple(dict.fromkeys(filter(None, (spec.variant, extra, key_tag(spec)))))


def day_of(tag: str) -> date | None:
    """Return the day that is in a dated tag, None where there is none."""
    match = _DATED.fullmatch(tag)
    with contextlib.suppress(ValueError):
        return datetime.strptime(match[1], "%Y%m%d").replace(tzinfo=UTC).date() if match else None
    return None


def is_for_people(tag: str) -> bool:
    """Say whether a tag names an image by what is in it, and not by a key, a digest or a day."""
    return not tag.startswith(("key-", "sha256-")) and day_of(tag) is None
