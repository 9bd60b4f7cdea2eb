"""The compatibility tables as frozen values, each TOML file read once a process.

Plain dataclasses, not pydantic: the files are our own and tests hold them to their form, so there
is nothing to validate on each of the commands that read them. The rows that rules are asked about
are equal only to themselves, so that an answer is found again without reading a row.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pipeline.spec import Arch

_FOLDER = Path(__file__).parent


@cache
def numbers(version: str) -> tuple[int, ...]:
    """Return ``(2, 6, 0)`` for ``2.6.0``, and ``()`` for what is no plain version.

    The tables hold nothing else, and packaging.version would cost more than all of the checks.
    """
    parts = version.split(".")
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else ()


@dataclass(frozen=True, slots=True)
class Window:
    """The versions of a tool that a torch release compiles with; an empty `max` is no bound."""

    min: str
    max: str
    reason: str
    source: str

    def holds(self, version: str) -> bool:
        """Say whether `version` is inside, compared as far as the shorter one goes.

        A `max` of 12.3 includes 12.3.2, and cuDNN 8 as a wish is inside where 8.5 is.
        """
        it, least, most = numbers(version), numbers(self.min), numbers(self.max)
        return least[: len(it)] <= it and (not most or it[: len(most)] <= most)

    def __str__(self) -> str:
        if self.min == self.max:
            return self.min
        return f"{self.min} to {self.max}" if self.max else f"{self.min} or newer"


@dataclass(frozen=True, slots=True)
class Wheel:
    """The official x86-64 wheel of a torch release for one CUDA version."""

    cuda: str
    archs: tuple[Arch, ...]
    index: Literal["pypi", "pytorch"]

    @property
    def index_url(self) -> str:
        """The index that serves the wheel; empty for PyPI and its mirrors."""
        if self.index == "pypi":
            return ""
        return f"https://download.pytorch.org/whl/cu{self.cuda.replace('.', '')}"

    def runs_on(self, device: Arch) -> bool:
        """Say whether the wheel has code for a GPU of capability `device`."""
        return any(arch.runs_on(device) for arch in self.archs)


@dataclass(frozen=True, slots=True)
class Pairing:
    """The torchvision releases that go with a torch release, oldest first."""

    visions: tuple[str, ...]
    reason: str
    source: str


@dataclass(frozen=True, slots=True)
class Pythons:
    """The Pythons of a torch release; `preview` compiles but lacks a wheel of torch or vision."""

    stable: tuple[str, ...]
    preview: tuple[str, ...]
    reason: str
    source: str


@dataclass(frozen=True, slots=True)
class Wheels:
    """The official wheels of a torch release, oldest CUDA first."""

    wheels: tuple[Wheel, ...]
    reason: str
    source: str


@dataclass(frozen=True, slots=True, eq=False)
class TorchRelease:
    """A release of PyTorch and what goes with it."""

    version: str
    pairing: Pairing
    pythons: Pythons
    prebuilt: Wheels
    cuda: Window
    gcc: Window
    cudnn: Window
    tools: str
    """The file of ``reqs/`` with what it builds with."""

    @property
    def vision(self) -> str:
        """The newest torchvision that pairs with it."""
        return self.pairing.visions[-1]

    @property
    def wheels(self) -> tuple[Wheel, ...]:
        """The official wheels, oldest CUDA first."""
        return self.prebuilt.wheels

    @property
    def wheel(self) -> Wheel:
        """The wheel that PyPI serves."""
        return next(wheel for wheel in self.wheels if wheel.index == "pypi")


@dataclass(frozen=True, slots=True, eq=False)
class CudaRelease:
    """A minor release of the CUDA toolkit; an empty field is not on record."""

    version: str
    archs: tuple[str, ...]
    driver_min: str
    reason: str
    source: str
    driver: str = ""
    gcc_max: str = ""
    patch: str = ""
    ubuntu: tuple[str, ...] = ()
    cudnn: str = ""
    cudnn_tag: str = ""
    cudnn_since: str = ""


@dataclass(frozen=True, slots=True)
class ArchRow:
    """A compute capability: what people call it and which torch knows its name."""

    number: str
    generation: str
    gpus: str
    torch: str
    reason: str
    source: str
    torch_a: str = ""
    renamed: Mapping[str, str] | None = None
    cudnn_max: str = ""

    def __str__(self) -> str:
        return f"{self.number} ({self.generation}: {self.gpus})"


@dataclass(frozen=True, slots=True)
class NameRow:
    """A word that TORCH_CUDA_ARCH_LIST accepts in place of numbers."""

    name: str
    archs: tuple[Arch, ...]
    reason: str
    source: str


@dataclass(frozen=True, slots=True)
class ExtraRow:
    """Architectures that torch adds in a few files where another one is asked for."""

    arch: str
    since: str
    adds: tuple[Arch, ...]
    reason: str
    source: str


@dataclass(frozen=True, slots=True, eq=False)
class Distribution:
    """A release of a Linux distribution that an image can stand on."""

    name: str
    version: str
    codename: str
    image: str
    python: str
    gcc: str
    gccs: tuple[str, ...]
    bootstrap: bool
    reason: str
    source: str
    cuda_tag: str = ""
    cuda: str = ""
    magma: str = ""
    magma_archs: tuple[Arch, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    """Versions of source packages by their names."""

    def page(self, package: str) -> str:
        """Return where the distribution describes a package."""
        return f"{self.source.rpartition('/')[0]}/{package}"

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, slots=True)
class NgcMonths:
    """The months, as ``25.09``, whose PyTorch image of NVIDIA's stands on one distribution."""

    first: str
    last: str
    distribution: str
    version: str
    reason: str
    source: str

    def __str__(self) -> str:
        return f"{self.first} to {self.last}"


@dataclass(frozen=True, slots=True)
class Toolkit:
    """The parts of a CUDA release as pip pins: what runs, and from 13 on what compiles."""

    cuda: str
    runtime: tuple[str, ...]
    compiler: tuple[str, ...]
    reason: str
    source: str


@dataclass(frozen=True, slots=True)
class Library:
    """A library released apart from CUDA; `versions` by torch release and then by CUDA."""

    package: str
    versions: Mapping[str, Mapping[str, str]]
    reason: str
    source: str
    compiled: bool = False
    needed: bool = False

    def version(self, torch: str, cuda: str, most: str = "") -> str:
        """Return the version for these two, `most` or older; empty where none is on record."""
        rows = [row for since, row in self.versions.items() if numbers(since) <= numbers(torch)]
        major = cuda.partition(".")[0]
        same = [it for it in (rows[-1] if rows else {}).items() if _major(it[0]) in {major, "any"}]
        begun = [version for since, version in same if numbers(since) <= numbers(cuda)]
        fit = [it for it in begun or [it for _, it in same[:1]] if not _newer(it, most)]
        return fit[-1] if fit else ""


@dataclass(frozen=True, slots=True)
class MagmaRelease:
    """A release of MAGMA that compiles; an empty `torch_min` is no bound."""

    version: str
    cuda_min: str
    sha256: str
    reason: str
    source: str
    torch_min: str = ""
    patches: Mapping[str, str] = field(default_factory=dict)
    """By the CUDA release from which it needs one: words of ``sed -i``."""

    def goes_with(self, torch: str, cuda: str) -> bool:
        """Say whether it compiles with this CUDA, and this torch with it."""
        return not (_newer(self.torch_min, torch) or _newer(self.cuda_min, cuda))


@dataclass(frozen=True, slots=True)
class MagmaUse:
    """Whether a torch release still gains from MAGMA."""

    use: bool
    reason: str
    source: str


@cache
def torch() -> Mapping[str, TorchRelease]:
    """Return the torch releases by version, oldest first."""
    rows = _read("torch")["release"]
    return {
        version: _torch_release(version, visions, row)
        for row in rows
        for version, visions in row["visions"].items()
    }


def _torch_release(version: str, visions: str, row: Mapping[str, Any]) -> TorchRelease:
    table = _read("torch")
    cuda, gcc, cudnn = (
        Window(**{"max": "", **_since(table[it], version)}) for it in ("cuda", "gcc", "cudnn")
    )
    return TorchRelease(
        version,
        Pairing(tuple(visions.split()), row["reason"], row["source"]),
        Pythons(**_split(_since(table["python"], version), "stable", "preview")),
        _wheels(_since(table["wheels"], version)),
        cuda,
        gcc,
        cudnn,
        _since(table["build"], version)["tools"],
    )


@cache
def cuda() -> Mapping[str, CudaRelease]:
    """Return the CUDA releases by their minor version, oldest first."""
    return {
        row["version"]: CudaRelease(**_split(row, "archs", "ubuntu"))
        for row in _read("cuda")["cuda"]
    }


@cache
def arches() -> Mapping[str, ArchRow]:
    """Return the compute capabilities by number, oldest first."""
    return {row["number"]: ArchRow(**row) for row in _read("arch")["arch"]}


@cache
def names() -> tuple[NameRow, ...]:
    """Return the generations that TORCH_CUDA_ARCH_LIST knows by name."""
    rows = _read("arch")["name"]
    return tuple(NameRow(**{**row, "archs": _arches(row["archs"])}) for row in rows)


@cache
def extras() -> tuple[ExtraRow, ...]:
    """Return what torch compiles a few files for beside what it is asked."""
    return tuple(
        ExtraRow(**{**row, "adds": _arches(row["adds"])}) for row in _read("arch")["extra"]
    )


@cache
def distributions() -> tuple[Distribution, ...]:
    """Return the distributions, each name's releases oldest first."""
    return tuple(
        Distribution(
            **_split(row, "gccs")
            | {
                "magma_archs": _arches(row.get("magma_archs", "")),
                "sources": dict(word.split("=") for word in row.get("sources", "").split()),
            }
        )
        for row in _read("distro")["distribution"]
    )


@cache
def ngc() -> tuple[NgcMonths, ...]:
    """Return the months of NVIDIA's PyTorch images, oldest first."""
    return tuple(NgcMonths(**row) for row in _read("ngc")["ngc"])


@cache
def toolkits() -> Mapping[str, Toolkit]:
    """Return the parts of the CUDA releases by minor version, oldest first."""
    return {
        row["cuda"]: Toolkit(
            **{"compiler": (), **row}
            | {it: _pins(row["cuda"], row.get(it, "")) for it in ("runtime", "compiler")}
        )
        for row in _read("libraries")["toolkit"]
    }


@cache
def libraries() -> tuple[Library, ...]:
    """Return the libraries that are released apart from CUDA."""
    return tuple(Library(**row) for row in _read("libraries")["library"])


@cache
def magmas() -> Mapping[str, MagmaRelease]:
    """Return the MAGMA releases by version, oldest first."""
    return {row["version"]: MagmaRelease(**row) for row in _read("magma")["magma"]}


@cache
def magma_use(torch: str) -> MagmaUse:
    """Return whether MAGMA_SOURCE=auto takes MAGMA for this torch version."""
    return MagmaUse(**_since(_read("magma")["default"], torch))


@cache
def _read(name: str) -> dict[str, Any]:
    with (_FOLDER / f"{name}.toml").open("rb") as file:
        return tomllib.load(file)


def _split(row: Mapping[str, Any], *fields: str) -> dict[str, Any]:
    return {**row, **{field: tuple(row.get(field, "").split()) for field in fields}}


@cache
def _arches(text: str) -> tuple[Arch, ...]:
    return tuple(map(Arch.parse, text.split()))


def _pins(cuda: str, words: str) -> tuple[str, ...]:
    """Return parts of CUDA as pip pins; until 12 a package's name ends in the major version."""
    end = f"-cu{_major(cuda)}" if numbers(cuda) < (13,) else ""
    parts = (word.split("=") for word in words.split())
    return tuple(f"nvidia-{name}{end}=={version}" for name, version in parts)


def _major(version: str) -> str:
    return version.partition(".")[0]


def _newer(version: str, than: str) -> bool:
    """Compare two bounds, where an empty one bounds nothing."""
    return bool(version and than) and numbers(version) > numbers(than)


def _wheels(row: Mapping[str, Any]) -> Wheels:
    wheels = (Wheel(it["cuda"], _arches(it["archs"]), it["index"]) for it in row["wheels"])
    return Wheels(tuple(wheels), row["reason"], row["source"])


def _since(rows: Iterable[Mapping[str, Any]], version: str) -> dict[str, Any]:
    """Return the row that holds for this torch version, without its `since`."""
    row = [row for row in rows if numbers(row["since"]) <= numbers(version)][-1]
    return {name: value for name, value in row.items() if name != "since"}
