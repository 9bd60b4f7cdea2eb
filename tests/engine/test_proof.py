"""What proves a delivered image, and that nothing which was tampered with passes for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.attest import attach, provenance, referrers, sbom, signing
from pipeline.attest.attached import are_signed, attached
from pipeline.attest.subject import Subject
from pipeline.errors import PublishError
from tests import services
from tests.engine.conftest import Checkout, Ran, small_checkout

pytestmark = pytest.mark.engine

TAG = "simple-py313-trixie"
COSIGN = shutil.which("cosign")


def key_pair(folder: Path, name: str) -> tuple[str, str]:
    """Make a key as the README says; return the files of both halves."""
    private, public = str(folder / f"{name}.key"), str(folder / f"{name}.pub")
    make = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private]
    subprocess.run(make, check=True, capture_output=True)
    halve = ["openssl", "ec", "-in", private, "-pubout", "-out", public]
    subprocess.run(halve, check=True, capture_output=True)
    return private, public


@dataclass(frozen=True)
class Published:
    """An image in a registry, and who may change what is in there."""

    checkout: Checkout
    data: Path
    host: str
    digest: str
    unsigned: str
    """The digest of another image of the same tag, which nobody has signed."""
    private: str
    public: str
    said: str
    """What the build of it told."""

    @property
    def repository(self) -> str:
        return f"{self.host}/team/cresset"

    def verify(self, reference: str = "", *args: str, key: bool = True) -> Ran:
        named = ["--verify-key", self.public] if key else []
        reference = reference or f"{self.repository}@{self.digest}"
        return self.checkout.cresset("verify", reference, *named, *args)

    def refused(self, reference: str = "", *args: str, key: bool = True) -> str:
        """Return what is said of an image that fails, without what was said of its layers."""
        ran = self.verify(reference, *args, key=key)
        assert ran.code == 6, ran.out + ran.err
        assert "Traceback" not in ran.err
        return ran.err.partition("error: ")[2]

    def blob(self, digest: str) -> Path:
        kind, _, value = digest.partition(":")
        return self.data / f"docker/registry/v2/blobs/{kind}/{value[:2]}/{value}/data"

    def write(self, digest: str, content: bytes) -> None:
        """Change the bytes of a blob where the registry keeps them."""
        # It is a hard link: what is written in place would be written for every test.
        path = self.blob(digest)
        path.unlink()
        path.write_bytes(content)

    def layers(self, digest: str) -> list[dict[str, Any]]:
        manifest = referrers.manifest(self.repository, digest)
        assert manifest is not None
        found: list[dict[str, Any]] = manifest.read["layers"]
        return found

    def point(self, tag: str, digest: str) -> None:
        """Let a tag name another image, as anybody may who may push."""
        image = referrers.manifest(self.repository, digest)
        assert image is not None
        put(self.repository, tag, image.content, image.media_type)

    def forget(self) -> None:
        """Empty the list of what is attached."""
        index = {"schemaVersion": 2, "mediaType": referrers.INDEX, "manifests": []}
        tag = referrers.tag_of(self.digest)
        put(self.repository, tag, json.dumps(index).encode(), referrers.INDEX)

    def attach(self, content: bytes, media_type: str) -> None:
        image = referrers.manifest(self.repository, self.digest)
        assert image is not None
        layer = referrers.push_blob(self.repository, content, media_type)
        entries = referrers.attach(self.repository, image.descriptor, media_type, [layer])
        referrers.enlist(self.repository, self.digest, entries)


def put(repository: str, tag: str, content: bytes, media_type: str) -> None:
    host, _, path = repository.partition("/")
    command = ["curl", "--fail", "--silent", "--request", "PUT", "--data-binary", "@-",
               "--header", f"Content-Type: {media_type}",
               f"http://{host}/v2/{path}/manifests/{tag}"]  # fmt: skip
    subprocess.run(command, input=content, check=True, capture_output=True)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    """Build one image with a key, and another of the same tag without; the first has the tag."""
    folder = tmp_path_factory.mktemp("proof")
    checkout = small_checkout(folder)
    private, public = key_pair(folder, "ours")
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as data,
        services.registry(Path(data)) as host,
    ):

        def built(*args: str) -> tuple[str, str]:
            ran = checkout.cresset("build-only", "simple", "--registry", f"{host}/team", *args)
            assert ran.code == 0, ran.err
            return ran.out.strip().partition("@")[2], ran.err

        unsigned, _ = built("--tz", "Asia/Seoul")
        digest, said = built("--sign-key", private)
        yield Published(checkout, Path(data, "data"), host, digest, unsigned, private, public, said)


@pytest.fixture
def image(original: Published) -> Iterator[Published]:
    """Yield the image in a registry of the test's own."""
    with copied(original) as published:
        yield published


def _linked(source: str, copy: str) -> None:
    """Take a blob by its name; what tells where a tag leads is written over in place."""
    if Path(source).name == "data":
        os.link(source, copy)
    else:
        shutil.copyfile(source, copy)


@contextmanager
def copied(original: Published) -> Iterator[Published]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        data = Path(folder, "data")
        shutil.copytree(original.data, data, copy_function=_linked)
        with services.registry(Path(folder)) as host:
            yield Published(
                original.checkout, data, host, original.digest, original.unsigned,
                original.private, original.public, original.said,
            )  # fmt: skip


# What is good


def test_a_build_attaches_what_proves_the_image(
    original: Published, figure: Callable[[str], None]
) -> None:
    for words in ("SBOM: ", "provenance: ", "signed by the key of SIGN_KEY"):
        assert words in original.said
    ran = original.verify(f"{original.repository}:{TAG}", "--json", "--deep")
    assert ran.code == 0, ran.err
    checks = {it["name"]: it["told"] for it in ran.json["checks"]}
    figure(f"verify --deep: {ran.seconds:.1f} s; {checks['layers']}; {checks['SBOM']}")
    assert list(checks) == ["manifest", "config", "labels", "layers", "signature", "provenance",
                            "SBOM", "key", "architectures", "tag", "packages"]  # fmt: skip
    assert ran.json["digest"] == original.digest

    there = attached(original.repository, original.digest)
    (listing,), (statement,) = there.sboms, there.statements
    components = {it["bom-ref"]: it for it in json.loads(listing)["components"]}
    assert components["deb:less:amd64"]["purl"].startswith("pkg:deb/debian/less@")
    assert components["os"]["version"] == "13"
    assert components["npm:pure-prompt"]["version"] == "1.28.3"
    read = provenance.read(statement)
    assert not isinstance(read, str)
    assert read.tags[0] == TAG
    assert read.predicate.run_details.builder.version["dagger"].endswith("0.21.8")


def test_which_images_somebody_has_signed_is_asked_at_once(original: Published) -> None:
    signed, unsigned, none = (
        (original.repository, it) for it in (TAG, original.unsigned, "of-no-image")
    )
    assert are_signed([unsigned, signed, none]) == {signed}


def test_what_proves_an_image_is_attached_once(image: Published) -> None:
    before = attached(image.repository, image.digest)
    again = image.checkout.cresset(
        "attest", "simple", "--registry", f"{image.host}/team", "--sign-key", image.private
    )
    assert again.code == 0, again.err
    assert again.out.strip() == f"{image.repository}:{TAG}@{image.digest}"
    assert attached(image.repository, image.digest) == before


def test_an_image_without_proof_gets_it_later(image: Published) -> None:
    assert "it is not signed" in image.refused(f"{image.repository}@{image.unsigned}")
    settings = ["--registry", f"{image.host}/team", "--tz", "Asia/Seoul"]
    # The signed image has taken the tag since, so this one is not there as it was delivered.
    gone = image.checkout.cresset("attest", "simple", *settings, "--sign-key", image.private)
    assert gone.code == 7
    assert "deliver it first" in gone.err
    image.point(TAG, image.unsigned)
    done = image.checkout.cresset("attest", "simple", *settings, "--sign-key", image.private)
    assert done.code == 0, done.err
    assert image.verify(f"{image.repository}:{TAG}").code == 0


@pytest.mark.skipif(COSIGN is None, reason="there is no cosign on PATH")
def test_cosign_verifies_what_is_signed_here(original: Published) -> None:
    ref = f"{original.repository}@{original.digest}"
    offline = ["--key", original.public, "--insecure-ignore-tlog=true"]

    def cosign(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(COSIGN), *args], capture_output=True, text=True, check=False,
            env=dict(original.checkout.environment),
        )  # fmt: skip

    done = cosign("verify", *offline, ref)
    assert done.returncode == 0, done.stderr
    (payload,) = json.loads(done.stdout)
    assert payload["critical"]["image"]["docker-manifest-digest"] == original.digest
    for kind, predicate in (
        ("slsaprovenance1", provenance.PREDICATE),
        ("cyclonedx", sbom.PREDICATE),
    ):
        done = cosign("verify-attestation", *offline, "--type", kind, ref)
        assert done.returncode == 0, done.stderr
        key = signing.public_key(original.public)
        statement = signing.opened(key, done.stdout.encode(), provenance.MEDIA_TYPE)
        assert statement is not None
        assert json.loads(statement)["predicateType"] == predicate
    unsigned = cosign("verify", *offline, f"{original.repository}@{original.unsigned}")
    assert unsigned.returncode != 0


@pytest.mark.parametrize("works", [True, False])
def test_in_a_workflow_cosign_signs_as_the_workflow(
    image: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    """By a stand-in for cosign, which notes how it is called: the real one needs sigstore's net."""
    notes = tmp_path / "notes"
    program = tmp_path / "cosign"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {notes}\necho no such token >&2\nexit {0 if works else 1}\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    subject = Subject(image.repository, image.digest, (TAG,))
    there = attached(image.repository, image.digest)
    identity = {"ACTIONS_ID_TOKEN_REQUEST_URL": "https://token.example"}
    proof = attach.Proof(*there.sboms, *there.statements)
    if not works:
        with pytest.raises(PublishError, match="no such token"):
            attach.to_registry(subject, proof, None, print, environ=identity)
        return
    attach.to_registry(subject, proof, None, print, environ={})
    assert not notes.exists(), "without a token nobody could sign"
    attach.to_registry(subject, proof, None, print, environ=identity)
    ref = f"{image.repository}@{image.digest}"
    *attest, sign = notes.read_text().splitlines()
    assert sign == f"sign --yes {ref}"
    assert [it.split()[:4] for it in attest] == [
        ["attest", "--yes", "--type", provenance.PREDICATE],
        ["attest", "--yes", "--type", sbom.PREDICATE],
    ]
    assert all(it.endswith(ref) for it in attest)


def test_what_others_attach_stays(image: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    tag = referrers.tag_of(image.digest)
    before = referrers.manifest(image.repository, tag)
    assert before is not None
    written = 0

    def meanwhile(_: float) -> None:
        """Let another client, which read the list before ours was on it, write it now."""
        nonlocal written
        written += 1
        if written == 1:
            put(image.repository, tag, before.content, before.media_type)

    monkeypatch.setattr("pipeline.attest.referrers.time.sleep", meanwhile)
    image.attach(b"{}", "application/vnd.example+json")
    assert written == 2
    known = {it["digest"] for it in before.read["manifests"]}
    now = {it["digest"] for it in referrers.referrers(image.repository, image.digest)}
    assert len(now - known) == 1
    assert known <= now
    assert image.verify("", "--shallow").code == 0


def test_an_image_that_is_a_file_has_its_proof_beside_it(
    checkout: Checkout, tmp_path: Path
) -> None:
    private, public = key_pair(tmp_path, "ours")
    ran = checkout.cresset("build-only", "simple", "--sign-key", private)
    assert ran.code == 0, ran.err
    digest = ran.out.strip().partition("@")[2]
    stem = str(checkout.path / f"dist/cresset-{TAG}")
    assert sbom.names(Path(f"{stem}.sbom.cdx.json").read_bytes()) == digest
    statement = Path(f"{stem}.provenance.json").read_bytes()
    read = provenance.read(statement)
    assert not isinstance(read, str)
    assert read.is_about(digest)
    sealed = Path(f"{stem}.provenance.dsse.json").read_bytes()
    key = signing.public_key(public)
    assert signing.opened(key, sealed, provenance.MEDIA_TYPE) == statement


# What is not


def test_a_tampered_layer(image: Published) -> None:
    biggest = max(image.layers(image.digest), key=lambda it: it["size"])
    content = bytearray(image.blob(biggest["digest"]).read_bytes())
    content[len(content) // 2] ^= 1
    image.write(biggest["digest"], bytes(content))
    assert f"layers='{image.digest}': {biggest['digest']} is" in image.refused()
    # Nobody has looked.
    assert image.verify("", "--shallow").code == 0


def test_a_layer_that_is_gone(image: Published) -> None:
    image.blob(image.layers(image.digest)[0]["digest"]).unlink()
    assert "is gone" in image.refused()


def test_a_tampered_manifest(image: Published) -> None:
    content = image.blob(image.digest).read_bytes()
    image.write(image.digest, content.replace(b"dev.cresset.python", b"dev.cresset.pythin"))
    # The registry itself may notice, and serve nothing.
    assert "manifest" in image.refused()


def the_sbom(image: Published) -> bytes:
    (content,) = attached(image.repository, image.digest).sboms
    return content


def test_a_tampered_sbom(image: Published) -> None:
    content = the_sbom(image)
    image.write(referrers.digest_of(content), content.replace(b"less", b"more"))
    for key in (True, False):
        said = image.refused(key=key)
        assert "the SBOM sha256:" in said
        assert "has other bytes than its digest says" in said


def test_another_sbom_in_its_place(image: Published) -> None:
    other = the_sbom(image).replace(b"less", b"more")
    (statement,) = attached(image.repository, image.digest).statements
    image.forget()
    image.attach(other, sbom.MEDIA_TYPE)
    image.attach(statement, provenance.MEDIA_TYPE)
    for key in (True, False):
        assert "is none that the provenance names" in image.refused(key=key)


def test_another_sbom_beside_it(image: Published) -> None:
    image.attach(the_sbom(image).replace(b"less", b"more"), sbom.MEDIA_TYPE)
    assert "is none that the provenance names" in image.refused()


def test_another_sbom_and_a_provenance_that_names_it(image: Published) -> None:
    listing = the_sbom(image)
    other = listing.replace(b"less", b"more")
    (statement,) = attached(image.repository, image.digest).statements
    old, new = (referrers.digest_of(it).partition(":")[2].encode() for it in (listing, other))
    image.forget()
    image.attach(other, sbom.MEDIA_TYPE)
    image.attach(statement.replace(old, new), provenance.MEDIA_TYPE)
    # It goes together, and only the key knows better.
    assert image.verify(key=False).code == 0
    assert "provenance" in image.refused()


def test_no_sbom_at_all(image: Published) -> None:
    image.forget()
    said = image.refused(key=False)
    assert "SBOM" in said
    assert "provenance" in said


def test_the_key_of_a_stranger(image: Published, tmp_path: Path) -> None:
    _, public = key_pair(tmp_path, "stranger")
    ran = image.checkout.cresset(
        "verify", f"{image.repository}@{image.digest}", "--verify-key", public
    )
    assert ran.code == 6
    assert "nobody with the key of VERIFY_KEY has signed it" in ran.err


def test_the_signature_of_another_image(image: Published) -> None:
    """A signature that is good, at the place of one image and of another."""
    signed = referrers.manifest(image.repository, referrers.tag_of(image.digest, ".sig"))
    assert signed is not None
    tag = referrers.tag_of(image.unsigned, ".sig")
    put(image.repository, tag, signed.content, signed.media_type)
    said = image.refused(f"{image.repository}@{image.unsigned}")
    assert "what the key has signed is another image" in said


def test_a_swapped_tag(image: Published) -> None:
    pinned = f"{image.repository}:{TAG}@{image.digest}"
    assert image.verify(pinned).code == 0
    image.point(TAG, image.unsigned)
    assert f"tag='{image.digest}': {TAG} leads to {image.unsigned}" in image.refused(pinned)
    assert "it is not signed" in image.refused(f"{image.repository}:{TAG}")


def test_a_tag_that_the_image_was_not_published_under(image: Published) -> None:
    image.point("train-of-the-team", image.digest)
    said = image.refused(f"{image.repository}:train-of-the-team")
    assert f"the image was published as {TAG}" in said


def test_the_tag_of_a_key_that_leads_elsewhere(image: Published) -> None:
    (statement,) = attached(image.repository, image.digest).statements
    read = provenance.read(statement)
    assert not isinstance(read, str)
    image.point(f"key-{read.key}", image.unsigned)
    said = image.refused(f"{image.repository}:{TAG}")
    assert f"key-{read.key} leads to {image.unsigned}" in said


def test_a_registry_that_does_not_answer_has_proved_nothing(original: Published) -> None:
    gone = f"localhost:{services.free_port()}/cresset:it"
    assert "cannot be reached" in original.refused(gone)
    assert "has no such image" in original.refused(f"{original.repository}:none")


@pytest.mark.slow
def test_the_gpu_code_of_an_image_is_asked_of_its_torch(
    checkout: Checkout, repository: str, figure: Callable[[str], None]
) -> None:
    ran = checkout.cresset("build-only", "train", "--json", REGISTRY=repository)
    assert ran.code == 0, ran.err
    checked = checkout.cresset("verify", ran.json["ref"], "--deep", "--json")
    assert checked.code == 0, checked.err
    (code,) = [it for it in checked.json["checks"] if it["name"] == "GPU code"]
    assert code["passed"]
    assert "sm_" in code["told"]
    figure(f"verify --deep of {ran.json['size'] / 1e9:.1f} GB: {checked.seconds:.0f} s")
