"""Manifests and blobs of a registry, and what refers to an image in it.

As the OCI distribution specification 1.1 has it: an artifact names the image as its ``subject``;
a registry without the referrers API finds it by an index under the tag ``sha256-<digest>``
(https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md, "Listing Referrers" and
"Referrers Tag Schema").
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipeline import publish, retry
from pipeline.errors import PublishError

MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX: Final = "application/vnd.oci.image.index.v1+json"
_DOCKER = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_EMPTY = b"{}"
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
_TRIES = 5
# Longer than a registry takes between the read and the write of another client.
_SETTLED_SECONDS = 0.7
_CHUNK = 1 << 20
# An SBOM of a large image has a third of a megabyte.
_MOST = 64 << 20

Descriptor = dict[str, Any]
"""Media type, digest, size and the like, by their names in JSON."""


@dataclass(frozen=True)
class Manifest:
    """A manifest as a registry has it, byte for byte."""

    content: bytes
    media_type: str

    @property
    def digest(self) -> str:
        """The sha256 of its bytes, whatever the registry says."""
        return digest_of(self.content)

    @property
    def read(self) -> dict[str, Any]:
        """What it says; PublishError if it is no JSON object."""
        return parsed(self.content)

    @property
    def descriptor(self) -> Descriptor:
        """What names it in a ``subject``."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.content)}


def digest_of(content: bytes) -> str:
    """Return the digest of bytes, as ``sha256:…``."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def tag_of(digest: str, suffix: str = "") -> str:
    """Return the tag by which what belongs to a digest is found, as ``sha256-….sig``."""
    return digest.replace(":", "-") + suffix


def parsed(content: bytes) -> dict[str, Any]:
    """Return a JSON object; PublishError if it is none."""
    try:
        found = json.loads(content)
    except ValueError as error:
        raise PublishError("the registry's answer is no JSON", why=str(error)) from error
    if not isinstance(found, dict):
        raise PublishError("the registry's answer is no manifest", why=repr(content[:200]))
    return found


def manifest(repository: str, reference: str) -> Manifest | None:
    """Return what a tag or a digest names, None if nothing; PublishError without an answer."""
    accept = {"Accept": ", ".join((MANIFEST, INDEX, *_DOCKER))}
    response = _asked("GET", repository, f"manifests/{reference}", {200, 404}, headers=accept)
    if response.status_code == 404:  # noqa: PLR2004 - HTTP's own number
        return None
    content: bytes = response.content
    kind = str(parsed(content).get("mediaType") or response.headers.get("Content-Type", ""))
    return Manifest(content, kind.partition(";")[0])


def blob(repository: str, digest: str) -> bytes | None:
    """Return the bytes of a small blob as they are, None if it is gone; PublishError as above."""
    content = bytearray()
    for piece in _pieces(repository, digest):
        content += piece
        if len(content) > _MOST:
            raise PublishError(f"{repository} has a document of more than {_MOST} bytes: {digest}")
    return bytes(content) or None


def sum_of(repository: str, digest: str) -> tuple[str, int]:
    """Return the digest and the size of what a registry serves as a blob; size 0 if nothing."""
    summed, size = hashlib.sha256(), 0
    for piece in _pieces(repository, digest):
        summed.update(piece)
        size += len(piece)
    return f"sha256:{summed.hexdigest()}", size


def _pieces(repository: str, digest: str) -> Iterator[bytes]:
    import requests  # noqa: PLC0415 - needed only where a registry is named

    response = _asked("GET", repository, f"blobs/{digest}", {200, 404}, stream=True)
    with response:
        if response.status_code == 404:  # noqa: PLR2004 - HTTP's own number
            return
        try:
            yield from response.iter_content(_CHUNK)
        except requests.RequestException as error:
            raise PublishError(
                f"{repository} broke off while it sent {digest}", why=str(error)
            ) from error


def may_push(repository: str) -> bool:
    """Say whether this login may put anything there; PublishError if the registry cannot be asked.

    That is tried: an upload is begun, and given up. Registries refuse in many ways.
    """
    import requests  # noqa: PLC0415 - needed only where a registry is named

    begun = _asked("POST", repository, "blobs/uploads/", {202, *range(400, 500)})
    if begun.status_code != 202:  # noqa: PLR2004 - HTTP's own number
        return False
    if where := begun.headers.get("Location"):
        with contextlib.suppress(PublishError, requests.RequestException):
            publish.request("DELETE", repository, where)  # or the registry does in its own time
    return True


def push_blob(repository: str, content: bytes, media_type: str) -> Descriptor:
    """Put a blob into the registry, unless it is there; return what names it."""
    digest = digest_of(content)
    described = {"mediaType": media_type, "digest": digest, "size": len(content)}
    if _asked("HEAD", repository, f"blobs/{digest}", {200, 404}).status_code == 200:  # noqa: PLR2004
        return described
    begun = _asked("POST", repository, "blobs/uploads/", {202})
    where = str(begun.headers["Location"])
    where += ("&" if "?" in where else "?") + f"digest={digest}"
    octets = {"Content-Type": "application/octet-stream"}
    _asked("PUT", repository, where, {201}, headers=octets, data=content)
    return described


def attach(
    repository: str,
    subject: Descriptor,
    artifact_type: str,
    layers: Sequence[Descriptor],
    *,
    config: Descriptor | None = None,
    annotations: Mapping[str, str] | None = None,
    tag: str = "",
) -> list[Descriptor]:
    """Let an artifact of these layers refer to the subject, by a tag of its own too if named.

    The same layers make the same artifact, so doing it again changes nothing. Returns what is to be
    told to `enlist`; nothing where the registry finds it by itself.

    Raises:
        PublishError: the registry does not take it.

    """
    content = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": artifact_type,
        "config": config or push_blob(repository, _EMPTY, _EMPTY_TYPE),
        "layers": list(layers),
        "subject": subject,
        "annotations": dict(annotations or {}),
    }
    made = Manifest(json.dumps(content, sort_keys=True).encode(), MANIFEST)
    # By its tag at once, if it has one: it is never listed and missed by those who ask for the tag.
    done = _asked(
        "PUT", repository, f"manifests/{tag or made.digest}", {201},
        headers={"Content-Type": MANIFEST}, data=made.content,
    )  # fmt: skip
    if "OCI-Subject" in done.headers:
        return []
    described = {"artifactType": artifact_type, "annotations": content["annotations"]}
    return [made.descriptor | described]


def enlist(repository: str, subject: str, entries: Sequence[Descriptor]) -> None:
    """Add entries to the index of what refers to a subject, and take none of another's out.

    Raises:
        PublishError: the registry does not keep it.

    """
    for _ in range(_TRIES):
        listed = _listed(repository, subject)
        known = {it["digest"] for it in listed}
        missing = [it for it in entries if it["digest"] not in known]
        if not missing:
            return
        content = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*listed, *missing]}
        _asked(
            "PUT", repository, f"manifests/{tag_of(subject)}", {201},
            headers={"Content-Type": INDEX}, data=json.dumps(content).encode(),
        )  # fmt: skip
        # Nothing locks it: whoever read it before this and writes now takes ours out again.
        time.sleep(_SETTLED_SECONDS * (1 + random.random()))  # noqa: S311 - no secret
    raise PublishError(
        f"{repository} does not keep the list of what refers to {subject}",
        why=f"{_TRIES} times it was gone after it was written",
        next_step="run it again when nobody else attaches to the same image",
    )


def _listed(repository: str, subject: str) -> list[Descriptor]:
    index = manifest(repository, tag_of(subject))
    found = index.read.get("manifests") if index else None
    return [it for it in found or () if isinstance(it, dict) and "digest" in it]


def referrers(repository: str, subject: str) -> list[Descriptor]:
    """Return what refers to a digest; PublishError if the registry cannot be asked."""
    # Registries without the API answer in many ways; what they do not list is under the tag.
    accept = {"Accept": INDEX}
    response = _asked("GET", repository, f"referrers/{subject}", None, headers=accept)
    listed: list[Descriptor] = []
    if response.status_code == 200:  # noqa: PLR2004 - HTTP's own number
        found = parsed(response.content).get("manifests")
        listed = [it for it in found or () if isinstance(it, dict) and "digest" in it]
    known = {it["digest"] for it in listed}
    return listed + [it for it in _listed(repository, subject) if it["digest"] not in known]


def _asked(
    method: str,
    repository: str,
    what: str,
    expected: set[int] | None,
    *,
    headers: Mapping[str, str] | None = None,
    data: bytes = b"",
    stream: bool = False,
) -> Any:  # noqa: ANN401 - requests' Response
    """Return an answer that is one of the expected; PublishError for any other, or for none."""
    import requests  # noqa: PLC0415 - needed only where a registry is named

    host = repository.partition("/")[0]

    def once() -> Any:  # noqa: ANN401 - as above
        try:
            answer = publish.request(
                method, repository, what, headers=headers, data=data, stream=stream
            )
        except requests.RequestException as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise publish.unreachable(host, error) from error
            raise retry.Lost(publish.unreachable(host, error)) from error
        if answer.status_code in retry.STATUSES:
            after = retry.asked_seconds(answer.headers.get("Retry-After"))
            why = f"{method}: {answer.status_code} {answer.reason} {answer.text[:200]}"
            raise retry.Lost(publish.refused(repository, why), after)
        return answer

    response = retry.call(once)
    if expected is None or response.status_code in expected:
        return response
    raise publish.refused(
        repository, f"{method}: {response.status_code} {response.reason} {response.text[:200]}"
    )
