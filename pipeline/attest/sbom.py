"""The list of what is in an image, as CycloneDX 1.6 (https://cyclonedx.org/docs/1.6/json/).

The same image makes the same bytes: nothing in it tells when or where it was written.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from pipeline.attest.subject import Subject
from pipeline.errors import CressetError
from pipeline.labels import PROJECT
from pipeline.spec import ImageSpec, MagmaSpec, SourceSpec, WheelSpec

if TYPE_CHECKING:
    from cyclonedx.model import HashType, Property
    from cyclonedx.model.component import Component
    from packageurl import PackageURL

MEDIA_TYPE: Final = "application/vnd.cyclonedx+json"
PREDICATE: Final = "https://cyclonedx.org/bom"

_PREFIX = "dev.cresset:"


def sbom(spec: ImageSpec, subject: Subject, packages: Mapping[str, Any], origin: str) -> bytes:
    """Return the SBOM of an image of which the `packages` were asked inside it.

    `origin` is where its base came from.

    Raises:
        CressetError: what was made is not as the schema says.

    """
    from cyclonedx.model.bom import Bom  # noqa: PLC0415 - as below
    from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415
    from cyclonedx.output.json import JsonV1Dot6  # noqa: PLC0415 - a second, and only to attest
    from packageurl import PackageURL  # noqa: PLC0415

    name = subject.repository.rpartition("/")[2]
    image = Component(
        name=name,
        version=subject.digest,
        type=ComponentType.CONTAINER,
        bom_ref="image",
        hashes=_hashes(subject.digest.partition(":")[2]),
        purl=PackageURL(
            "oci", None, name, subject.digest, {"repository_url": subject.repository.lower()}
        ),
        properties=_properties(
            {"key": spec.key, "variant": spec.variant, "target": spec.target, "base": origin}
        ),
    )
    parts = [
        *_system(packages),
        *_apt(packages),
        *_python(spec.compiled, packages),
        *_npm(packages),
    ]
    parts += _linked(spec)
    bom = Bom(
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"{PROJECT}#{subject.digest}"),
        components=parts,
    )
    bom.metadata.component = image
    bom.register_dependency(image, parts)
    by_ref = {part.bom_ref.value: part for part in parts}
    for magma in (it for it in parts if it.bom_ref.value == "magma"):
        bom.register_dependency(by_ref["pypi:torch"], [magma])
    made = json.loads(JsonV1Dot6(bom).output_as_string())
    # It would be now, and two of one image would differ.
    made["metadata"].pop("timestamp", None)
    content = (json.dumps(made, indent=1, sort_keys=True) + "\n").encode()
    if why := invalid(content):
        raise CressetError("the SBOM that was made is not as its schema says", why=why)
    return content


def invalid(content: bytes) -> str:
    """Return in what an SBOM is not as the schema of CycloneDX 1.6 says, empty if it is."""
    from cyclonedx.schema import SchemaVersion  # noqa: PLC0415 - as in sbom
    from cyclonedx.validation.json import JsonStrictValidator  # noqa: PLC0415

    try:
        wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(content.decode())
    except ValueError as error:
        return f"not JSON: {error}"
    return str(wrong.data) if wrong else ""


def names(content: bytes) -> str:
    """Return the digest of the image that an SBOM is about, empty if it says none."""
    component = json.loads(content).get("metadata", {}).get("component", {})
    return str(component.get("version", ""))


def listed(content: bytes) -> dict[str, str]:
    """Return the version of each package that an SBOM lists, by its reference in there."""
    parts = json.loads(content).get("components", ())
    return {str(it.get("bom-ref")): str(it.get("version", "")) for it in parts}


def references(packages: Mapping[str, Any]) -> dict[str, str]:
    """Return, as `listed`, what an SBOM of an image with these packages would list."""
    parts = [*_system(packages), *_apt(packages), *_python((), packages), *_npm(packages)]
    return {str(part.bom_ref.value): str(part.version) for part in parts}


def _system(packages: Mapping[str, Any]) -> Iterator[Component]:
    from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415 - as in sbom
    from packageurl import PackageURL  # noqa: PLC0415

    system = packages["os"]
    yield Component(
        name=system["id"],
        # A scanner finds the advisories by it.
        version=system["version"] or system["codename"],
        type=ComponentType.OPERATING_SYSTEM,
        bom_ref="os",
        description=system["name"] or None,
    )
    interpreter = packages["interpreter"]
    if not interpreter["own"]:
        version = interpreter["version"]
        yield Component(
            name="cpython",
            version=version,
            type=ComponentType.APPLICATION,
            bom_ref="cpython",
            purl=PackageURL("generic", None, "cpython", version),
            description="python-build-standalone, by uv",
        )


def _apt(packages: Mapping[str, Any]) -> Iterator[Component]:
    from packageurl import PackageURL  # noqa: PLC0415 - as in sbom

    system = packages["os"]
    distro = f"{system['id']}-{system['version'] or system['codename']}"
    for it in packages["apt"]:
        qualifiers = {"arch": it["arch"], "distro": distro}
        if it["source"] != it["name"]:
            qualifiers["upstream"] = it["source"]
        yield _library(
            PackageURL("deb", system["id"], it["name"], it["version"], qualifiers),
            f"deb:{it['name']}:{it['arch']}",
        )


def _python(wheels: Sequence[WheelSpec], packages: Mapping[str, Any]) -> Iterator[Component]:
    from packageurl import PackageURL  # noqa: PLC0415 - as in sbom

    compiled = {wheel.package: wheel for wheel in wheels}
    for it in packages["python"]:
        wheel = compiled.get(it["name"])
        told = {"record-sha256": it["record"]} | (_of_wheel(wheel) if wheel else {})
        yield _library(
            PackageURL("pypi", None, it["name"], it["version"]),
            f"pypi:{it['name']}",
            sha256=it["sha256"],
            license_name=it["license"],
            properties=told,
        )


def _npm(packages: Mapping[str, Any]) -> Iterator[Component]:
    from packageurl import PackageURL  # noqa: PLC0415 - as in sbom

    for it in packages["npm"]:
        purl = PackageURL("npm", None, it["name"], it["version"])
        yield _library(purl, f"npm:{it['name']}", license_name="MIT")


def _linked(spec: ImageSpec) -> Iterator[Component]:
    """Yield what is compiled into torch and would be in no list of packages."""
    from packageurl import PackageURL  # noqa: PLC0415 - as in sbom

    for magma in (wheel.magma for wheel in spec.compiled if wheel.magma):
        yield _library(
            PackageURL("generic", None, "magma", magma.version),
            "magma",
            sha256=magma.source.sha256,
            properties=_of_magma(magma),
        )


def _of_wheel(wheel: WheelSpec) -> dict[str, str]:
    tools = wheel.toolchain
    return {
        "wheel-key": wheel.key,
        "wheel-variant": wheel.variant,
        **_of_source(wheel.source),
        "arches": " ".join(map(str, wheel.arches)),
        **{f"flag:{name}": value for name, value in wheel.flags},
        "cuda": tools.cuda,
        "gcc": tools.gcc,
        "recipe": wheel.recipe,
    }


def _of_magma(magma: MagmaSpec) -> dict[str, str]:
    return {**_of_source(magma.source), "patches": "\n".join(magma.patches)}


def _of_source(source: SourceSpec) -> dict[str, str]:
    return {
        "source": source.kind,
        "source-location": location(source),
        "source-ref": source.ref,
        "source-sha256": source.sha256,
    }


def location(source: SourceSpec) -> str:
    """Return where a source lies for everybody: nothing if that is this machine alone."""
    public = source.public_location
    local = source.kind == "path" or (source.kind == "archive" and "://" not in public)
    return "" if local else public


def _library(
    purl: PackageURL,
    ref: str,
    *,
    sha256: str = "",
    license_name: str = "",
    properties: Mapping[str, str] | None = None,
) -> Component:
    from cyclonedx.contrib.license.factories import LicenseFactory  # noqa: PLC0415 - as in sbom
    from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415

    return Component(
        name=purl.name,
        version=purl.version,
        type=ComponentType.LIBRARY,
        bom_ref=ref,
        purl=purl,
        hashes=_hashes(sha256),
        licenses=[LicenseFactory().make_from_string(license_name)] if license_name else (),
        properties=_properties(properties or {}),
    )


def _hashes(sha256: str) -> list[HashType]:
    from cyclonedx.model import HashAlgorithm, HashType  # noqa: PLC0415 - as in sbom

    return [HashType(alg=HashAlgorithm.SHA_256, content=sha256)] if sha256 else []


def _properties(told: Mapping[str, str]) -> list[Property]:
    from cyclonedx.model import Property  # noqa: PLC0415 - as in sbom

    return [Property(name=f"{_PREFIX}{name}", value=text) for name, text in told.items() if text]
