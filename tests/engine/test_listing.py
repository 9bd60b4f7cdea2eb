"""What `page` and `find` read of a real registry."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from datetime import date

import pytest

from pipeline import listing
from pipeline.attest import referrers, sbom
from pipeline.publish import KEY_LABEL
from tests.engine.conftest import Checkout

pytestmark = pytest.mark.engine

OURS = {
    KEY_LABEL: "0" * 64, "dev.cresset.target": "train", "dev.cresset.torch": "2.14.1",
    "dev.cresset.cuda": "12.6", "dev.cresset.python": "3.13", "dev.cresset.driver": "525.60.13",
    "dev.cresset.arches": "sm_80 sm_86", "org.opencontainers.image.version": "py313",
}  # fmt: skip


def push(repository: str, labels: Mapping[str, str], *tags: str) -> referrers.Descriptor:
    """Push an image of no layer with these labels, and return what names it."""
    about = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Labels": dict(labels)},
        "created": "1970-01-01T00:00:00Z",
        "rootfs": {"type": "layers", "diff_ids": []},
    }
    kind = "application/vnd.oci.image.config.v1+json"
    config = referrers.push_blob(repository, json.dumps(about).encode(), kind)
    content = {"schemaVersion": 2, "mediaType": referrers.MANIFEST, "config": config, "layers": []}
    made = referrers.Manifest(json.dumps(content).encode(), referrers.MANIFEST)
    host, _, path = repository.partition("/")
    for tag in tags:
        request = urllib.request.Request(
            f"http://{host}/v2/{path}/manifests/{tag}", method="PUT", data=made.content,
            headers={"Content-Type": made.media_type},
        )  # fmt: skip
        urllib.request.urlopen(request).close()  # noqa: S310 - a loopback registry of ours
    return made.descriptor


def test_the_images_of_a_repository_are_told_apart_by_their_digests(
    checkout: Checkout, repository: str
) -> None:
    name = f"{repository}/cresset"
    assert listing.images(name) == []
    image = push(name, OURS, "py313", "me", "py313-20261127", "py313-20261128", f"key-{'0' * 64}")
    push(name, {}, "somebody-elses")
    document = referrers.push_blob(name, b"{}", sbom.MEDIA_TYPE)
    entries = referrers.attach(name, image, sbom.MEDIA_TYPE, [document])
    referrers.enlist(name, image["digest"], entries)

    (found,) = listing.images(name)
    assert found.tags == ("me", "py313", "py313-20261127", "py313-20261128")
    assert found.ref == f"{name}:py313@{image['digest']}"
    assert found.day == date(2026, 11, 28)
    assert found.sbom == f"http://{name.replace('/', '/v2/', 1)}/blobs/{document['digest']}"
    assert urllib.request.urlopen(found.sbom).read() == b"{}"  # noqa: S310 - as above

    ran = checkout.cresset("find", "--cca", "8.6", "--driver", "550", REGISTRY=repository)
    assert (ran.code, ran.out) == (0, f"{found.ref}\n"), ran.err
    ran = checkout.cresset("find", "--cca", "9.0", REGISTRY=repository)
    assert ran.code == 3
    assert "no code for 9.0: it has 8.0 8.6" in ran.err
    ran = checkout.cresset("page", REGISTRY=repository)
    assert (ran.code, ran.out) == (0, "dist/tags.html\n"), ran.err
    assert found.ref in (checkout.path / "dist/tags.html").read_text()


def test_a_registry_that_is_down_is_told_as_that(checkout: Checkout) -> None:
    for verb in ("find", "page"):
        ran = checkout.cresset(verb, REGISTRY="localhost:1")
        assert ran.code == 7
        assert "cannot be reached" in ran.err
    assert not (checkout.path / "dist").exists()
