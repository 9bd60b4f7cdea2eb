"""Attaching to an image what proves it: in its registry, or in files beside it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.attest import provenance, referrers, sbom, signing
from pipeline.attest.attached import ENVELOPES, SIGNATURES, Attached, attached
from pipeline.attest.referrers import Descriptor, Manifest
from pipeline.attest.subject import Subject
from pipeline.errors import PublishError
from pipeline.host import whole

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
# An upload and a round trip to sigstore's servers each.
_COSIGN_SECONDS = 120


@dataclass(frozen=True)
class Proof:
    """The documents that are attached to an image."""

    sbom: bytes
    statement: bytes

    def statements(self, subject: Subject) -> dict[str, bytes]:
        """Return by predicate type what is signed: the provenance, and the SBOM in a statement."""
        kind, _, value = subject.digest.partition(":")
        predicate = json.loads(self.sbom)
        listing = {
            "_type": provenance.STATEMENT,
            "subject": [
                {"name": predicate["metadata"]["component"]["name"], "digest": {kind: value}}
            ],
            "predicateType": sbom.PREDICATE,
            "predicate": predicate,
        }
        return {
            provenance.PREDICATE: self.statement,
            sbom.PREDICATE: json.dumps(listing, sort_keys=True).encode(),
        }


def to_registry(
    subject: Subject,
    proof: Proof,
    key: EllipticCurvePrivateKey | None,
    say: Callable[[str], None],
    *,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Attach the documents to an image, and sign it: by the key, or by cosign where it may.

    Raises:
        PublishError: the registry does not take them, or has no such image.

    """
    repository, digest = subject.repository, subject.digest
    image = referrers.manifest(repository, digest)
    if image is None:
        raise PublishError(
            f"{repository} has no image {digest}",
            next_step="deliver it first, with `python -m pipeline build-only`",
        )
    there = attached(repository, digest)
    entries: list[Descriptor] = []
    for content, media_type, known, name in (
        (proof.sbom, sbom.MEDIA_TYPE, there.sboms, "SBOM"),
        (proof.statement, provenance.MEDIA_TYPE, there.statements, "provenance"),
    ):
        if content not in known:
            layer = referrers.push_blob(repository, content, media_type)
            entries += referrers.attach(repository, image.descriptor, media_type, [layer])
            say(f"{name}: {len(content) / 1e3:.0f} kB attached")
    if key is not None:
        entries += _sign_statements(subject, image, proof, key, there)
    if entries:
        referrers.enlist(repository, digest, entries)
    # The signature is the last: an image that has one has all the rest, or nobody would mend it.
    if key is not None:
        if signature := _sign(subject, image, key, there):
            referrers.enlist(repository, digest, signature)
        say("signed by the key of SIGN_KEY")
    if key is None and (cosign := shutil.which("cosign")) and _has_identity(environ):
        _sign_keyless(cosign, subject, proof)
        say("signed by cosign, as this run of the workflow")


def _sign(
    subject: Subject, image: Manifest, key: EllipticCurvePrivateKey, there: Attached
) -> list[Descriptor]:
    """Sign the image, if it is not signed by the key; return what is to be enlisted."""
    public, repository = key.public_key(), subject.repository
    if any(
        signing.is_about(signed, subject.digest) and signing.is_signed(public, signed, signature)
        for signed, signature in there.signatures
    ):
        return []
    payload = signing.payload(repository, subject.digest)
    layer = referrers.push_blob(repository, payload, signing.PAYLOAD_TYPE)
    layer["annotations"] = {signing.SIGNATURE: signing.sign(key, payload)}
    return _add(repository, image, signing.ARTIFACT_TYPE, [layer], SIGNATURES)


def _sign_statements(
    subject: Subject, image: Manifest, proof: Proof, key: EllipticCurvePrivateKey, there: Attached
) -> list[Descriptor]:
    """Sign the statements that are not signed by the key; return what is to be enlisted."""
    public, repository = key.public_key(), subject.repository
    known = {
        signing.opened(public, envelope, provenance.MEDIA_TYPE) for envelope in there.envelopes
    }
    layers = []
    for predicate, statement in proof.statements(subject).items():
        if statement not in known:
            made = signing.envelope(key, statement, provenance.MEDIA_TYPE)
            layer = referrers.push_blob(repository, made, signing.ENVELOPE_TYPE)
            layer["annotations"] = {signing.SIGNATURE: "", "predicateType": predicate}
            layers.append(layer)
    return _add(repository, image, signing.ENVELOPE_TYPE, layers, ENVELOPES) if layers else []


def _add(
    repository: str, image: Manifest, artifact_type: str, layers: list[Descriptor], suffix: str
) -> list[Descriptor]:
    """Attach layers beside those that cosign's tag has already, for others have signed too."""
    tag = referrers.tag_of(image.digest, suffix)
    before = referrers.manifest(repository, tag)
    kept: list[Descriptor] = before.read.get("layers", []) if before else []
    layers = [*kept, *layers]
    about = {
        "architecture": "",
        "os": "",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [it["digest"] for it in layers]},
    }
    config = referrers.push_blob(repository, json.dumps(about).encode(), _CONFIG_TYPE)
    return referrers.attach(
        repository, image.descriptor, artifact_type, layers, config=config, tag=tag
    )


def _has_identity(environ: Mapping[str, str]) -> bool:
    """Say whether this is a workflow's run that may ask for a token to sign with."""
    return bool(environ.get("ACTIONS_ID_TOKEN_REQUEST_URL") or environ.get("SIGSTORE_ID_TOKEN"))


def _sign_keyless(cosign: str, subject: Subject, proof: Proof) -> None:
    ref = f"{subject.repository}@{subject.digest}"
    with tempfile.TemporaryDirectory() as folder:
        for predicate, statement in proof.statements(subject).items():
            file = Path(folder, "predicate.json")
            file.write_text(json.dumps(json.loads(statement)["predicate"]))
            _run(cosign, "attest", "--yes", "--type", predicate, "--predicate", str(file), ref)
    _run(cosign, "sign", "--yes", ref)  # the last, as by a key


def _run(*command: str) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_COSIGN_SECONDS
        )
        why = done.stderr.strip()[-500:] if done.returncode else ""
    except subprocess.TimeoutExpired:
        why = f"no answer in {_COSIGN_SECONDS} s"
    if why:
        raise PublishError(
            "cosign could not sign the image, which is delivered",
            why=why,
            next_step="name a key in SIGN_KEY, or sign it again with `python -m pipeline attest`",
        )


def to_files(
    folder: Path, name: str, subject: Subject, proof: Proof, key: EllipticCurvePrivateKey | None
) -> list[Path]:
    """Write the documents beside an image that is in no registry; return where they are.

    Raises:
        PublishError: they cannot be written.

    """
    files = {"sbom.cdx.json": proof.sbom, "provenance.json": proof.statement}
    if key is not None:
        files["provenance.dsse.json"] = signing.envelope(
            key, proof.statement, provenance.MEDIA_TYPE
        )
    written = []
    try:
        for suffix, content in files.items():
            path = folder / f"{name}.{suffix}"
            whole.write(path, content)
            written.append(path)
    except OSError as error:
        raise PublishError(
            f"what proves {subject.repository} cannot be written",
            why=str(error),
            next_step=f"check the free space below {folder.absolute()}",
        ) from error
    return written
