"""What is to be built: frozen models that are valid once they exist, and their key.

A spec holds no setting that only changes the speed, no host name of a mirror and no secret, so
that two machines which want the same image compute the same key.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from json.encoder import encode_basestring_ascii
from operator import attrgetter
from typing import Any, Final, Literal, Self, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

PLATFORM: Final = "linux/amd64"

_ARCH = re.compile(
    r"(?P<major>\d{1,2})\.(?P<minor>\d)(?P<suffix>[af]?)(?P<ptx>\+PTX)?", re.IGNORECASE
)


class Frozen(BaseModel):
    """A value: immutable, compared by content, refusing fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __copy__(self) -> Self:
        """Return a copy without what was computed of this one: `model_copy` may change a field."""
        made = super().__copy__()
        for name in vars(made).keys() - type(self).model_fields.keys():
            del vars(made)[name]
        return made

    def __hash__(self) -> int:
        """Return the hash, computed once: planning a matrix asks for it everywhere."""
        own = vars(self)
        found: int | None = own.get("_hash")
        if found is None:
            found = own["_hash"] = hash(_form(type(self), ()).values(self))
        return found

    @cached_property
    def canonical(self) -> str:
        """The canonical JSON, made once for everything that holds this value.

        It is what ``json.dumps`` makes of pydantic's own dump, with sorted keys and no spaces.
        """
        return self.canonical_with()

    def canonical_with(self, *without: str, **instead: str) -> str:
        """Return the canonical JSON without some fields, and with that of others replaced."""
        form = _form(type(self), without)
        parts = zip(form.names, form.writers, form.values(self), strict=True)
        if instead:
            return form.template % tuple(
                [instead.get(name) or write(value) for name, write, value in parts]
            )
        return form.template % tuple([write(value) for _, write, value in parts])


@dataclass(frozen=True, slots=True)
class _Form:
    """How the canonical JSON of a model is put together."""

    values: Callable[[Frozen], tuple[Any, ...]]
    names: tuple[str, ...]
    writers: tuple[Callable[[Any], str], ...]
    template: str


@cache
def _form(model: type[Frozen], without: tuple[str, ...]) -> _Form:
    fields = model.model_fields
    names = tuple(
        sorted(name for name in fields if not fields[name].exclude and name not in without)
    )
    writers = tuple(_writer(fields[name].annotation) for name in names)
    template = ",".join(f"{json.dumps(name)}:%s" for name in names)
    return _Form(attrgetter(*names), names, writers, f"{{{template}}}")


def _writer(annotation: object) -> Callable[[Any], str]:
    """Return what writes the values of a field; ten thousand specs are written in a second."""
    words = get_args(annotation) if get_origin(annotation) is Literal else ()
    if annotation is str or (words and all(isinstance(it, str) for it in words)):
        return encode_basestring_ascii
    if isinstance(annotation, type) and issubclass(annotation, Frozen):
        return attrgetter("canonical")
    return _json_of if get_origin(annotation) is tuple else _json


def _json(value: object) -> str:
    if type(value) is str:
        return encode_basestring_ascii(value)
    if isinstance(value, Frozen):
        return value.canonical
    return _json_of(value)


@lru_cache(4096, typed=True)
def _json_of(value: object) -> str:
    """Return the canonical JSON of what is no model; tuples are long, and in many specs."""
    if isinstance(value, tuple):
        return f"[{','.join(map(_json, value))}]"
    return json.dumps(value)


class Arch(Frozen):
    """One compute capability, as TORCH_CUDA_ARCH_LIST writes it: ``8.6``, ``9.0a``, ``8.6+PTX``."""

    major: int
    minor: int
    suffix: Literal["", "a", "f"] = ""
    ptx: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the architecture that `text` names; ValueError where it names none."""
        match = _ARCH.fullmatch(text)
        if match is None:
            msg = f"{text!r} is not a compute capability such as 8.6, 9.0a or 8.6+PTX"
            raise ValueError(msg)
        return cls(
            major=int(match["major"]),
            minor=int(match["minor"]),
            suffix="a" if match["suffix"] in ("a", "A") else "f" if match["suffix"] else "",
            ptx=bool(match["ptx"]),
        )

    @property
    def number(self) -> str:
        """``8.6``: the capability without suffix and PTX, the name the tables use."""
        return f"{self.major}.{self.minor}"

    @property
    def sm(self) -> str:
        """``sm_86``: the name cuobjdump and ``torch.cuda.get_arch_list()`` use."""
        return f"sm_{self.major}{self.minor}{self.suffix}"

    @property
    def compute(self) -> str:
        """``compute_86``: the name of its PTX."""
        return self.sm.replace("sm_", "compute_")

    @property
    def code(self) -> tuple[str, ...]:
        """The names of all that is compiled for it, as cuobjdump lists them."""
        return (self.sm, self.compute) if self.ptx else (self.sm,)

    def __str__(self) -> str:
        return f"{self.number}{self.suffix}{'+PTX' if self.ptx else ''}"

    def runs_on(self, device: Arch) -> bool:
        """Say whether code for this architecture runs on a GPU of capability `device`.

        A cubin runs on the same major and an equal or higher minor; ``a`` code only on its own
        capability, ``f`` code within its family; PTX on everything that is newer (CUDA C++
        Programming Guide, "Binary compatibility" and "PTX compatibility").
        """
        mine, theirs = (self.major, self.minor), (device.major, device.minor)
        if self.suffix == "a":
            return mine == theirs
        return (self.major == device.major and self.minor <= device.minor) or (
            self.ptx and mine <= theirs
        )


Target = Literal["train", "devel", "simple", "ngc"]
SourceKind = Literal["git", "archive", "apt", "path"]
BaseSource = Literal["auto", "image", "archive", "bootstrap"]
Compression = Literal["gzip", "zstd", "uncompressed"]


class BaseSpec(Frozen):
    """The image everything stands on, and where it may come from.

    With `source` ``auto`` the machine decides between registry and bootstrap at build time, and
    the image's labels record the choice: the key names what was asked for.
    """

    distribution: str
    version: str
    codename: str
    image: str
    source: BaseSource
    can_bootstrap: bool
    """Whether `image` is the plain distribution, which mmdebstrap makes as well."""
    archive_sha256: str = ""
    apt_mirror: tuple[str, str] | None = None
    """Text in the apt sources to replace, and its replacement."""

    @cached_property
    def wherever(self) -> str:
        """The canonical JSON without where it came from.

        A mirror of apt's serves the same packages, and mmdebstrap installs them into the same
        distribution.
        """
        return self.canonical_with("apt_mirror", "source", "can_bootstrap")


class ReqsFile(Frozen):
    """A file of ``reqs/`` that enters the build, with the hash that puts it into the key."""

    name: str
    sha256: str


class SourceSpec(Frozen):
    """Which source a package is compiled from, and where it comes from."""

    kind: SourceKind
    location: str
    """A repository, a tarball (URL or path), a source package, or a folder of this machine."""
    ref: str = ""
    """Of a repository: the tag, or the commit that a branch stood at."""
    sha256: str = ""
    """Of a tarball, or of all that git tracks in the folder."""

    @property
    def public_location(self) -> str:
        """Where it lies, without what may be secret: a login, and of a tarball's URL its query."""
        clean = without_login(self.location)
        return re.split("[?#]", clean)[0] if self.kind == "archive" and "://" in clean else clean

    @property
    def is_remote(self) -> bool:
        """Whether it is not on this machine."""
        return self.kind in {"git", "apt"} or "://" in self.location

    @property
    def tarball(self) -> str:
        """The name of the file in which a bundle has it."""
        return f"{_digest(self.canonical)[:16]}.tar.gz"

    @model_serializer(mode="wrap")
    def _by_content(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out where it lies if it is known by its hash, and a login that is in the URL."""
        content: dict[str, Any] = serialize(self)
        return content | {"location": "" if self.sha256 else self.public_location}

    @cached_property
    def canonical(self) -> str:
        """As for every value, by what the serializer makes of it."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


class ToolchainSpec(Frozen):
    """What compiles: CUDA, the host compiler, and the tools that the torch release builds with."""

    base: BaseSpec
    cuda: str
    cuda_source: Literal["image", "apt", "wheels"]
    gcc: str
    python: str
    python_from_distribution: bool
    tools: ReqsFile
    """Build tools of the torch release's era, each pinned with its hashes."""
    libraries: tuple[str, ...]
    """cuDNN and the like from the package index, as pip pins; headers and libraries are in them."""
    blas: Literal["", "mkl", "openblas"]
    """What torch is linked to; empty where only torchvision is compiled."""

    @cached_property
    def wherever(self) -> str:
        """The canonical JSON without where its base came from."""
        return self.canonical_with(base=self.base.wherever)


class MagmaSpec(Frozen):
    """The MAGMA that torch links: the distribution's, or compiled for the wanted architectures."""

    source: SourceSpec
    version: str
    patches: tuple[str, ...] = ()
    """What this release needs for this CUDA and torch: words of ``sed -i``."""

    @property
    def is_compiled(self) -> bool:
        """Whether it is compiled here, and not the distribution's package."""
        return self.source.kind != "apt"


class WheelSpec(Frozen):
    """One compiled wheel: everything that shapes it. `key` is its name in the wheel store."""

    package: Literal["torch", "torchvision"]
    version: str
    """With the local part that tells it from the official wheel's: ``2.6.0+cu124``."""
    source: SourceSpec
    toolchain: ToolchainSpec
    arches: tuple[Arch, ...]
    flags: tuple[tuple[str, str], ...]
    """Environment of the build, sorted: what PyTorch's and torchvision's own setup read."""
    requires: tuple[str, ...]
    """Packages with the CUDA libraries it runs on, as pip pins."""
    magma: MagmaSpec | None = None
    torch: str = ""
    """Of torchvision: the version of the torch it is linked to."""
    torch_key: str = ""
    """Of torchvision: the key of that torch, if it is compiled."""
    recipe: str
    """Hash of the stages that compile."""
    magma_reason: str = Field(default="", exclude=True)
    """Of torch: why there is this MAGMA, or none. Not in the key."""

    @property
    def sources(self) -> tuple[SourceSpec, ...]:
        """What is compiled for it: its own source, and MAGMA's if that is no package."""
        magma = self.magma and self.magma.is_compiled and self.magma.source
        return (self.source, magma) if magma else (self.source,)

    @property
    def arch_list(self) -> str:
        """``TORCH_CUDA_ARCH_LIST``."""
        return ";".join(map(str, self.arches))

    @property
    def variant(self) -> str:
        """The readable name: ``torch-2.6.0-cu124-sm86-py313-trixie``."""
        version = self.version.replace("+", "-")
        python = "py" + self.toolchain.python.replace(".", "")
        codename = self.toolchain.base.codename
        return f"{self.package}-{version}-{sm(self.arches)}-{python}-{codename}"

    @cached_property
    def key(self) -> str:
        """Sha256 of the canonical JSON of everything that shapes the wheel.

        Where its base came from does not.
        """
        return _digest(self.canonical_with(toolchain=self.toolchain.wherever))


class TorchSpec(Frozen):
    """torch and torchvision for one CUDA version: official wheels, or compiled ones."""

    version: str
    vision: str
    cuda: str
    index: str
    """PyTorch's index of the wheels of that CUDA version; empty where PyPI has them."""
    constraints: tuple[str, ...] = ()
    """What must hold of other packages beside them, as pip constraints."""
    torch_wheel: WheelSpec | None = None
    vision_wheel: WheelSpec | None = None

    @property
    def pins(self) -> tuple[str, str]:
        """The two packages as pip requirements."""
        torch = self.torch_wheel.version if self.torch_wheel else self.version
        vision = self.vision_wheel.version if self.vision_wheel else self.vision
        return f"torch=={torch}", f"torchvision=={vision}"

    @cached_property
    def canonical(self) -> str:
        """The canonical JSON, in which a compiled wheel is there by its key."""
        keys = {}
        if self.torch_wheel:
            keys["torch_wheel"] = f'"{self.torch_wheel.key}"'
        if self.vision_wheel:
            keys["vision_wheel"] = f'"{self.vision_wheel.key}"'
        return self.canonical_with(**keys)

    @property
    def compiled(self) -> tuple[WheelSpec, ...]:
        """The wheels that are compiled, in the order in which one needs the other."""
        return tuple(wheel for wheel in (self.torch_wheel, self.vision_wheel) if wheel)


class Package(Frozen):
    """One file of a Python package, by which an installer knows that it is the one."""

    name: str
    version: str
    file: str
    """Its name on an index, or of a file of ``reqs/`` its path, as ``./name.whl``."""
    sha256: str


class Locked(Frozen):
    """What a locked build is held to. `pipeline.lock` makes it of ``cresset.lock``."""

    bases: tuple[tuple[str, str], ...] = ()
    """Each base by its name in the lock, and its digest."""
    torch: tuple[Package, ...] = ()
    """What torch and torchvision bring along, themselves included unless they are compiled."""
    pip: tuple[Package, ...] = ()
    """What reqs/pip-train adds to it."""
    apt: tuple[tuple[str, str], ...] = ()
    """Every package of the distribution that is in the image, and its version."""

    def digest(self, base: str) -> str:
        """Return the digest of a base by its name in the lock, empty if it has none."""
        return dict(self.bases).get(base, "")


class ImageSpec(Frozen):
    """One image: everything that shapes it and nothing that does not."""

    target: Target
    base: BaseSpec
    python: str
    python_from_distribution: bool
    torch: TorchSpec | None
    """None where there is none, or where it is the base's own."""
    ngc: str = ""
    """Of the target ngc: the year and month of NVIDIA's image, as ``25.09``."""
    arches: tuple[Arch, ...] = ()
    """Compute capabilities asked for; of wheels, which carry what they carry, a condition."""
    mkl: bool
    timezone: str
    project_root: str
    shell: tuple[str, ...]
    """Packages of the lowest layer, which every image has."""
    apt: tuple[str, ...]
    pip: tuple[ReqsFile, ...]
    """The pip requirements file first, then the files it includes."""
    compression: Compression
    recipe: str
    """Hash of the stages' own source, so that a new Cresset never passes off an old image."""
    platform: Literal["linux/amd64"] = PLATFORM
    lock: Locked | None = None
    """What the build is held to; None: what the registry, the index and the mirror have."""

    @property
    def compiled(self) -> tuple[WheelSpec, ...]:
        """The wheels that are compiled for it, in the order in which one needs the other."""
        return self.torch.compiled if self.torch else ()

    @cached_property
    def variant(self) -> str:
        """The readable name: tag stem, test id and what ``--only`` matches."""
        torch = self.torch
        return variant(
            self.target + self.ngc,
            self.python,
            self.base.codename,
            torch.version if torch else "",
            torch.cuda if torch else "",
            self.compiled[0].arches if self.compiled else (),
        )

    @cached_property
    def key(self) -> str:
        """Sha256 of the canonical JSON of everything that shapes the image.

        A compiled wheel is in it by its own key.
        """
        # The wheels hold the same code whichever GPU they are wanted for.
        unlocked = ("lock",) if self.lock is None else ()
        return _digest(self.canonical_with("arches", *unlocked))


def variant(
    target: str, python: str, codename: str, torch: str, cuda: str, arches: Sequence[Arch]
) -> str:
    """Return the readable name of an image; `torch` is empty without one, `arches` by wheels."""
    parts = [] if target == "train" else [target]
    parts.append("py" + python.replace(".", ""))
    if torch:
        parts += [f"torch{torch}", "cu" + "".join(cuda.split(".")[:2])]
        parts += [sm(arches)] if arches else []
    return "-".join([*parts, codename])


def code_arches(names: Sequence[str]) -> list[Arch]:
    """Return the architectures of GPU code as cuobjdump names it: ``sm_86``, ``compute_120``."""
    matches = (re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name) for name in names)
    return [
        Arch.parse(f"{m[2]}.{m[3]}{m[4]}{'+PTX' if m[1] == 'compute' else ''}")
        for m in matches
        if m
    ]


def without_login(url: str) -> str:
    """Return a URL without the user and the password in it."""
    return re.sub(r"(?<=://)[^/]*@", "", url)


def sm(arches: Sequence[Arch]) -> str:
    """Return architectures as a part of a tag: ``sm75-86ptx``."""
    return "sm" + "-".join(
        f"{arch.major}{arch.minor}{arch.suffix}{'ptx' if arch.ptx else ''}" for arch in arches
    )


def _digest(canonical: str) -> str:
    return hashlib.sha256(canonical.encode()).hexdigest()
