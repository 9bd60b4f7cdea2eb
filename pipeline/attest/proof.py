"""Proving one image: what is in it, how it was made, and by whom; of a new one, or of one there."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pipeline import tags
from pipeline.attest.subject import Made, Subject
from pipeline.errors import ConfigError, Problem, ProofError, PublishError
from pipeline.labels import ARCHES, BASE
from pipeline.publish import DIST, Archive, Delivered, Destination, Registry
from pipeline.settings import Settings
from pipeline.spec import ImageSpec, Target

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from dagger import Container

    from pipeline.attest.attach import Proof
    from pipeline.attest.attached import Attached
    from pipeline.attest.verify import Check, Verdict
    from pipeline.report import Report

_GPU_CODE = "GPU code"


def signer(settings: Settings) -> EllipticCurvePrivateKey | None:
    """Return the key to sign with, None if none is named; ConfigError if it is no key."""
    from pipeline.attest import signing  # noqa: PLC0415 - as in attest

    return signing.private_key(settings.sign_key) if settings.sign_key else None


async def attest(
    image: Container,
    spec: ImageSpec,
    settings: Settings,
    where: Destination,
    delivered: Delivered,
    made: Made,
    key: EllipticCurvePrivateKey | None,
    say: Callable[[str], None],
) -> None:
    """Attach to an image in a registry what proves it; of another, write it into ``dist/``.

    Raises:
        PublishError: it cannot be attached or written; the image is delivered nevertheless.

    """
    from anyio import to_thread  # noqa: PLC0415 - only what builds or attests needs any of it
    from dagger import dag  # noqa: PLC0415

    from pipeline.attest import attach  # noqa: PLC0415

    told = dataclasses.replace(made, engine_version=await dag.version())
    subject = Subject(where.repository, delivered.digest, tags.tags(spec, settings.image_name))
    listed = await packages(image, spec.target)

    def work() -> None:
        proof = documents(spec, settings, subject, listed, told)
        if isinstance(where, Registry):
            attach.to_registry(subject, proof, key, say)
            return
        name = f"{where.repository.replace('/', '-')}-{spec.variant}"
        folder = where.folder if isinstance(where, Archive) else DIST
        files = attach.to_files(folder, name, subject, proof, key)
        say(f"written: {', '.join(map(str, files))}")

    await to_thread.run_sync(work)


def documents(
    spec: ImageSpec, settings: Settings, subject: Subject, listed: dict[str, Any], made: Made
) -> Proof:
    """Return SBOM and provenance of an image of which the packages are `listed`."""
    from pipeline.attest import attach, provenance, referrers, sbom  # noqa: PLC0415 - as in attest

    bill = sbom.sbom(spec, subject, listed, made.origin)
    summed = {"sbom.cdx.json": referrers.digest_of(bill).partition(":")[2]}
    version = importlib.metadata.version("cresset")
    statement = provenance.provenance(spec, settings, subject, made, summed, os.environ, version)
    return attach.Proof(bill, statement.content())


async def packages(image: Container, target: Target) -> dict[str, Any]:
    """Return the packages of an image, asked inside it."""
    from pipeline.stages import inventory  # noqa: PLC0415 - it brings the SDK

    return inventory.read(await inventory.inventory(image, target).stdout())


def attest_published(
    spec: ImageSpec, settings: Settings, where: Destination, *, again: bool
) -> Delivered:
    """Attach what is missing to an image that is in its registry already; return where it is.

    With `again` its provenance is written anew, without what only its build could tell.

    Raises:
        ConfigError: it goes to no registry.
        PublishError: it is not there, or the registry does not take what is attached.
        EngineError, BuildError: it could not be looked into.

    """
    from pipeline.attest import attach, sbom  # noqa: PLC0415 - as in attest
    from pipeline.attest.attached import attached  # noqa: PLC0415
    from pipeline.report import reporting  # noqa: PLC0415

    if not isinstance(where, Registry):
        problem = Problem("REGISTRY", "", "only to an image in a registry can anything be attached",
                          next_step="name the registry that it is in")  # fmt: skip
        raise ConfigError([problem])
    key = signer(settings)
    delivered = where.find(spec)
    if delivered is None:
        raise PublishError(
            f"{spec.variant} is not in {where.name}",
            next_step="deliver it first, with `python -m pipeline build-only` and these settings",
        )
    subject = Subject(where.repository, delivered.digest, tags.tags(spec, settings.image_name))
    with reporting("attest", ["engine", "packages", "attest"]) as report:
        ref = f"{subject.repository}@{subject.digest}"
        listed = packages_of(ref, spec.target, settings, report)
        with report.stage("attest", in_engine=False):
            labels = labels_of(subject)
            made = Made(origin=labels.get(BASE, ""), arches=labels.get(ARCHES, ""))
            proof = documents(spec, settings, subject, listed, made)
            there = attached(subject.repository, subject.digest)
            # What the image's own build wrote tells more.
            before = None if again else _there(there, subject, spec.key, sbom.listed(proof.sbom))
            attach.to_registry(subject, before or proof, key, report.note)
    return delivered


def complete(
    spec: ImageSpec,
    settings: Settings,
    where: Destination,
    delivered: Delivered,
    say: Callable[[str], None],
) -> None:
    """Attach what an image lacks of its proof, or say that this is for others to do.

    Who may only pull gets the image all the same (issue 6).

    Raises:
        ConfigError, PublishError, EngineError, BuildError: as `attest_published`.

    """
    if not lacks_proof(settings, where, delivered):
        return
    from pipeline.attest import referrers  # noqa: PLC0415 - as in attest

    if referrers.may_push(where.repository):
        attest_published(spec, settings, where, again=False)
    else:
        say(f"{spec.variant} {for_others(where)}")


def for_others(where: Destination) -> str:
    """Return the words for an image without its proof that others have to attach."""
    host = where.repository.partition("/")[0]
    return (
        "lacks its SBOM, provenance or signature, and this login may not attach it: "
        f"`docker login {host}` as somebody who may push there, and run it again"
    )


def lacks_proof(settings: Settings, where: Destination, delivered: Delivered) -> bool:
    """Say whether an image in a registry is there without what its build was to attach to it.

    That is its SBOM and its provenance, and a signature by SIGN_KEY if there is one; a build that
    was cut off after it had delivered leaves such an image.

    Raises:
        ConfigError: SIGN_KEY is no key.
        PublishError: the registry cannot be asked.

    """
    if settings.attest == "off" or not isinstance(where, Registry):
        return False
    from pipeline.attest.attached import is_documented  # noqa: PLC0415 - as in attest

    key = signer(settings)
    if not is_documented(where.repository, delivered.digest):
        return True
    if key is None:
        return False
    from pipeline.attest import verify  # noqa: PLC0415 - as above

    try:
        verify.demand_signature(
            verify.Reference.parse(f"{where.repository}@{delivered.digest}"), key.public_key()
        )
    except ProofError:
        return True
    return False


def _there(
    there: Attached, subject: Subject, key: str, packages: Mapping[str, str]
) -> Proof | None:
    """Return what is attached already, if it is of the image, its key and its packages."""
    from pipeline.attest import attach, provenance, referrers, sbom  # noqa: PLC0415 - as in attest

    for content in there.statements:
        read = provenance.read(content)
        if isinstance(read, str) or not read.is_about(subject.digest) or read.key != key:
            continue
        for bill in there.sboms:
            named = referrers.digest_of(bill).partition(":")[2] in read.sboms
            if named and not sbom.invalid(bill) and sbom.listed(bill) == packages:
                return attach.Proof(bill, content)
    return None


def labels_of(subject: Subject) -> dict[str, str]:
    """Return the labels of an image in a registry; PublishError if they cannot be had."""
    from pipeline.attest import referrers  # noqa: PLC0415 - as in attest

    image = referrers.manifest(subject.repository, subject.digest)
    config = image and referrers.blob(subject.repository, image.read["config"]["digest"])
    if not config:
        raise PublishError(f"{subject.repository} has no image {subject.digest}")
    labels: dict[str, str] = referrers.parsed(config).get("config", {}).get("Labels") or {}
    return labels


def packages_of(ref: str, target: Target, settings: Settings, report: Report) -> dict[str, Any]:
    """Return the packages of an image in a registry, asked inside it in an engine."""
    from pipeline.stages import inventory  # noqa: PLC0415 - as in packages

    asked = {"packages": functools.partial(inventory.inventory, target=target)}
    return inventory.read(_printed(ref, asked, settings, report)["packages"])


def _printed(
    ref: str,
    stages: Mapping[str, Callable[[Container], Container]],
    settings: Settings,
    report: Report,
) -> dict[str, str]:
    """Return by stage what its program prints in an image of a registry, in an engine."""
    from pipeline.engine import select, session  # noqa: PLC0415 - as in attest

    with report.stage("engine", in_engine=False):
        choice = select.choose(settings.engine, report.say, select.hosts(settings.engines))

    async def ask() -> dict[str, str]:
        from dagger import dag  # noqa: PLC0415

        printed = {}
        async with session.session(choice, report.stream):
            image = dag.container().from_(ref)
            for name, stage in stages.items():
                with report.stage(name), session.translated():
                    printed[name] = await stage(image).stdout()
        return printed

    return session.run(ask())


def looked_into(verdict: Verdict, settings: Settings) -> Verdict:
    """Return the verdict with what the image itself tells: its packages, and torch's GPU code.

    Raises:
        EngineError, BuildError: it could not be looked into.

    """
    from pipeline.attest.verify import Reference  # noqa: PLC0415 - as in attest
    from pipeline.labels import TARGET  # noqa: PLC0415
    from pipeline.report import reporting  # noqa: PLC0415
    from pipeline.stages import inventory  # noqa: PLC0415
    from pipeline.stages.verify import probe_torch  # noqa: PLC0415

    repository = Reference.parse(verdict.ref).repository
    labels = labels_of(Subject(repository, verdict.digest, ()))
    target: Any = labels.get(TARGET, "")
    asked: dict[str, Callable[[Container], Container]] = {
        "packages": functools.partial(inventory.inventory, target=target)
    }
    # No other target has a torch of ours; an image that says so all the same is asked for it.
    if target == "train" or ARCHES in labels:
        asked[_GPU_CODE] = probe_torch
    with reporting("verify", ["engine", *asked]) as report:
        printed = _printed(f"{repository}@{verdict.digest}", asked, settings, report)
    judges = {
        "packages": functools.partial(_packages, verdict.sbom),
        _GPU_CODE: functools.partial(_gpu_code, labels.get(ARCHES, "")),
    }
    checks = [_judged(name, judges[name], output) for name, output in printed.items()]
    return dataclasses.replace(verdict, checks=(*verdict.checks, *checks))


def _judged(name: str, judge: Callable[[str], Check], output: str) -> Check:
    """Return a check of what was printed in an image, where its own programs may print anything."""
    from pipeline.attest.verify import MALFORMED, Check  # noqa: PLC0415 - as in attest

    try:
        return judge(output)
    except MALFORMED as error:
        why = f"the image answers with what is no such list: {type(error).__name__}: {error}"
        return Check(name, passed=False, told=why)


def _packages(bill: bytes, output: str) -> Check:
    """Check that the packages in an image are those of its SBOM."""
    from pipeline.attest import sbom  # noqa: PLC0415 - as in attest
    from pipeline.attest.verify import Check  # noqa: PLC0415
    from pipeline.stages import inventory  # noqa: PLC0415

    told, inside = sbom.listed(bill), sbom.references(inventory.read(output))
    other = sorted(ref for ref in {*told, *inside} if told.get(ref) != inside.get(ref))
    good = f"{len(inside)} packages, as the SBOM lists them"
    why = f"the SBOM and the image differ in {', '.join(other[:5])}"
    return Check("packages", passed=not other, told=why if other else good)


def _gpu_code(label: str, output: str) -> Check:
    """Check the label of an image by what the probe has printed in it."""
    from pipeline.attest import verify  # noqa: PLC0415 - as in attest
    from pipeline.stages.verify import gpu_code, read  # noqa: PLC0415

    facts = read(output)
    if error := facts["torch"].get("import_error"):
        why = f"the torch in it cannot be imported: {error}"
        return verify.Check(_GPU_CODE, passed=False, told=why)
    return verify.gpu_code(label, gpu_code(facts), facts["torch"]["version"].partition("+")[0])
