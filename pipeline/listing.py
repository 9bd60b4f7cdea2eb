"""The images of a repository, as its registry tells of them: tags, labels, sizes, days."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final

from pipeline import publish, tags
from pipeline.attest import referrers, sbom
from pipeline.attest.referrers import Manifest
from pipeline.compat.tables import numbers
from pipeline.labels import ARCHES
from pipeline.publish import KEY_LABEL
from pipeline.spec import Arch, code_arches

_AT_ONCE: Final = 8
_LONG_AGO: Final = 2000


@dataclass(frozen=True)
class Image:
    """One image of a repository; what it does not tell of itself is empty."""

    repository: str
    digest: str
    tags: tuple[str, ...]
    """Readable ones first, then dated ones."""
    size: int
    """Bytes to pull, compressed."""
    labels: Mapping[str, str]
    day: date | None = None
    """When it was delivered, by its dated tag, else when it was made."""
    sbom: str = ""
    """URL of its SBOM, if one is attached."""

    @property
    def tag(self) -> str:
        """The tag to know it by: its variant's while it has that, else the first there is."""
        variant = self.labels.get("org.opencontainers.image.version", "")
        return variant if variant in self.tags else self.tags[0]

    @property
    def ref(self) -> str:
        """The reference that is this image and no other."""
        return f"{self.repository}:{self.tag}@{self.digest}"

    @property
    def arches(self) -> tuple[Arch, ...]:
        """The architectures that it has code for."""
        return tuple(code_arches(self.labels.get(ARCHES, "").split()))

    @property
    def gpus(self) -> str:
        """The same for people: each once, as ``8.6 9.0+PTX``."""
        arches = self.arches
        with_ptx = {it.sm for it in arches if it.ptx}
        return " ".join(str(it) for it in arches if it.ptx or it.sm not in with_ptx)

    def told(self, name: str) -> str:
        """Return what it says of itself under ``dev.cresset.<name>``."""
        return self.labels.get(f"dev.cresset.{name}", "")


def images(repository: str, *, everything: bool = True) -> list[Image]:
    """Return the images of Cresset's that a repository has under tags for people, newest first.

    Without `everything`, those alone whose tag is not of a day, and without their SBOM.

    Raises:
        PublishError: the registry cannot be asked, or answers with anything else.

    """
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - only these verbs need it

    names = [
        it
        for it in publish.published(repository)
        if tags.is_for_people(it) or (everything and tags.day_of(it))
    ]
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        found = threads.map(lambda tag: referrers.manifest(repository, tag), names)
        by_digest: dict[str, tuple[Manifest, list[str]]] = {}
        for tag, manifest in zip(names, found, strict=True):
            # One that is pruned in the meantime is no image any more.
            if manifest is not None:
                by_digest.setdefault(manifest.digest, (manifest, []))[1].append(tag)
        read = threads.map(
            lambda it: _image(repository, *it, everything=everything), by_digest.values()
        )
        there = [it for it in read if it is not None]
    return sorted(there, key=_newest_first)


def _newest_first(image: Image) -> tuple[Any, ...]:
    release = [-it for it in numbers(image.told("torch"))] if image.told("torch") else [0]
    return (-image.day.toordinal() if image.day else 0, release, image.tag)


def _image(
    repository: str, manifest: Manifest, names: list[str], *, everything: bool
) -> Image | None:
    """Return the image of a manifest, None if it is none of Cresset's."""
    content = manifest.read
    config = content.get("config") or {}
    blob = referrers.blob(repository, config.get("digest", "")) if config else None
    about = referrers.parsed(blob) if blob else {}
    labels: dict[str, str] = (about.get("config") or {}).get("Labels") or {}
    if KEY_LABEL not in labels:
        return None
    days = sorted(day for it in names if (day := tags.day_of(it)))
    return Image(
        repository=repository,
        digest=manifest.digest,
        tags=tuple(sorted(names, key=lambda it: (not tags.is_for_people(it), it))),
        size=sum(it["size"] for it in [config, *content.get("layers", ())]),
        labels=labels,
        day=days[-1] if days else _made(str(about.get("created", ""))),
        sbom=_sbom(repository, manifest.digest) if everything else "",
    )


def _made(text: str) -> date | None:
    """Return the day in an image's config; None for the epoch, which says nothing."""
    try:
        day = datetime.fromisoformat(text).date()
    except ValueError:
        return None
    return day if day.year > _LONG_AGO else None


def _sbom(repository: str, digest: str) -> str:
    """Return the URL of the SBOM that is attached to an image, empty without one."""
    host, _, path = repository.partition("/")
    scheme = "http" if publish.is_plain(host) else "https"
    for it in referrers.referrers(repository, digest):
        manifest = referrers.manifest(repository, it["digest"])
        for layer in (manifest.read.get("layers") or ()) if manifest else ():
            if layer.get("mediaType") == sbom.MEDIA_TYPE:
                return f"{scheme}://{host}/v2/{path}/blobs/{layer['digest']}"
    return ""
