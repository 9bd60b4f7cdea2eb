"""What proves an image, without an image: the documents, the signatures, and what is refused."""

from __future__ import annotations

import base64
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from dagger import dag

from pipeline import build, compose, listing, publish
from pipeline.attest import attach, proof, provenance, referrers, sbom, signing, verify
from pipeline.attest.attach import Proof
from pipeline.attest.attached import are_signed, attached
from pipeline.attest.provenance import Statement
from pipeline.attest.subject import Made, Subject
from pipeline.errors import ConfigError, ProofError, PublishError
from pipeline.labels import ARCHES, labels
from pipeline.publish import Delivered
from pipeline.settings import Settings, load
from pipeline.spec import ImageSpec
from pipeline.stages.verify import probe, probe_torch
from tests.graph.graph import chain
from tests.unit import running
from tests.unit.running import ROOT
from tests.unit.specs import spec
from tests.unit.stand_in_registry import Registry

DIGEST = f"sha256:{'5' * 64}"
SUBJECT = Subject("registry.example/team/cresset", DIGEST, ("py313-trixie", "key-1"))
BASE = f"image docker.io/library/debian:trixie@sha256:{'b' * 64}"
PACKAGES: dict[str, Any] = {
    "os": {"id": "debian", "version": "13", "codename": "trixie", "name": "Debian 13"},
    "interpreter": {"version": "3.13.5", "own": True},
    "apt": [
        {"name": "less", "version": "643-1", "arch": "amd64", "source": "less",
         "source_version": "643-1"},
        {"name": "libc6", "version": "2.41-12", "arch": "amd64", "source": "glibc",
         "source_version": "2.41-12"},
    ],
    "python": [
        {"name": "torch", "version": "2.6.0+cu124", "license": "BSD-3-Clause", "sha256": "",
         "record": "a" * 64},
        {"name": "torchvision", "version": "0.21.0+cu124", "license": "BSD", "sha256": "c" * 64,
         "record": "d" * 64},
    ],
    "npm": [{"name": "pure-prompt", "version": "1.28.3"}],
}  # fmt: skip
COMPILED: dict[str, str] = {
    "build_mode": "include", "cca": "8.6 9.0+PTX", "pytorch_version_tag": "v2.6.0",
    "cuda_version": "12.4", "torch_url": "https://me:secret@git.example/pytorch",
}  # fmt: skip


@pytest.fixture(scope="module")
def compiled() -> ImageSpec:
    return spec(**COMPILED)


def parts(content: bytes) -> dict[str, dict[str, Any]]:
    return {it["bom-ref"]: it for it in json.loads(content)["components"]}


def told(part: dict[str, Any]) -> dict[str, str]:
    return {it["name"].partition(":")[2]: it["value"] for it in part["properties"]}


# The SBOM


def test_the_sbom_lists_what_apt_and_pip_and_npm_brought() -> None:
    content = sbom.sbom(spec("simple"), SUBJECT, PACKAGES, BASE)
    assert sbom.invalid(content) == ""
    assert sbom.names(content) == DIGEST
    purls = {ref: part.get("purl") for ref, part in parts(content).items()}
    assert purls == {
        "os": None,
        "deb:less:amd64": "pkg:deb/debian/less@643-1?arch=amd64&distro=debian-13",
        "deb:libc6:amd64":
            "pkg:deb/debian/libc6@2.41-12?arch=amd64&distro=debian-13&upstream=glibc",
        "pypi:torch": "pkg:pypi/torch@2.6.0%2Bcu124",
        "pypi:torchvision": "pkg:pypi/torchvision@0.21.0%2Bcu124",
        "npm:pure-prompt": "pkg:npm/pure-prompt@1.28.3",
    }  # fmt: skip
    vision = parts(content)["pypi:torchvision"]
    assert vision["hashes"] == [{"alg": "SHA-256", "content": "c" * 64}]
    assert vision["licenses"] == [{"license": {"name": "BSD"}}]
    assert parts(content)["pypi:torch"]["licenses"] == [{"license": {"id": "BSD-3-Clause"}}]


def test_the_sbom_tells_how_wheels_were_compiled(compiled: ImageSpec) -> None:
    content = sbom.sbom(compiled, SUBJECT, PACKAGES, BASE)
    assert sbom.invalid(content) == ""
    torch, vision = compiled.compiled
    for wheel, ref in ((torch, "pypi:torch"), (vision, "pypi:torchvision")):
        properties = told(parts(content)[ref])
        assert properties["wheel-key"] == wheel.key
        assert properties["arches"] == "8.6 9.0+PTX"
        assert properties["source"] == "git"
        assert properties["source-ref"] == wheel.source.ref
        assert {f"flag:{name}": value for name, value in wheel.flags}.items() <= properties.items()
    assert told(parts(content)["pypi:torch"])["source-location"] == "https://git.example/pytorch"
    assert torch.magma is not None
    magma = parts(content)["magma"]
    assert magma["version"] == torch.magma.version
    depends = {it["ref"]: it.get("dependsOn") for it in json.loads(content)["dependencies"]}
    assert depends["pypi:torch"] == ["magma"]
    assert b"secret" not in content


def test_the_sbom_of_devel_lists_the_source_that_is_there_to_be_compiled() -> None:
    it = spec("devel", **{**COMPILED, "torch_url": ""})
    content = sbom.sbom(it, SUBJECT, PACKAGES | {"python": []}, BASE)
    assert sbom.invalid(content) == ""
    source = parts(content)["source:torch"]
    assert source["version"] == "2.6.0"
    assert told(source)["source-location"] == "https://github.com/pytorch/pytorch.git"
    assert "magma" in parts(content)
    # Nobody finds it by asking for packages.
    assert not {"magma", "source:torch"} & sbom.listed(content).keys()


def test_one_image_has_one_sbom() -> None:
    program = """
import json, sys
from pipeline.attest import sbom
from tests.unit.test_proof import BASE, PACKAGES, SUBJECT
from tests.unit.specs import spec
sys.stdout.write(sbom.sbom(spec("simple"), SUBJECT, PACKAGES, BASE).decode())
"""
    # Another process has another seed of hashes, and another time.
    other = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    mine = sbom.sbom(spec("simple"), SUBJECT, PACKAGES, BASE)
    assert other.stdout == mine.decode()
    # A mirror has it too.
    mirrored = dataclasses.replace(SUBJECT, repository="localhost:5000/mirror/cresset", tags=())
    assert sbom.sbom(spec("simple"), mirrored, PACKAGES, BASE) == mine
    another = dataclasses.replace(SUBJECT, digest=f"sha256:{'6' * 64}")
    assert json.loads(mine)["serialNumber"] != json.loads(
        sbom.sbom(spec("simple"), another, PACKAGES, BASE)
    )["serialNumber"]  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{"bomFormat": "SPDX"}, {"components": [{"name": "it"}]}, {"unknown": 1}, {"version": "one"}],
)
def test_what_is_no_sbom_is_told_from_one(change: dict[str, Any]) -> None:
    content = json.loads(sbom.sbom(spec("simple"), SUBJECT, PACKAGES, BASE))
    assert sbom.invalid(json.dumps(content | change).encode())
    assert sbom.invalid(b"{")


# The provenance


def made(**more: Any) -> Made:
    began = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    return Made(BASE, "local", "v0.21.8", began, began.replace(hour=4), **more)


def statement(
    it: ImageSpec, settings: dict[str, str] | None = None, environ: dict[str, str] | None = None
) -> Statement:
    loaded = load(settings or {}, environ={}, env_file=Path("/nonexistent/.env")).settings
    sums = {"sbom.cdx.json": "e" * 64}
    return provenance.provenance(
        it, loaded, SUBJECT, made(arches="sm_86"), sums, environ or {}, "1.0"
    )


def test_the_provenance_says_what_was_asked_and_what_went_in(compiled: ImageSpec) -> None:
    content = statement(compiled, COMPILED).content()
    read = json.loads(content)
    assert read["_type"] == "https://in-toto.io/Statement/v1"
    assert read["predicateType"] == "https://slsa.dev/provenance/v1"
    assert read["subject"] == [{"name": SUBJECT.repository, "digest": {"sha256": "5" * 64}}]
    definition = read["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["settings"]["CCA"] == "8.6 9.0+PTX"
    # No address: whoever reads it has no use for the hosts of a network that is not theirs.
    assert "TORCH_URL" not in definition["externalParameters"]["settings"]
    assert definition["internalParameters"]["key"] == compiled.key
    needed = {it["name"]: it for it in definition["resolvedDependencies"]}
    assert needed["base: docker.io/library/debian:trixie"]["digest"] == {"sha256": "b" * 64}
    for wheel in compiled.compiled:
        assert needed[wheel.variant]["annotations"]["key"] == wheel.key
    assert needed["source of torch"]["uri"] == "git+https://git.example/pytorch"
    assert needed["reqs/pip-train.requirements.txt"]["digest"]["sha256"] == compiled.pip[0].sha256
    details = read["predicate"]["runDetails"]
    assert details["metadata"]["startedOn"] == "2026-01-02T03:04:05Z"
    assert details["builder"]["version"]["dagger"] == "v0.21.8"
    assert b"secret" not in content
    assert provenance.read(content) == statement(compiled, COMPILED)


def test_in_a_workflow_the_builder_is_the_workflow() -> None:
    environ = {
        "GITHUB_ACTIONS": "true",
        "GITHUB_SERVER_URL": "https://github.com",
        "GITHUB_REPOSITORY": "team/cresset",
        "GITHUB_WORKFLOW_REF": "team/cresset/.github/workflows/images.yml@refs/heads/main",
        "GITHUB_RUN_ID": "7",
        "GITHUB_RUN_ATTEMPT": "2",
    }
    details = statement(spec("simple"), {}, environ).predicate.run_details
    assert details.builder.id == (
        "https://github.com/team/cresset/.github/workflows/images.yml@refs/heads/main"
    )
    assert details.metadata.invocation_id == (
        "https://github.com/team/cresset/actions/runs/7/attempts/2"
    )
    assert provenance.builder({}) == provenance.LOCAL_BUILDER


def without(path: str) -> Any:
    def change(content: dict[str, Any]) -> None:
        *above, last = path.split(".")
        for name in above:
            content = content[name]
        content.pop(last)

    return change


def with_more(content: dict[str, Any]) -> None:
    content["predicate"]["buildDefinition"]["more"] = 1


def of_another_kind(content: dict[str, Any]) -> None:
    content["predicateType"] = "https://slsa.dev/verification_summary/v1"


def of_nothing(content: dict[str, Any]) -> None:
    content["subject"] = []


@pytest.mark.parametrize(
    "change",
    [without("_type"), without("subject"), without("predicate.buildDefinition.buildType"),
     without("predicate.runDetails.builder.id"), with_more, of_another_kind, of_nothing],
)  # fmt: skip
def test_what_is_no_provenance_is_told_from_one(change: Any) -> None:
    content = json.loads(statement(spec("simple")).content())
    change(content)
    assert isinstance(provenance.read(json.dumps(content).encode()), str)


# Signatures


@pytest.fixture(scope="module")
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def pem(key: Any, password: str = "") -> bytes:
    encryption: Any = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password.encode())
    content: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    return content


def test_a_signature_is_of_one_image_by_one_key(key: ec.EllipticCurvePrivateKey) -> None:
    signed = signing.payload(SUBJECT.repository, DIGEST)
    signature = signing.sign(key, signed)
    assert signing.is_signed(key.public_key(), signed, signature)
    assert signing.is_about(signed, DIGEST)
    assert not signing.is_about(signed, f"sha256:{'6' * 64}")
    assert not signing.is_signed(key.public_key(), signed + b" ", signature)
    stranger = ec.generate_private_key(ec.SECP256R1()).public_key()
    assert not signing.is_signed(stranger, signed, signature)
    for nonsense in ("", "***", base64.b64encode(b"0" * 70).decode()):
        assert not signing.is_signed(key.public_key(), signed, nonsense)


def test_an_envelope_opens_for_its_key_alone(key: ec.EllipticCurvePrivateKey) -> None:
    content = statement(spec("simple")).content()
    sealed = signing.envelope(key, content, provenance.MEDIA_TYPE)
    assert signing.opened(key.public_key(), sealed, provenance.MEDIA_TYPE) == content
    stranger = ec.generate_private_key(ec.SECP256R1()).public_key()
    assert signing.opened(stranger, sealed, provenance.MEDIA_TYPE) is None
    assert signing.opened(key.public_key(), sealed, "text/plain") is None
    read = json.loads(sealed)
    read["payload"] = base64.b64encode(content.replace(b"local", b"other")).decode()
    assert (
        signing.opened(key.public_key(), json.dumps(read).encode(), provenance.MEDIA_TYPE) is None
    )
    assert signing.opened(key.public_key(), b"{}", provenance.MEDIA_TYPE) is None


def test_the_sbom_is_signed_in_a_statement_of_its_own() -> None:
    listing = sbom.sbom(spec("simple"), SUBJECT, PACKAGES, BASE)
    statements = Proof(listing, b"{}").statements(SUBJECT)
    read = json.loads(statements["https://cyclonedx.org/bom"])
    assert read["subject"] == [{"name": "cresset", "digest": {"sha256": "5" * 64}}]
    assert read["predicate"] == json.loads(listing)


def test_keys_that_sign_and_check(
    key: ec.EllipticCurvePrivateKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sign.key"
    path.write_bytes(pem(key))
    assert signing.private_key(str(path)).private_numbers() == key.private_numbers()
    path.write_bytes(pem(key, "right"))
    monkeypatch.setenv("COSIGN_PASSWORD", "right")
    assert signing.private_key(str(path)).private_numbers() == key.private_numbers()


COSIGNS_OWN = b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\nAAAA\n-----END"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not a private key"),
        (COSIGNS_OWN, "cosign's own encryption"),
        (pem(ec.generate_private_key(ec.SECP256R1()), "right"), "COSIGN_PASSWORD"),
        (pem(ec.generate_private_key(ec.SECP384R1())), "P-256"),
    ],
    ids=["empty", "cosign's own", "encrypted", "another curve"],
)
def test_a_key_that_cannot_sign_says_why_before_anything_is_built(
    content: bytes, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COSIGN_PASSWORD", raising=False)
    path = tmp_path / "sign.key"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"SIGN_KEY(.|\n)*{why}(.|\n)*openssl ecparam"):
        proof.signer(load({"sign_key": str(path)}, environ={}).settings)


def test_a_private_key_is_not_what_an_image_is_checked_by(
    key: ec.EllipticCurvePrivateKey, tmp_path: Path
) -> None:
    path = tmp_path / "sign.key"
    path.write_bytes(pem(key))
    with pytest.raises(ConfigError, match=r"VERIFY_KEY(.|\n)*a private key"):
        signing.public_key(str(path))
    with pytest.raises(ConfigError, match=r"VERIFY_KEY(.|\n)*No such file"):
        signing.public_key(str(tmp_path / "none"))


# References


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("localhost:5000/cresset:it", "localhost:5000/cresset:it"),
        (f"ghcr.io/team/cresset@{DIGEST}", f"ghcr.io/team/cresset@{DIGEST}"),
        (f"ghcr.io/team/cresset:it@{DIGEST}", f"ghcr.io/team/cresset:it@{DIGEST}"),
        ("team/cresset:it", "docker.io/team/cresset:it"),
        ("debian:trixie", "docker.io/library/debian:trixie"),
    ],
)
def test_a_reference_is_read_as_docker_reads_it(text: str, told: str) -> None:
    assert str(verify.Reference.parse(text)) == told


@pytest.mark.parametrize(
    "text", ["", "ghcr.io/team/cresset", "ghcr.io/team/cresset@sha256:5", "a b:c"]
)
def test_what_names_no_image_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="a tag or a digest"):
        verify.Reference.parse(text)


def test_what_docker_pulled_is_known_by_its_digest() -> None:
    other = f"sha256:{'6' * 64}"
    digests = [f"ghcr.io/team/cresset@{other}", f"ghcr.io/team/cresset@{DIGEST}",
               f"localhost:5000/cresset@{other}"]  # fmt: skip
    pinned = verify.published(f"ghcr.io/team/cresset:it@{DIGEST}", digests)
    assert str(pinned) == f"ghcr.io/team/cresset@{DIGEST}"
    assert verify.published("localhost:5000/cresset:it", digests).digest == other
    with pytest.raises(ProofError, match="made or loaded here"):
        verify.published("cresset:it", [])


# Attaching


IMAGE = json.dumps({"mediaType": referrers.MANIFEST, "config": {}, "layers": []}).encode()
PUBLISHED = dataclasses.replace(SUBJECT, digest=referrers.digest_of(IMAGE))
WHERE = publish.Registry(SUBJECT.repository, "cresset")
THERE = Delivered(f"{SUBJECT.repository}@{PUBLISHED.digest}", PUBLISHED.digest, 5)


def quiet(_: str) -> None:
    pass


def documents() -> Proof:
    return Proof(sbom.sbom(spec("simple"), PUBLISHED, PACKAGES, BASE),
                 statement(spec("simple")).content())  # fmt: skip


def registry(monkeypatch: pytest.MonkeyPatch, *, lists: bool = True) -> Registry:
    """Let a registry that has an image and nothing of it be the one that is asked."""
    it = Registry(lists=lists)
    it.put(SUBJECT.tags[0], IMAGE)
    monkeypatch.setattr(publish, "request", it.request)
    monkeypatch.setattr(referrers, "_SETTLED_SECONDS", 0)
    return it


def is_complete(it: Registry) -> bool:
    """Say whether all is attached, for those who ask for cosign's tags too."""
    found = attached(SUBJECT.repository, PUBLISHED.digest)
    counted = tuple(map(len, (found.sboms, found.statements, found.envelopes, found.signatures)))
    named = {referrers.tag_of(PUBLISHED.digest, suffix) for suffix in (".sig", ".att")}
    return counted == (1, 1, 2, 1) and named <= it.manifests.keys()


@pytest.mark.parametrize("lists", [True, False], ids=["with referrers", "without"])
def test_wherever_it_is_cut_off_what_counts_as_signed_has_all_the_rest(
    lists: bool, key: ec.EllipticCurvePrivateKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sign.key").write_bytes(pem(key))
    settings = Settings(sign_key=str(tmp_path / "sign.key"))
    place = (SUBJECT.repository, SUBJECT.tags[0])
    for good in range(100):
        it = registry(monkeypatch, lists=lists)
        left = iter(range(good))
        it.refuses = lambda method, _, left=left: (  # type: ignore[misc]
            method in {"POST", "PUT"} and next(left, None) is None
        )
        try:
            attach.to_registry(PUBLISHED, documents(), key, quiet)
        except PublishError:
            it.refuses = lambda *_: False
            signed, lacks = bool(are_signed([place])), proof.lacks_proof(settings, WHERE, THERE)
            assert signed == is_complete(it) == (not lacks), f"after {good} writes"
            attach.to_registry(PUBLISHED, documents(), key, quiet)
        else:
            break
        assert are_signed([place])
        assert is_complete(it)
        assert not proof.lacks_proof(settings, WHERE, THERE)
    assert good > 10


def test_cosign_signs_an_image_last(monkeypatch: pytest.MonkeyPatch) -> None:
    registry(monkeypatch)
    verbs: list[str] = []
    monkeypatch.setattr("shutil.which", lambda _: "cosign")
    monkeypatch.setattr(attach, "_run", lambda _, verb, *__: verbs.append(verb))
    environ = {"SIGSTORE_ID_TOKEN": "it"}
    attach.to_registry(PUBLISHED, documents(), None, quiet, environ=environ)
    assert verbs == ["attest", "attest", "sign"]


@pytest.mark.parametrize("annotates", [True, False])
@pytest.mark.parametrize(
    ("predicate", "signs"),
    [
        ("https://sigstore.dev/cosign/sign/v1", True),
        (provenance.PREDICATE, False),
        (sbom.PREDICATE, False),
        ("https://cosign.sigstore.dev/attestation/vuln/v1", False),
    ],
)
def test_a_statement_of_cosigns_is_no_signature(
    predicate: str, signs: bool, annotates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = registry(monkeypatch)
    it.annotates = annotates
    image = {"digest": PUBLISHED.digest}
    bundle = {
        "artifactType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "annotations": {"dev.sigstore.bundle.predicateType": predicate},
        "subject": image,
    }
    it.put("bundle", json.dumps(bundle).encode())
    assert bool(are_signed([(SUBJECT.repository, SUBJECT.tags[0])])) == signs


def test_whether_an_image_has_its_proof_takes_two_questions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    it = registry(monkeypatch)
    assert not proof.lacks_proof(Settings(attest="off"), WHERE, THERE)
    assert not proof.lacks_proof(Settings(), publish.Docker("cresset", "cresset"), THERE)
    assert it.asked == []
    assert proof.lacks_proof(Settings(), WHERE, THERE)
    attach.to_registry(PUBLISHED, documents(), None, quiet)
    it.asked.clear()
    assert not proof.lacks_proof(Settings(), WHERE, THERE)
    assert len(it.asked) == 2
    it.refuses = lambda *_: True
    with pytest.raises(PublishError):
        proof.lacks_proof(Settings(), WHERE, THERE)


@pytest.mark.usefixtures("checkout")
def test_a_build_with_nothing_to_do_attaches_what_is_missing_and_says_nothing_of_it_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry(monkeypatch)
    again: list[ImageSpec] = []

    def attest_published(it: ImageSpec, *_: Any, **__: Any) -> Delivered:
        again.append(it)
        attach.to_registry(PUBLISHED, documents(), None, quiet)
        return THERE

    monkeypatch.setattr(proof, "attest_published", attest_published)
    monkeypatch.setattr(running, "Nowhere", lambda: WHERE)
    monkeypatch.setattr(build, "found", lambda it, _: build.Outcome(THERE, it, {}, []))
    argv = ("build-only", "simple", "--registry=registry.example/team")
    first, second = running.run(*argv), running.run(*argv)
    assert (first.code, first.out) == (second.code, second.out) == (0, f"{THERE.ref}\n")
    assert len(again) == 1
    assert "attach" not in second.err
    off = running.run(*argv, "--attest=off")
    assert off.code == 0


@pytest.mark.usefixtures("checkout")
def test_who_may_only_pull_gets_an_image_without_its_proof_and_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    it = registry(monkeypatch)
    it.refuses = lambda method, _: method in {"POST", "PUT"}
    monkeypatch.setattr(running, "Nowhere", lambda: WHERE)
    monkeypatch.setattr(build, "found", lambda it, _: build.Outcome(THERE, it, {}, []))
    ran = running.run("build-only", "simple", "--registry=registry.example/team")
    assert (ran.code, ran.out) == (0, f"{THERE.ref}\n")
    assert "lacks its SBOM, provenance or signature" in ran.err
    assert "docker login" in ran.err


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405])
def test_whether_one_may_push_is_tried_and_leaves_nothing(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = registry(monkeypatch)
    assert referrers.may_push(SUBJECT.repository)
    assert it.asked == ["POST blobs/uploads/", "DELETE blobs/upload/1"]
    it.refuses, it.refusal = lambda *_: True, status
    assert not referrers.may_push(SUBJECT.repository)
    it.refusal = 301
    with pytest.raises(PublishError):
        referrers.may_push(SUBJECT.repository)


@pytest.mark.parametrize(
    ("host", "scheme"),
    [("localhost:5000", "http"), ("127.0.0.1", "http"), ("registry.example:5000", "https")],
)
def test_an_sbom_has_the_url_that_its_registry_is_spoken_to_by(
    host: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry(monkeypatch)
    there = dataclasses.replace(PUBLISHED, repository=f"{host}/team/cresset")
    attach.to_registry(there, documents(), None, quiet)
    found = listing._sbom(there.repository, there.digest)
    assert found.startswith(f"{scheme}://{host}/v2/team/cresset/blobs/sha256:")


# Verifying


def proved(
    monkeypatch: pytest.MonkeyPatch,
    key: ec.EllipticCurvePrivateKey | None,
    forged: Mapping[str, str] = {},
) -> tuple[Registry, verify.Reference]:
    """Let the registry have an image with all that proves it, signed by a key if there is one."""
    it, simple = registry(monkeypatch), spec("simple")
    written = labels(simple, BASE) | {ARCHES: "sm_86"}
    written |= {f"dev.cresset.{name}": text for name, text in forged.items()}
    config = json.dumps({"config": {"Labels": written}}).encode()
    described = referrers.push_blob(SUBJECT.repository, config, "application/json")
    image = {"mediaType": referrers.MANIFEST, "config": described, "layers": [],
             "annotations": written}  # fmt: skip
    digest = it.put(SUBJECT.tags[0], json.dumps(image).encode())
    subject = dataclasses.replace(SUBJECT, digest=digest)
    found = proof.documents(simple, Settings(), subject, PACKAGES, made(arches="sm_86"))
    attach.to_registry(subject, found, key, quiet)
    return it, verify.Reference(SUBJECT.repository, digest=digest)


def take_away(it: Registry, artifact_type: str) -> None:
    """Delete what is attached of a type, as anybody may who may push."""
    for reference, content in list(it.manifests.items()):
        if json.loads(content).get("artifactType") == artifact_type:
            del it.manifests[reference]


def up(pinned: verify.Reference, key: ec.EllipticCurvePrivateKey, folder: Path) -> list[str]:
    """Start an image that Docker has pulled where VERIFY_KEY is the key; return what is said."""
    public = folder / "sign.pub"
    pem = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(*pem))
    pulled = SimpleNamespace(repo_digests=[str(pinned)])
    running = SimpleNamespace(state=SimpleNamespace(running=True))
    docker = SimpleNamespace(
        image=SimpleNamespace(exists=lambda _: True, inspect=lambda _: pulled),
        compose=SimpleNamespace(up=lambda **_: None, ps=lambda **_: [running]),
    )
    named = {"IMAGE_SIMPLE": str(pinned), "VERIFY_KEY": str(public)}
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compose.Project, "docker", lambda *_: docker)
        patch.setattr(compose, "_FIRST_SECONDS", 0)
        compose.Project("simple", named, ()).up(said.append)
    return said


def test_what_proves_an_image_lets_it_start(
    key: ec.EllipticCurvePrivateKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    it, pinned = proved(monkeypatch, key)
    it.asked.clear()
    signed, started = up(pinned, key, tmp_path)
    assert "and so are its SBOM and provenance" in signed
    assert "is up" in started
    assert not [asked for asked in it.asked if not asked.startswith("GET")]


@pytest.mark.parametrize(
    ("artifact_type", "named"),
    [(sbom.MEDIA_TYPE, "SBOM="), (provenance.MEDIA_TYPE, "provenance="),
     (signing.ENVELOPE_TYPE, "provenance="), (signing.ARTIFACT_TYPE, "signature=")],
    ids=["SBOM", "provenance", "its signature", "signature"],
)  # fmt: skip
def test_an_image_without_a_part_of_its_proof_is_not_started(
    artifact_type: str, named: str,
    key: ec.EllipticCurvePrivateKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    it, pinned = proved(monkeypatch, key)
    take_away(it, artifact_type)
    with pytest.raises(ProofError, match=named):
        up(pinned, key, tmp_path)


@pytest.mark.parametrize(
    ("label", "named"),
    [({"key": "0" * 64}, "key="), ({"arches": "sm_90"}, "architectures=")],
    ids=["key", "architectures"],
)
def test_an_image_that_says_other_than_its_provenance_is_not_started(
    label: dict[str, str], named: str,
    key: ec.EllipticCurvePrivateKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    _, pinned = proved(monkeypatch, key, label)
    # It is signed all the same, which is all that a build which is to attach the rest asks.
    verify.demand_signature(pinned, key.public_key())
    with pytest.raises(ProofError, match=named):
        up(pinned, key, tmp_path)


BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"


def by_cosign_3(it: Registry, pinned: verify.Reference, material: str, predicate: str = "") -> None:
    """Attach a bundle, as cosign 3 does; no predicate: its own, by which it signs."""
    bundle = json.dumps({"mediaType": BUNDLE, "verificationMaterial": {material: {}}}).encode()
    layer = referrers.push_blob(SUBJECT.repository, bundle, BUNDLE)
    predicate = predicate or "https://sigstore.dev/cosign/sign/v1"
    about = {"artifactType": BUNDLE, "layers": [layer], "subject": {"digest": pinned.digest},
             "annotations": {"dev.sigstore.bundle.predicateType": predicate}}  # fmt: skip
    it.put(f"bundle-{material}-{layer['digest'][-5:]}", json.dumps(about).encode())


def by_cosign_2(it: Registry, pinned: verify.Reference) -> None:
    """Attach a payload with a certificate, as cosign 2 does."""
    payload = signing.payload(SUBJECT.repository, pinned.digest)
    layer = referrers.push_blob(SUBJECT.repository, payload, signing.PAYLOAD_TYPE)
    layer["annotations"] = {signing.SIGNATURE: "AAAA", signing.CERTIFICATE: "-----BEGIN"}
    tag = referrers.tag_of(pinned.digest, ".sig")
    it.put(tag, json.dumps({"layers": [layer]}).encode())


KEYLESS = "a keyless signature is attached, and not checked here"
IN_A_BUNDLE = "a signature by a key is attached in a bundle of cosign's, and not checked here"


def signature(pinned: verify.Reference, key: ec.EllipticCurvePrivateKey | None) -> verify.Check:
    public = key.public_key() if key else None
    verdict = verify.verify(pinned, public, quiet, layers=False)
    (check,) = (it for it in verdict.checks if it.name == "signature")
    return check


@pytest.mark.parametrize(
    ("attaches", "told", "command"),
    [
        (lambda it, ref: by_cosign_3(it, ref, "certificate"), KEYLESS, "--certificate-identity"),
        (lambda it, ref: by_cosign_3(it, ref, "x509CertificateChain"), KEYLESS, "--certificate-"),
        (by_cosign_2, KEYLESS, "--certificate-oidc-issuer"),
        (lambda it, ref: by_cosign_3(it, ref, "publicKey"), IN_A_BUNDLE, "--key FILE"),
    ],
    ids=["by an identity", "by a chain", "by cosign 2", "by a key"],
)
def test_a_signature_that_is_not_checked_here_is_told_with_what_checks_it(
    attaches: Callable[[Registry, verify.Reference], None], told: str, command: str,
    key: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    it, pinned = proved(monkeypatch, None)
    assert signature(pinned, None).told == "none"
    attaches(it, pinned)
    unchecked = signature(pinned, None)
    assert unchecked.passed
    assert unchecked.told.startswith(told)
    assert command in unchecked.told.partition("`cosign verify ")[2]
    assert unchecked.told.endswith(f" {pinned}`")
    # What a key is asked for, nobody has done.
    refused = signature(pinned, key)
    assert not refused.passed
    assert told in refused.told


def test_beside_a_signature_by_the_key_cosigns_changes_nothing(
    key: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    it, pinned = proved(monkeypatch, key)
    good = signature(pinned, key)
    by_cosign_3(it, pinned, "certificate")
    assert signature(pinned, key) == good
    told = signature(pinned, None).told
    assert told.startswith("1 of them, not checked: VERIFY_KEY names no key; ")
    assert KEYLESS in told


def test_a_statement_in_a_bundle_is_not_told_as_a_signature(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    it, pinned = proved(monkeypatch, None)
    by_cosign_3(it, pinned, "certificate", provenance.PREDICATE)
    assert signature(pinned, None).told == "none"


@pytest.mark.parametrize(
    ("label", "found"),
    [("sm_86", ["sm_86"]), ("sm_86 sm_90 compute_90", ["compute_90", "sm_86", "sm_90"]),
     ("sm_90 sm_90a", ["sm_90"]), ("", [])],
    ids=["one", "several", "what torch adds by itself", "no GPU"],
)  # fmt: skip
def test_gpu_code_as_the_label_says(label: str, found: list[str]) -> None:
    assert verify.gpu_code(label, found, "2.6.0").passed


@pytest.mark.parametrize(
    ("label", "found"),
    [("sm_86 sm_90", ["sm_86"]), ("sm_86", ["sm_86", "sm_90"]), ("sm_90", ["sm_86"]),
     ("", ["sm_86"]), ("sm_86", []), ("sm_86 compute_86", ["sm_86"])],
)  # fmt: skip
def test_a_forged_label_of_gpu_code(label: str, found: list[str]) -> None:
    check = verify.gpu_code(label, found, "2.6.0")
    assert not check.passed
    told = f"the label says {label or 'none'}, the torch in it {' '.join(found) or 'none'}"
    assert check.told == told


def test_torch_is_asked_in_a_published_image_as_in_a_built_one() -> None:
    image = dag.container()
    *_, asked = chain(probe_torch(image))
    *_, as_built = chain(probe(image, spec()))
    assert asked.args["args"] == as_built.args["args"]


TORCH = {"version": "2.6.0+cu124", "arches": ["sm_86"], "code": {}}


@pytest.mark.parametrize(
    ("target", "torch", "checks"),
    [
        ("simple", TORCH, {"packages": True, "GPU code": True}),
        ("train", TORCH | {"arches": ["sm_75"]}, {"packages": True, "GPU code": False}),
        ("train", {"import_error": "no libcudart"}, {"packages": True, "GPU code": False}),
    ],
)
def test_looked_into_an_image_its_torch_is_asked_too(
    target: str, torch: dict[str, Any], checks: dict[str, bool],
    key: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    _, pinned = proved(monkeypatch, key, {"target": target})
    printed = {"packages": json.dumps(PACKAGES), "GPU code": json.dumps({"torch": torch})}
    monkeypatch.setattr(
        proof, "_printed", lambda _, stages, *__: {it: printed[it] for it in stages}
    )
    verdict = verify.verify(pinned, key.public_key(), quiet, layers=False)
    before = len(verdict.checks)
    looked = proof.looked_into(verdict, Settings())
    assert {it.name: it.passed for it in looked.checks[before:]} == checks


@pytest.mark.parametrize(
    "output", ["", "bye", "[]", '{"torch": null}', '{"torch": {"version": 1}}']
)
def test_an_image_that_prints_what_it_likes_is_refused_in_words(
    output: str, key: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, pinned = proved(monkeypatch, key, {"target": "train"})
    monkeypatch.setattr(proof, "_printed", lambda _, stages, *__: dict.fromkeys(stages, output))
    verdict = verify.verify(pinned, key.public_key(), quiet, layers=False)
    failed = {it.name: it.told for it in proof.looked_into(verdict, Settings()).failed}
    assert {"packages", "GPU code"} <= failed.keys()
    assert "the image answers with what is no such list" in failed["GPU code"]
