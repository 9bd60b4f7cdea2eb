"""What is attached to an image in a registry, read as it is and believed in nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.attest import provenance, referrers, sbom, signing
from pipeline.attest.referrers import Descriptor, Manifest

SIGNATURES = ".sig"
ENVELOPES = ".att"
"""Of the tags that cosign looks under."""
_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
"""Of what cosign 3 attaches, signatures and statements (https://docs.sigstore.dev/about/bundle)."""
_SAYS = "dev.sigstore.bundle.predicateType"
_SIGNED = "https://sigstore.dev/cosign/sign/v1"
_AT_ONCE = 8


@dataclass(frozen=True)
class Attached:
    """Every document that refers to an image; each is the bytes that its digest says."""

    sboms: tuple[bytes, ...] = ()
    statements: tuple[bytes, ...] = ()
    envelopes: tuple[bytes, ...] = ()
    signatures: tuple[tuple[bytes, str], ...] = ()
    """What was signed, and its signature."""
    by_cosign: tuple[bytes, ...] = ()
    """What cosign alone checks: its bundles that sign, and payloads signed with a certificate."""
    damaged: tuple[str, ...] = ()
    """What is attached and is not what its digest says, or is gone."""


def attached(repository: str, image: str) -> Attached:
    """Return what is attached to the image of a digest; PublishError without an answer."""
    damaged: list[str] = []
    layers: dict[str, Descriptor] = {}
    for manifest in _manifests(repository, image, damaged):
        if _states(manifest.read.get("annotations") or {}):
            continue  # cosign's copy of a statement that is attached as it is too
        for layer in manifest.read.get("layers") or ():
            # The signature is on the payload's own entry, and one payload may have several.
            layers[layer["digest"] + str(layer.get("annotations", {}))] = layer
    read: dict[str, list[Any]] = {kind: [] for kind in _KINDS}
    for layer in layers.values():
        kind, digest = layer.get("mediaType", ""), str(layer["digest"])
        if kind not in read:
            continue
        content = referrers.blob(repository, digest)
        if content is None or referrers.digest_of(content) != digest:
            state = "is gone" if content is None else "has other bytes than its digest says"
            damaged.append(f"{_KINDS[kind]} {digest} {state}")
        elif kind == signing.PAYLOAD_TYPE:
            notes = layer.get("annotations", {})
            if signing.CERTIFICATE in notes:
                read[_BUNDLE].append(content)
            else:
                read[kind].append((content, notes.get(signing.SIGNATURE, "")))
        else:
            read[kind].append(content)
    boms, statements, envelopes, signatures, by_cosign = (
        tuple(dict.fromkeys(read[it])) for it in _KINDS
    )
    return Attached(boms, statements, envelopes, signatures, by_cosign, tuple(damaged))


_KINDS = {
    sbom.MEDIA_TYPE: "the SBOM",
    provenance.MEDIA_TYPE: "the provenance",
    signing.ENVELOPE_TYPE: "the signed statement",
    signing.PAYLOAD_TYPE: "the signature's payload",
    _BUNDLE: "the signature's bundle",
}


def are_signed(tagged: Collection[tuple[str, str]]) -> frozenset[tuple[str, str]]:
    """Return those of some repositories' tags whose image somebody has signed, by whatever key.

    Raises:
        PublishError: a registry cannot be asked.

    """
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - few commands ask for it

    def is_signed(place: tuple[str, str]) -> bool:
        repository, tag = place
        image = referrers.manifest(repository, tag)
        if image is None:
            return False
        sig = referrers.tag_of(image.digest, SIGNATURES)
        listed = referrers.referrers(repository, image.digest)
        return (
            any(_signs(repository, it) for it in listed)
            or referrers.manifest(repository, sig) is not None
        )

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return frozenset(
            place for place, it in zip(tagged, threads.map(is_signed, tagged), strict=True) if it
        )


def is_documented(repository: str, image: str) -> bool:
    """Say whether the image of a digest has an SBOM and a provenance, whatever they say.

    Raises:
        PublishError: the registry cannot be asked.

    """
    types = {it.get("artifactType") for it in referrers.referrers(repository, image)}
    return {sbom.MEDIA_TYPE, provenance.MEDIA_TYPE} <= types


def _signs(repository: str, entry: Descriptor) -> bool:
    """Say whether an artifact that is listed is a signature, and no statement of cosign's."""
    if entry.get("artifactType") != _BUNDLE:
        return bool(entry.get("artifactType") == signing.ARTIFACT_TYPE)
    notes = entry.get("annotations") or {}
    if _SAYS not in notes:  # cosign's own list leaves them out (sigstore/cosign issue 4641)
        itself = referrers.manifest(repository, str(entry["digest"]))
        notes = (itself.read.get("annotations") if itself else None) or {}
    return not _states(notes)


def _states(notes: Mapping[str, str]) -> bool:
    """Say whether a bundle is a statement about an image, which signs none, by its annotations."""
    return notes.get(_SAYS, _SIGNED) != _SIGNED


def _manifests(repository: str, image: str, damaged: list[str]) -> Iterator[Manifest]:
    """Yield every artifact of the image, those of cosign that are found by a tag too."""
    for entry in referrers.referrers(repository, image):
        digest = str(entry["digest"])
        found = referrers.manifest(repository, digest)
        if found is None or found.digest != digest:
            state = "is gone" if found is None else "has other bytes than its digest says"
            damaged.append(f"the artifact {digest} {state}")
        elif found.read.get("subject", {}).get("digest") != image:
            damaged.append(f"the artifact {digest} is listed for this image and is of another")
        else:
            yield found
    for suffix in (SIGNATURES, ENVELOPES):
        if tagged := referrers.manifest(repository, referrers.tag_of(image, suffix)):
            yield tagged
