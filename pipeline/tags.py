"""Names under which an image is found: tags for people, one tag for its key."""

from __future__ import annotations

from pipeline.spec import ImageSpec


def repository(image_name: str, registry: str = "") -> str:
    """Return the repository, as ``localhost:5000/cresset``: registry and name without a tag."""
    name = image_name.lower().partition(":")[0]
    return f"{registry.lower()}/{name}" if registry else name


def key_tag(spec: ImageSpec) -> str:
    """Return the tag that names the spec's key, by which a finished image is found again."""
    return f"key-{spec.key}"


def tags(spec: ImageSpec, image_name: str) -> tuple[str, ...]:
    """Return every tag of the image: its variant, the one IMAGE_NAME adds, the key's last.

    The key's tag comes last so that nobody finds an image by it that lacks its other tags.
    """
    extra = image_name.partition(":")[2]
    return tuple(dict.fromkeys(filter(None, (spec.variant, extra, key_tag(spec)))))
