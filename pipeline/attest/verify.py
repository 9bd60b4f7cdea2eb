"""Is an image in a registry what it is said to be: each check by name, and what it found.

Nothing is taken on trust from the registry: what a digest names is hashed again, and who made it is
known by a signature alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pipeline.attest import provenance, referrers, sbom, signing
from pipeline.attest.attached import Attached, attached
from pipeline.attest.provenance import Statement
from pipeline.attest.referrers import Manifest
from pipeline.compat import source
from pipeline.errors import ConfigError, Problem, ProofError, PublishError
from pipeline.labels import ARCHES
from pipeline.publish import KEY_LABEL, with_registry
from pipeline.spec import code_arches

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

_OURS: Final = "dev.cresset."
_HEX = 12


@dataclass(frozen=True)
class Reference:
    """An image of a registry, by a tag, a digest, or both."""

    repository: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Return what a reference names, with Docker's own registry where it names none.

        Raises:
            ConfigError: it is none, or has neither a tag nor a digest.

        """
        match = re.fullmatch(
            r"(?P<name>[\w.-]+(?::\d+)?(?:/[a-z0-9._-]+)*)"
            r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?",
            text,
        )
        if match is None or not (match["tag"] or match["digest"]):
            raise ConfigError(
                [Problem("REF", text, "not a reference with a tag or a digest",
                         allowed="registry/name:tag, registry/name@sha256:…, or both")]
            )  # fmt: skip
        return cls(with_registry(match["name"]), match["tag"] or "", match["digest"] or "")

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.repository}{tag}{f'@{self.digest}' if self.digest else ''}"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what was found, or why it fails."""

    name: str
    passed: bool
    told: str


@dataclass(frozen=True)
class Verdict:
    """All checks of one image."""

    ref: str
    digest: str
    checks: tuple[Check, ...]
    sbom: bytes = b""

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.passed)

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {
            "ref": self.ref,
            "digest": self.digest,
            "passed": not self.failed,
            "checks": [{"name": c.name, "passed": c.passed, "told": c.told} for c in self.checks],
        }

    def demand(self) -> None:
        """Raise ProofError if a check failed."""
        if self.failed:
            raise ProofError(
                self.ref,
                [Problem(check.name, self.digest, check.told) for check in self.failed],
                next_step="do not use it; ask who publishes it, or build it again with --force",
            )


def verify(
    reference: Reference,
    key: EllipticCurvePublicKey | None,
    say: Callable[[str], None],
    *,
    layers: bool = True,
) -> Verdict:
    """Return the verdict about an image.

    Without a `key` nobody knows who made it, only that all of it goes together. `layers` says
    whether each is pulled and hashed.

    Raises:
        ProofError: the registry does not answer, or has no such image.

    """
    try:
        return _verify(reference, key, say, layers=layers)
    except PublishError as error:
        problem = Problem("registry", str(reference), f"{error.what}: {error.why}")
        raise ProofError(str(reference), [problem], next_step=error.next_step) from error
    except MALFORMED as error:
        raise _malformed(reference, error) from error


# Whoever may push decides what form a manifest has.
MALFORMED = (LookupError, TypeError, ValueError, AttributeError)


def _malformed(reference: Reference, error: Exception) -> ProofError:
    why = f"a manifest has not the form that OCI gives it: {type(error).__name__} {error}"
    return ProofError(str(reference), [Problem("manifest", str(reference), why)])


def published(image: str, digests: Sequence[str]) -> Reference:
    """Return by its digest the image that Docker has under a name; `digests` are Docker's own.

    Raises:
        ProofError: it is in no registry under that name, as far as Docker knows.

    """
    name, _, asked = image.partition("@")
    repository = Reference.parse(name if re.search(r":[^/]+$", name) else f"{name}:any").repository
    found = [it for it in map(Reference.parse, digests) if it.repository == repository]
    # Of several, which Docker keeps for one image, the one that was asked for.
    found.sort(key=lambda it: it.digest != asked)
    if not found:
        why = "it was made or loaded here and not pulled, so no registry has a signature of it"
        raise ProofError(
            image,
            [Problem("signature", image, why)],
            next_step="publish it with REGISTRY and SIGN_KEY, or leave VERIFY_KEY empty",
        )
    return found[0]


def demand_signature(reference: Reference, key: EllipticCurvePublicKey) -> None:
    """Raise ProofError unless the image of a digest is signed by the key; nothing else is asked."""
    try:
        check = _signature(reference, attached(reference.repository, reference.digest), key)
    except PublishError as error:
        check = Check("signature", passed=False, told=f"{error.what}: {error.why}")
    except MALFORMED as error:
        raise _malformed(reference, error) from error
    Verdict(str(reference), reference.digest, (check,)).demand()


def _verify(
    reference: Reference,
    key: EllipticCurvePublicKey | None,
    say: Callable[[str], None],
    *,
    layers: bool,
) -> Verdict:
    repository = reference.repository
    image = referrers.manifest(repository, reference.digest or reference.tag)
    if image is None:
        problem = Problem("manifest", str(reference), "the registry has no such image")
        raise ProofError(str(reference), [problem], next_step="check the reference")
    digest = reference.digest or image.digest
    pinned = Reference(repository, digest=digest)
    checks = [_manifest(image, digest)]
    labels: dict[str, str] = {}
    if checks[0].passed:
        config, check = _config(repository, image)
        labels = config.get("config", {}).get("Labels") or {}
        checks += [check, _labels(image, labels)]
        if layers:
            checks.append(_layers(repository, image, say))
    there = attached(repository, digest)
    if there.damaged:
        checks.append(Check("attached", passed=False, told="; ".join(there.damaged)))
    if key is not None:
        checks.append(_signature(pinned, there, key))
    statements, check = _provenance(digest, there, key)
    checks.append(check)
    content, check = _sbom(digest, there, statements)
    checks.append(check)
    checks += _names(reference, digest, labels, statements)
    if key is None:
        checks.append(_unchecked(pinned, there))
    return Verdict(str(reference), digest, tuple(checks), content)


def _manifest(image: Manifest, digest: str) -> Check:
    if image.digest != digest:
        told = f"what is served for {digest} has the digest {image.digest}"
        return Check("manifest", passed=False, told=told)
    if "layers" not in image.read:
        told = "a list of images for several platforms, which Cresset does not make"
        return Check("manifest", passed=False, told=told)
    return Check("manifest", passed=True, told=f"{len(image.content)} bytes, of its digest")


def _config(repository: str, image: Manifest) -> tuple[dict[str, Any], Check]:
    digest = str(image.read["config"]["digest"])
    content = referrers.blob(repository, digest) or b""
    if referrers.digest_of(content) != digest:
        told = f"{digest} has other bytes than its digest says, or none"
        return {}, Check("config", passed=False, told=told)
    return referrers.parsed(content), Check("config", passed=True, told="of its digest")


def _labels(image: Manifest, labels: dict[str, str]) -> Check:
    """Check that the manifest says what the config says: tools read one or the other."""
    noted = image.read.get("annotations") or {}
    names = sorted(it for it in {*labels, *noted} if it.startswith(_OURS))
    other = [name for name in names if labels.get(name) != noted.get(name)]
    if other or KEY_LABEL not in labels:
        told = f"labels and annotations differ in {', '.join(other)}" if other else "none of ours"
        return Check("labels", passed=False, told=told)
    return Check("labels", passed=True, told=f"{len(names)} of {_OURS}*, the annotations too")


def _layers(repository: str, image: Manifest, say: Callable[[str], None]) -> Check:
    layers = image.read["layers"]
    bad = []
    for number, layer in enumerate(layers, 1):
        digest, size = str(layer["digest"]), int(layer["size"])
        say(f"layer {number} of {len(layers)}: {size / 1e6:.1f} MB")
        found, length = referrers.sum_of(repository, digest)
        if (found, length) != (digest, size):
            bad.append(f"{digest} is {length} bytes of {found}" if length else f"{digest} is gone")
    total = sum(int(layer["size"]) for layer in layers)
    good = f"{len(layers)} layers, {total / 1e6:.1f} MB, each of its digest"
    return Check("layers", passed=not bad, told="; ".join(bad) or good)


def _signature(pinned: Reference, there: Attached, key: EllipticCurvePublicKey) -> Check:
    by_key = [it for it in there.signatures if signing.is_signed(key, *it)]
    if any(signing.is_about(signed, pinned.digest) for signed, _ in by_key):
        return Check("signature", passed=True, told="by the key of VERIFY_KEY")
    in_a_way = " in a way that is checked here" if there.by_cosign else ""
    why = f"it is not signed{in_a_way}"
    if there.signatures:
        why = "nobody with the key of VERIFY_KEY has signed it"
    if by_key:
        why = "what the key has signed is another image"
    return Check("signature", passed=False, told="; ".join((why, *_by_cosign(pinned, there))))


def _unchecked(pinned: Reference, there: Attached) -> Check:
    number = len(there.signatures)
    told = [f"{number} of them, not checked: VERIFY_KEY names no key"] if number else []
    told += _by_cosign(pinned, there)
    return Check("signature", passed=True, told="; ".join(told) or "none")


def _by_cosign(pinned: Reference, there: Attached) -> Iterator[str]:
    """Yield what is to be said of signatures that are not checked here, each with what does it."""
    by_key = [signing.is_by_key(it) for it in there.by_cosign]
    if not all(by_key):
        yield (
            "a keyless signature is attached, and not checked here: name who is to have signed in "
            "`cosign verify --certificate-identity-regexp '^https://github.com/OWNER/REPOSITORY/' "
            f"--certificate-oidc-issuer https://token.actions.githubusercontent.com {pinned}`"
        )
    if any(by_key):
        yield (
            "a signature by a key is attached in a bundle of cosign's, and not checked here: "
            f"`cosign verify --key FILE {pinned}`"
        )


def gpu_code(label: str, found: Sequence[str], torch: str) -> Check:
    """Check that the label of an image names the GPU code that was `found` in it.

    `torch` is the version of the one in it, which compiles a few files for more by itself; that
    much more the label may name, for a build lists those too.
    """
    named = set(label.split())
    more = {it.sm for it in source.extra_arches(torch, code_arches(found))}
    told = " ".join(found)
    if set(found) <= named <= {*found, *more}:
        return Check("GPU code", passed=True, told=f"{told or 'none'}, by the torch in it")
    why = f"the label says {label or 'none'}, the torch in it {told or 'none'}"
    return Check("GPU code", passed=False, told=why)


def _provenance(
    digest: str, there: Attached, key: EllipticCurvePublicKey | None
) -> tuple[list[Statement], Check]:
    """Return each provenance that holds, newest first; with a key only what it has signed.

    An image has several that was published again, under more tags perhaps.
    """
    candidates: set[bytes | None] = set(there.statements)
    if key is not None:
        candidates &= {signing.opened(key, it, provenance.MEDIA_TYPE) for it in there.envelopes}
    good: list[Statement] = []
    why = "there is none" + (" that the key of VERIFY_KEY has signed" if key else "")
    for content in filter(None, candidates):
        read = provenance.read(content)
        if isinstance(read, str):
            why = f"it is not as its specification says: {read}"
        elif not read.is_about(digest):
            why = "it is about another image"
        else:
            good.append(read)
    if not good:
        return [], Check("provenance", passed=False, told=why)
    good.sort(key=lambda it: it.finished, reverse=True)
    told = f"by {good[0].predicate.run_details.builder.id} {good[0].finished}".rstrip()
    return good, Check("provenance", passed=True, told=told)


def _sbom(digest: str, there: Attached, statements: Sequence[Statement]) -> tuple[bytes, Check]:
    """Return the SBOM; there must be none that no provenance names."""
    named = {name for statement in statements for name in statement.sboms}

    def failed(told: str) -> tuple[bytes, Check]:
        return b"", Check("SBOM", passed=False, told=told)

    if not there.sboms:
        return failed("there is none")
    for content in there.sboms:
        summed = referrers.digest_of(content).partition(":")[2]
        if why := sbom.invalid(content):
            return failed(f"it is not as the schema of CycloneDX 1.6 says: {why[:200]}")
        if sbom.names(content) != digest:
            return failed("it is that of another image")
        if summed not in named:
            return failed(f"sha256 {summed[:_HEX]}… is none that the provenance names")
    content = there.sboms[0]
    told = f"CycloneDX 1.6, {len(sbom.listed(content))} components, named by the provenance"
    return content, Check("SBOM", passed=True, told=told)


def _names(
    reference: Reference, digest: str, labels: dict[str, str], statements: Sequence[Statement]
) -> Iterator[Check]:
    """Check that key, tags and architectures are everywhere the same."""
    key, arches = labels.get(KEY_LABEL, ""), labels.get(ARCHES, "")
    for statement in statements[:1]:
        same = bool(key) and key == statement.key
        why = f"the label says {key[:_HEX]}…, the provenance {statement.key[:_HEX]}…"
        yield Check("key", passed=same, told=f"{key[:_HEX]}…" if same else why)
        same = arches == statement.arches
        why = f"the label says {arches or 'none'}, the provenance {statement.arches or 'none'}"
        told = arches or "no GPU code of ours"
        yield Check("architectures", passed=same, told=told if same else why)
    if reference.tag:
        published = {tag for statement in statements for tag in statement.tags}
        yield _tag(reference, digest, f"key-{key}", published)


def _tag(reference: Reference, digest: str, key_tag: str, published: set[str]) -> Check:
    """Check that a tag leads to the image, and that the image was published under it."""
    undated = re.sub(r"-\d{8}$", "", reference.tag)  # see `tags.dated`
    # A dated tag stays where it is, and the key's own goes with what was delivered last.
    for tag in (reference.tag, key_tag) if undated == reference.tag else (reference.tag,):
        now = referrers.manifest(reference.repository, tag)
        if now is None or now.digest != digest:
            leads = f"leads to {now.digest}" if now else "is not there"
            return Check("tag", passed=False, told=f"{tag} {leads}")
    if published and published.isdisjoint({reference.tag, undated}):
        told = f"{reference.tag} leads here, and the image was published as "
        return Check("tag", passed=False, told=told + ", ".join(sorted(published, reverse=True)))
    return Check("tag", passed=True, told=f"{reference.tag} and its key's tag lead here")
