"""What compiling torch takes beside CUDA and a host compiler: build tools, libraries and MAGMA.

As in `lookup`, each returns the answer or the `Problem` of not having one, and what no row speaks
of is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Final, Literal

from pipeline.compat import lookup, rules, tables
from pipeline.compat.lookup import minor, nearest
from pipeline.compat.tables import Distribution, MagmaRelease, TorchRelease, numbers
from pipeline.errors import Problem
from pipeline.spec import Arch, SourceSpec

MagmaKind = Literal["off", "apt", "archive", "git"]

MAGMA_ARCHIVE: Final = "https://icl.utk.edu/projectsfiles/magma/downloads/magma-{version}.tar.gz"
_MAGMA: Final = "https://github.com/icl-utk-edu/magma/issues/7"
_COMPRESS_MODE: Final = (12, 8)


@dataclass(frozen=True, slots=True, eq=False)
class Libraries:
    """Packages of the index, as pip requirements: what torch runs with, and is compiled against."""

    runtime: tuple[str, ...]
    build: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MagmaChoice:
    """Which MAGMA torch gets, and why."""

    kind: MagmaKind
    version: str
    reason: str
    patches: tuple[str, ...] = ()
    """Words of ``sed -i``: an expression and the file it changes."""
    sha256: str = ""
    """Of the tarball that `MAGMA_ARCHIVE` names."""


def no_arches() -> Problem:
    """Return the problem of compiling for no GPU in particular."""
    return Problem(
        "CCA",
        "",
        "compiling needs the GPUs to compile for: the build has none to ask, and what PyTorch "
        "takes instead is not known to every CUDA",
        allowed="compute capabilities as 8.6, 9.0a or 8.6+PTX, or auto for those of this machine",
        next_step="set CCA=auto, or CCA to the capability of the GPU that will run the image",
        source="https://github.com/pytorch/pytorch/issues/121099",
    )


def extra_arches(torch: str, arches: Sequence[Arch]) -> tuple[Arch, ...]:
    """Return for which architectures besides this torch compiles a few of its files, by itself."""
    return tuple(
        more
        for row in tables.extras()
        if any(arch.number == row.arch for arch in arches) and numbers(row.since) <= numbers(torch)
        for more in row.adds
    )


def compress_mode(cuda: str) -> bool:
    """Say whether nvcc takes ``-compress-mode=size``.

    12.4 has no such flag, and upstream uses it from 12.8 on
    (https://github.com/pytorch/pytorch/pull/157791).
    """
    return numbers(minor(cuda)) >= _COMPRESS_MODE


def apt_source(dist: Distribution, package: str, version: str) -> SourceSpec | Problem:
    """Return the distribution's source package, ``pytorch`` or ``pytorch-vision``."""
    packaged = dist.sources.get(package, "")
    if _upstream(packaged) == version:
        return SourceSpec(kind="apt", location=package, ref=packaged)
    part = "VISION" if "vision" in package else "TORCH"
    known = [it for it in lookup.distributions() if package in it.sources]
    return Problem(
        f"{part}_SOURCE",
        "apt",
        f"no source package {package} {version} of {dist} is known to compile for CUDA",
        allowed=", ".join(f"{it} with {_upstream(it.sources[package])}" for it in known),
        next_step=_instead(part, dist, _upstream(packaged)),
        source=dist.page("libtorch-dev"),
    )


def _upstream(version: str) -> str:
    """Return ``2.6.0`` of ``2.6.0+dfsg-7``: what a source package is made of."""
    return re.split(r"[+-]", version, maxsplit=1)[0]


def _instead(part: str, dist: Distribution, packaged: str) -> str:
    if not packaged:
        return f"set {part}_SOURCE=git, or one of those"
    tag = "PYTORCH_VERSION_TAG" if part == "TORCH" else "TORCHVISION_VERSION_TAG"
    return f"set {tag}=v{packaged}, which {dist} has, or {part}_SOURCE=git"


# Libraries


def libraries(torch: TorchRelease, cuda: str, arches: Sequence[Arch] = ()) -> Libraries | Problem:
    """Return the CUDA libraries that a compiled torch needs, none too new for one of `arches`."""
    release = lookup.cuda_release(cuda)
    if isinstance(release, Problem):
        return release
    newest_cudnn = rules.newest_cudnn(arches)
    found = _libraries(torch.version, release.version, newest_cudnn)
    if isinstance(found, Libraries):
        return found
    why, source = found
    known = [
        it
        for it in tables.toolkits()
        if torch.cuda.holds(it)
        and isinstance(_libraries(torch.version, it, newest_cudnn), Libraries)
    ]
    return Problem(
        "CUDA_VERSION",
        cuda,
        f"torch {torch.version} runs with libraries of the package index, and {why}",
        allowed=", ".join(known),
        next_step=f"set CUDA_VERSION={nearest(cuda, known)}",
        source=source,
    )


@cache
def _libraries(torch: str, cuda: str, newest_cudnn: str) -> Libraries | tuple[str, str]:
    """Return the libraries, or which of them is not on record and where to look it up."""
    toolkit = tables.toolkits().get(cuda)
    if toolkit is None:
        return f"no packages of the libraries of CUDA {cuda} are on record", lookup.TOOLKITS
    runtime, build = list(toolkit.runtime), []
    for library in tables.libraries():
        package = library.package.format(major=cuda.partition(".")[0])
        most = newest_cudnn if "cudnn" in package else ""
        version = library.version(torch, cuda, most)
        if not version and library.needed:
            bound = f" that runs on these GPUs ({most} or older)" if most else ""
            return f"no {package}{bound} is on record", library.source
        if version:
            pin = package + (version if version[0] in "<>~" else f"=={version}")
            runtime.append(pin)
            if library.compiled:
                build.append(pin)
    return Libraries(tuple(runtime), tuple(build))


# MAGMA


def magma(
    torch: TorchRelease,
    cuda: str,
    dist: Distribution,
    source: MagmaKind | Literal["auto"] = "auto",
    version: str = "",
    arches: Sequence[Arch] = (),
) -> MagmaChoice | Problem:
    """Return the MAGMA for this torch: `version` if one is asked for, else what suits.

    ``auto`` leaves it out where torch no longer gains from it, and otherwise prefers the
    distribution's, which is compiled, to its own.
    """
    # Asked for thousands of sets of GPUs at once, most of which lack the same.
    return _magma(
        torch, cuda, dist, source, version.removeprefix("v"), _lacking(dist, tuple(arches))
    )


@cache
def _lacking(dist: Distribution, arches: tuple[Arch, ...]) -> tuple[Arch, ...]:
    """Return for which architectures the distribution's MAGMA has no code."""
    return tuple(it for it in arches if not any(has.runs_on(it) for has in dist.magma_archs))


@cache
def _magma(
    torch: TorchRelease,
    cuda: str,
    dist: Distribution,
    source: MagmaKind | Literal["auto"],
    version: str,
    lacking: tuple[Arch, ...],
) -> MagmaChoice | Problem:
    release = lookup.cuda_release(cuda)
    if isinstance(release, Problem):
        return release
    gain = tables.magma_use(torch.version)
    if source == "off" or (source == "auto" and not gain.use and not version):
        return MagmaChoice("off", "", "MAGMA_SOURCE=off" if source == "off" else gain.reason)
    packaged = _packaged_magma(torch, release.version, dist, version, lacking)
    if source == "apt" or (source == "auto" and isinstance(packaged, MagmaChoice)):
        return packaged
    found = _magma_release(torch, release.version, version)
    if isinstance(found, Problem):
        return found
    return MagmaChoice(
        "git" if source == "git" else "archive",
        found.version,
        packaged.why if isinstance(packaged, Problem) and source == "auto" else found.reason,
        tuple(sed for since, sed in found.patches.items() if numbers(since) <= numbers(cuda)),
        found.sha256,
    )


def _packaged_magma(
    torch: TorchRelease, cuda: str, dist: Distribution, version: str, lacking: Sequence[Arch]
) -> MagmaChoice | Problem:
    """Return the distribution's MAGMA, or why it does not serve."""
    release = tables.magmas().get(dist.magma)
    if version not in {"", dist.magma}:
        why = f"not {version}"
    elif dist.cuda != cuda:
        why = f"compiled with CUDA {dist.cuda}"
    elif release is None or not release.goes_with(torch.version, cuda):
        why = f"which torch {torch.version} is not known to compile with"
    elif not dist.magma_archs:
        why = "and which GPUs that has code for is not on record"
    elif lacking:
        has = " ".join(map(str, dist.magma_archs))
        why = f"with code for {has}, none of which runs on {', '.join(map(str, lacking))}"
    else:
        return MagmaChoice("apt", dist.magma, f"{dist} packages MAGMA {dist.magma} for CUDA {cuda}")
    return Problem(
        "MAGMA_SOURCE",
        "apt",
        f"{dist} packages MAGMA {dist.magma}, {why}",
        allowed="archive, git, off",
        next_step="set MAGMA_SOURCE=archive to compile one, or off",
        source=dist.page("libmagma-dev"),
    )


def _magma_release(torch: TorchRelease, cuda: str, version: str) -> MagmaRelease | Problem:
    """Return the MAGMA that is asked for, or the newest that compiles."""
    known = tables.magmas()
    if version and version not in known:
        return replace(
            lookup.no_row("MAGMA_RELEASE", version, "MAGMA", known, _MAGMA),
            why=f"no row for MAGMA {version}; 2.8.0 and older compile for their own list of GPUs "
            "whatever is asked for, and not with CUDA 12.6 and newer",
        )
    fitting = [it for it in known.values() if it.goes_with(torch.version, cuda)]
    if not version:
        return fitting[-1]
    if known[version] in fitting:
        return known[version]
    return Problem(
        "MAGMA_RELEASE",
        version,
        f"MAGMA {version} does not go with torch {torch.version} and CUDA {cuda}: "
        f"{known[version].reason}",
        allowed=", ".join(it.version for it in fitting),
        next_step=f"set MAGMA_RELEASE={fitting[-1].version}, or leave it out",
        source=known[version].source,
    )
