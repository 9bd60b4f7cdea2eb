"""How an image was made: an in-toto statement of SLSA's provenance.

Written from the specifications https://github.com/in-toto/attestation/blob/v1.1.0/spec/v1/ and
https://slsa.dev/spec/v1.0/provenance. Unlike those, which ask readers to ignore fields that they do
not know, these models refuse them: what is checked here was written here.

A `build type` says what the parameters mean. Of `BUILD_TYPE` the external ones are the target and
the settings that a user gave, with nothing that is an address or could be a secret; the internal
ones are the key, what is hashed into it that no setting names, the tags of the image, and the GPU
code that was found in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import AliasGenerator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from pipeline.attest.sbom import location
from pipeline.attest.subject import Made, Subject
from pipeline.labels import PROJECT
from pipeline.settings import ADDRESSES, DELIVERY, ENGINE, MIRRORS, START, Settings, group_of, shown
from pipeline.spec import ImageSpec, SourceSpec

MEDIA_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT: Final = "https://in-toto.io/Statement/v1"
PREDICATE: Final = "https://slsa.dev/provenance/v1"
BUILD_TYPE: Final = f"{PROJECT}/build/v1"
LOCAL_BUILDER: Final = f"{PROJECT}/builder/local"
"""Anybody's own machine, of which nothing is promised (SLSA build level 1)."""

_NOT_SHAPING = (MIRRORS, DELIVERY, ENGINE, START)
_Digests = dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{40,128}$")]]


class _Model(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=AliasGenerator(alias=to_camel),
        validate_by_name=True,
        serialize_by_alias=True,
    )


class Resource(_Model):
    """Something by name, place or content (spec/v1/resource_descriptor.md)."""

    name: str = ""
    uri: str = ""
    digest: _Digests = {}
    media_type: str = ""
    annotations: dict[str, str] = {}

    @model_validator(mode="after")
    def _says_something(self) -> Resource:
        if not (self.uri or self.digest):
            msg = "a resource needs a uri or a digest"
            raise ValueError(msg)
        return self


class About(_Model):
    """The subject of a statement: its digest is what counts."""

    name: str
    digest: Annotated[_Digests, Field(min_length=1)]


class BuildDefinition(_Model):
    """What was asked for, and what went into it."""

    build_type: Annotated[str, Field(pattern=r"^https://")]
    external_parameters: dict[str, Any]
    internal_parameters: dict[str, Any]
    resolved_dependencies: list[Resource]


class Builder(_Model):
    """Who built it, as far as can be told."""

    id: Annotated[str, Field(pattern=r"^https://")]
    version: dict[str, str]


class Metadata(_Model):
    """Which run, and when, in UTC; nothing of an image that was attested later."""

    invocation_id: str = ""
    started_on: datetime | None = None
    finished_on: datetime | None = None


class RunDetails(_Model):
    """The run that built it."""

    builder: Builder
    metadata: Metadata
    byproducts: list[Resource]


class Predicate(_Model):
    """SLSA's provenance."""

    build_definition: BuildDefinition
    run_details: RunDetails


class Statement(_Model):
    """An in-toto statement (spec/v1/statement.md) with a provenance in it."""

    type: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")]
    subject: Annotated[list[About], Field(min_length=1)]
    predicate_type: Literal["https://slsa.dev/provenance/v1"]
    predicate: Predicate

    @property
    def key(self) -> str:
        """The key of the image that was built."""
        return str(self.predicate.build_definition.internal_parameters.get("key", ""))

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags that the image was published under."""
        return tuple(self.predicate.build_definition.internal_parameters.get("tags", ()))

    @property
    def finished(self) -> str:
        """When the build ended, in ISO 8601 and UTC; empty if it is not known."""
        finished = self.predicate.run_details.metadata.finished_on
        return f"{finished:%Y-%m-%dT%H:%M:%SZ}" if finished else ""

    @property
    def arches(self) -> str:
        """The GPU code that was found in the image, as its label tells it."""
        return str(self.predicate.build_definition.internal_parameters.get("arches", ""))

    @property
    def sboms(self) -> set[str]:
        """The sha256 of each SBOM that was made of it."""
        made = self.predicate.run_details.byproducts
        return {it.digest["sha256"] for it in made if "sha256" in it.digest}

    def is_about(self, digest: str) -> bool:
        """Say whether an image of this digest is what it is about, and nothing else."""
        kind, _, value = digest.partition(":")
        return all(it.digest.get(kind) == value for it in self.subject)

    def content(self) -> bytes:
        """Return it as JSON, without what is empty."""
        return (self.model_dump_json(indent=1, exclude_defaults=True) + "\n").encode()


def provenance(
    spec: ImageSpec,
    settings: Settings,
    subject: Subject,
    made: Made,
    sbom: Mapping[str, str],
    environ: Mapping[str, str],
    version: str,
) -> Statement:
    """Return how an image was made.

    `sbom` is name and sha256 of its SBOM; `version` is Cresset's; of the `environ` only what
    GitHub Actions says of the run is read.
    """
    run = invocation(environ)
    return Statement(
        type=STATEMENT,
        predicate_type=PREDICATE,
        subject=[About(name=subject.repository, digest=_digest(subject.digest))],
        predicate=Predicate(
            build_definition=BuildDefinition(
                build_type=BUILD_TYPE,
                external_parameters={"target": spec.target, "settings": shaping(settings)},
                internal_parameters={
                    "key": spec.key,
                    "recipe": spec.recipe,
                    "variant": spec.variant,
                    "platform": spec.platform,
                    "compression": spec.compression,
                    "tags": list(subject.tags),
                    "arches": made.arches,
                },
                resolved_dependencies=list(_dependencies(spec, made)),
            ),
            run_details=RunDetails(
                builder=Builder(
                    id=builder(environ),
                    version={
                        name: told
                        for name, told in (
                            ("cresset", version),
                            ("dagger", made.engine_version),
                            ("engine", made.engine),
                        )
                        if told
                    },
                ),
                metadata=Metadata(
                    invocation_id=run, started_on=made.started, finished_on=made.finished
                ),
                byproducts=[
                    Resource(name=name, digest={"sha256": digest}) for name, digest in sbom.items()
                ],
            ),
        ),
    )


def read(content: bytes) -> Statement | str:
    """Return a statement, or in what it is none."""
    try:
        return Statement.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def shaping(settings: Settings) -> dict[str, str]:
    """Return what a user set of that which shapes an image, with no address and no secret."""
    return {
        name.upper(): shown(str(value), name.upper())
        for name, field in Settings.model_fields.items()
        if (value := getattr(settings, name))
        and group_of(field) not in _NOT_SHAPING
        and name.upper() not in ADDRESSES
        and name not in {"base_archive", "max_jobs", "wheel_store"}
    }


def builder(environ: Mapping[str, str]) -> str:
    """Return who builds: the workflow by its ref if this is GitHub Actions, else `LOCAL_BUILDER`.

    As docs.github.com has it, GITHUB_WORKFLOW_REF is ``owner/repo/.github/workflows/it.yml@ref``.
    """
    workflow = environ.get("GITHUB_WORKFLOW_REF")
    if environ.get("GITHUB_ACTIONS") != "true" or not workflow:
        return LOCAL_BUILDER
    return f"{environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{workflow}"


def invocation(environ: Mapping[str, str]) -> str:
    """Return the URL of the run in GitHub Actions, empty elsewhere."""
    names = ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_RUN_ID", "GITHUB_RUN_ATTEMPT")
    server, repository, run, attempt = (environ.get(name, "") for name in names)
    if environ.get("GITHUB_ACTIONS") != "true" or not run:
        return ""
    return f"{server}/{repository}/actions/runs/{run}/attempts/{attempt or 1}"


def _digest(digest: str) -> dict[str, str]:
    kind, _, value = digest.partition(":")
    return {kind: value}


def _dependencies(spec: ImageSpec, made: Made) -> Iterator[Resource]:
    base = re.fullmatch(r"(\w+) (\S+?)@sha256:([0-9a-f]{64})", made.origin)
    if base:
        kind, name, sha256 = base.groups()
        # What mmdebstrap made is named by the file that it is in.
        uri = f"pkg:docker/{name.partition(':')[0]}" if kind == "image" else ""
        yield Resource(name=f"base: {name}", uri=uri, digest={"sha256": sha256},
                       annotations={"from": kind})  # fmt: skip
    for file in spec.pip:
        yield Resource(name=f"reqs/{file.name}", digest={"sha256": file.sha256})
    for wheel in spec.compiled:
        tools = wheel.toolchain.tools
        yield Resource(
            name=wheel.variant,
            uri=f"pkg:pypi/{wheel.package}@{wheel.version.replace('+', '%2B')}",
            annotations={"key": wheel.key, "recipe": wheel.recipe},
        )
        yield Resource(name=f"reqs/{tools.name}", digest={"sha256": tools.sha256})
        told = made.torch_commit if wheel.package == "torch" else ""
        yield _source(wheel.package, wheel.source, told)
        if wheel.magma:
            yield _source("magma", wheel.magma.source, "")


def _source(package: str, source: SourceSpec, commit: str) -> Resource:
    where = location(source)
    digest = {"sha256": source.sha256} if source.sha256 else {}
    commit = source.ref if re.fullmatch(r"[0-9a-f]{40}", source.ref) else commit
    if source.kind == "git" and re.fullmatch(r"[0-9a-f]{40}", commit):
        digest["gitCommit"] = commit
    prefix = "git+" if source.kind == "git" and "://" in where else ""
    uri = f"{prefix}{where}" if where else ""
    if source.kind == "apt":
        uri = f"pkg:deb/debian/{source.location}?arch=source"
    asked = {"ref": source.ref} if source.ref else {}
    return Resource(name=f"source of {package}", uri=uri, digest=digest, annotations=asked)
