"""What goes with what: checks over the tables, each refusal with its reason and source.

A check returns the problems it found. `check_wheel` and `check_source` are everything there is to
check of prebuilt wheels and of a build from source; the rest are their parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from pipeline.compat import tables
from pipeline.compat.lookup import (
    bare,
    cuda_release,
    distributions,
    known_arch,
    minor,
    nearest,
    pythons,
)
from pipeline.compat.tables import (
    ArchRow,
    CudaRelease,
    Distribution,
    TorchRelease,
    Wheel,
    numbers,
)
from pipeline.compat.toolkit import toolkit
from pipeline.errors import Problem
from pipeline.spec import Arch

DRIVERS = "https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html"
PIP_NEWS = "https://pip.pypa.io/en/stable/news/"
PIP_PYTHON = "3.10"
"""The oldest Python of the pip in ``reqs/pip-build.requirements.txt``."""
_NEW_ABI = (2, 7)
"""The first torch whose wheels have the C++ ABI that compilers use by themselves."""


@cache
def check_installer(
    dist: Distribution, python: str = "", torch: TorchRelease | None = None
) -> tuple[Problem, ...]:
    """Return why pip, at the version that Cresset pins, does not run here.

    It runs once by the distribution's python3, to install uv, and once by the image's own. Empty
    `python` is that of the distribution; `torch` narrows down which other one to take.
    """
    least = numbers(PIP_PYTHON)
    needs = f"the pinned pip needs Python {PIP_PYTHON} or newer"
    problems = []
    if numbers(dist.python) < least:
        others = [row for row in distributions() if numbers(row.python) >= least]
        alike = next((row for row in others if row.name == dist.name), others[-1])
        step = "" if alike.name == dist.name else f"LINUX_DISTRO={alike.name} and "
        problems.append(
            Problem(
                "DISTRO_VERSION",
                dist.version,
                f"{needs}, and the python3 of {dist} is {dist.python}",
                allowed=", ".join(map(str, others)),
                next_step=f"set {step}DISTRO_VERSION={alike.version}",
                source=PIP_NEWS,
            )
        )
    # An older one that is only the distribution's default goes when the distribution does.
    if python and numbers(python) < least:
        known = torch.pythons.stable if torch else pythons()
        able = [it for it in known if numbers(it) >= least]
        problems.append(
            Problem(
                "PYTHON_VERSION",
                python,
                needs,
                allowed=", ".join(able),
                next_step=f"set PYTHON_VERSION={able[0]}" if able else "take a newer torch",
                source=PIP_NEWS,
            )
        )
    return tuple(problems)


# What both ways of getting torch need


@cache
def check_pair(torch: TorchRelease, vision: str) -> Problem | None:
    """Return the problem of a torchvision that was not released for this torch.

    The pins are exact up to torchvision 0.29.0 (its wheels say ``torch==x.y.z``); compiled ones
    have no such pin but the same interfaces.
    """
    if bare(vision) in torch.pairing.visions:
        return None
    partner = [
        row.version for row in tables.torch().values() if bare(vision) in row.pairing.visions
    ]
    return Problem(
        "TORCHVISION_VERSION_TAG",
        vision,
        f"this torchvision does not go with torch {torch.version}: {torch.pairing.reason}",
        allowed=", ".join(torch.pairing.visions),
        next_step=f"set TORCHVISION_VERSION_TAG=v{torch.vision}"
        + (f", or PYTORCH_VERSION_TAG=v{partner[-1]} to keep it" if partner else ""),
        source=torch.pairing.source,
    )


@cache
def check_python(torch: TorchRelease, python: str, *, prebuilt: bool = False) -> Problem | None:
    """Return the problem of a Python that this torch does not support.

    `prebuilt` also refuses the Pythons that torch supports as experimental but has no wheels for.
    """
    wanted = minor(python)

    def supports(row: TorchRelease) -> bool:
        return wanted in row.pythons.stable or (wanted in row.pythons.preview and not prebuilt)

    if supports(torch):
        return None
    own = torch.pythons
    allowed = ", ".join(own.stable)
    if own.preview:
        allowed += f"; with BUILD_MODE=include also {', '.join(own.preview)}"
    others = [row.version for row in tables.torch().values() if supports(row)]
    return Problem(
        "PYTHON_VERSION",
        python,
        f"torch {torch.version} does not go with this Python: {own.reason}",
        allowed=allowed,
        next_step=f"set PYTHON_VERSION={nearest(wanted, own.stable)}"
        + (f", or PYTORCH_VERSION_TAG=v{nearest(torch.version, others)}" if others else ""),
        source=own.source,
    )


# Prebuilt wheels


def check_wheel(
    torch: TorchRelease,
    vision: str,
    python: str,
    cuda: str,
    arches: Sequence[Arch],
    dist: Distribution,
) -> tuple[Problem, ...]:
    """Return everything wrong with taking torch and torchvision as wheels."""
    wheel = wheel_for(torch, cuda)
    return _found(
        check_pair(torch, vision),
        check_python(torch, python, prebuilt=True),
        *([wheel] if isinstance(wheel, Problem) else check_coverage(torch, wheel, arches, dist)),
    )


def check_vision_wheel(
    torch: TorchRelease, python: str, cuda: str, arches: Sequence[Arch], dist: Distribution
) -> tuple[Problem, ...]:
    """Return why the official torchvision does not go with a torch that is compiled.

    It has to be PyPI's: an index that has it for another CUDA has that torch as well, under the
    very version of the compiled one.
    """
    wheel = torch.wheel
    problem = None
    if numbers(torch.version) < _NEW_ABI:
        problem = Problem(
            "VISION_SOURCE",
            "index",
            f"the wheels for torch {torch.version} have the C++ ABI of GCC 4, and a compiled torch "
            "has that of GCC 5 and newer: the operators would be missing",
            allowed="git, archive, apt, path",
            next_step="compile torchvision as well: leave VISION_SOURCE empty, or set one of those",
            source="https://github.com/pytorch/pytorch/issues/51039",
        )
    elif wheel.cuda != minor(cuda):
        problem = Problem(
            "VISION_SOURCE",
            "index",
            f"the torchvision on PyPI for torch {torch.version} is compiled for CUDA {wheel.cuda}, "
            f"and refuses a torch for {minor(cuda)}",
            allowed="git, archive, apt, path",
            next_step="compile torchvision as well: leave VISION_SOURCE empty, or set one of those,"
            f" or set CUDA_VERSION={wheel.cuda}",
            source=torch.prebuilt.source,
        )
    covered = () if problem else check_coverage(torch, wheel, arches, dist)
    return _found(problem, check_python(torch, python, prebuilt=True), *covered)


def companions(torch: TorchRelease) -> tuple[str, ...]:
    """Return what must hold of other packages beside these wheels, as pip constraints.

    Wheels up to 2.2 were compiled against NumPy 1 and break on 2
    (https://github.com/pytorch/pytorch/issues/107302).
    """
    return ("numpy<2",) if numbers(torch.version) < (2, 3) else ()


def wheel_for(torch: TorchRelease, cuda: str) -> Wheel | Problem:
    """Return the prebuilt wheel for the minor version of `cuda`."""
    release = cuda_release(cuda)
    if isinstance(release, Problem):
        return release
    for wheel in torch.wheels:
        if wheel.cuda == release.version:
            return wheel
    steps = [f"set CUDA_VERSION={torch.wheel.cuda}"]
    if torch.cuda.holds(release.version) and release.gcc_max:
        steps.append("BUILD_MODE=include to compile it")
    return Problem(
        "CUDA_VERSION",
        cuda,
        f"torch {torch.version} has no wheel for CUDA {release.version}: {torch.prebuilt.reason}",
        allowed=", ".join(f"{it.cuda} ({_index(it)})" for it in torch.wheels),
        next_step=", or ".join(steps),
        source=torch.prebuilt.source,
    )


def check_coverage(
    torch: TorchRelease, wheel: Wheel, arches: Sequence[Arch], dist: Distribution
) -> tuple[Problem, ...]:
    """Return the wanted capabilities that the wheel has no code for.

    ``+PTX`` asks for GPUs that do not exist yet. Those are newer than everything in the wheel, so
    PTX of any capability in it serves them, and only a wheel without PTX is a problem; GPUs
    between two capabilities exist today and are wanted by naming them.
    """
    return _found(*(_coverage(torch, wheel, arch, dist) for arch in dict.fromkeys(arches)))


@cache
def _coverage(torch: TorchRelease, wheel: Wheel, arch: Arch, dist: Distribution) -> Problem | None:
    unknown = known_arch(arch)
    if unknown:
        return unknown
    row = tables.arches()[arch.number]
    has = " ".join(map(str, wheel.archs))
    if not wheel.runs_on(arch):
        why = f"none of it runs on {row}"
        other = _wheel_that(torch, lambda it: it.runs_on(arch))
    elif arch.ptx and not any(it.ptx for it in wheel.archs):
        why = f"none of it is PTX, which GPUs newer than {row} would need"
        other = _wheel_that(torch, lambda it: it.runs_on(arch) and any(its.ptx for its in it.archs))
    else:
        return None
    steps = []
    if other:
        near, covering = other
        tag = "" if near is torch else f"PYTORCH_VERSION_TAG=v{near.version} with "
        steps.append(f"set {tag}CUDA_VERSION={covering.cuda}, the nearest wheel that does")
    if wheel.runs_on(arch):
        steps.append("take +PTX out")
    compiler = _compiled_by(torch, wheel.cuda, arch, dist)
    if compiler:
        steps.append(f"BUILD_MODE=include with {compiler} to compile for it")
    return Problem(
        "CCA",
        str(arch),
        f"the wheel of torch {torch.version} for CUDA {wheel.cuda} has code for {has}, "
        f"and {why}; {torch.prebuilt.reason}",
        allowed=has,
        next_step=", or ".join(steps) or "take it out; nothing on record serves it",
        source=torch.prebuilt.source,
    )


def _wheel_that(
    torch: TorchRelease, serves: Callable[[Wheel], bool]
) -> tuple[TorchRelease, Wheel] | None:
    """Return the nearest wheel that serves: of this release, else older, else newer."""
    releases = list(tables.torch().values())
    at = releases.index(torch)
    for release in [torch, *reversed(releases[:at]), *releases[at + 1 :]]:
        for wheel in reversed(release.wheels):
            if serves(wheel):
                return release, wheel
    return None


# Source builds


def check_source(
    torch: TorchRelease,
    vision: str,
    python: str,
    cuda: str,
    arches: Sequence[Arch],
    *,
    dist: Distribution,
) -> tuple[Problem, ...]:
    """Return everything wrong with compiling torch and torchvision."""
    release = cuda_release(cuda)
    parts: list[Problem | None] = [check_pair(torch, vision), check_python(torch, python)]
    if isinstance(release, Problem):
        parts.append(release)
    else:
        compiler = host_gcc(torch, release, dist)
        parts += [
            _cuda_window(torch, cuda),
            *(_compilable(torch, release, cuda, arch, dist) for arch in dict.fromkeys(arches)),
            compiler if isinstance(compiler, Problem) else None,
        ]
    return _found(*parts)


@cache
def host_gcc(torch: TorchRelease, cuda: CudaRelease, dist: Distribution) -> str | Problem:
    """Return the GCC to compile with: the distribution's default, or another it packages.

    nvcc refuses a host compiler newer than it knows (CUDA installation guide, "Host compiler
    support policy"), and torch has its own limits; most distributions package older ones too.
    """
    if not cuda.gcc_max:
        return Problem(
            "CUDA_VERSION",
            cuda.version,
            f"which GCC CUDA {cuda.version} works with is not on record: {cuda.reason}",
            allowed=", ".join(row.version for row in tables.cuda().values() if row.gcc_max),
            next_step="set one of those, or BUILD_MODE=exclude to take wheels",
            source=cuda.source,
        )
    fitting = _fitting(torch, cuda, dist)
    if fitting:
        return fitting[0]
    others = [str(other) for other in distributions() if _fitting(torch, cuda, other)]
    return Problem(
        "DISTRO_VERSION",
        dist.version,
        f"{dist} packages GCC {', '.join((dist.gcc, *dist.gccs))}, but torch {torch.version} needs "
        f"{torch.gcc} ({torch.gcc.reason}) and CUDA {cuda.version} takes at most {cuda.gcc_max}",
        allowed=", ".join(others),
        next_step=f"set LINUX_DISTRO and DISTRO_VERSION to {others[-1]}"
        if others
        else "set another CUDA_VERSION",
        source=torch.gcc.source,
    )


def _fitting(torch: TorchRelease, cuda: CudaRelease, dist: Distribution) -> list[str]:
    return [
        gcc
        for gcc in (dist.gcc, *dist.gccs)
        if torch.gcc.holds(gcc) and numbers(gcc) <= numbers(cuda.gcc_max)
    ]


def newest_cudnn(arches: Sequence[Arch]) -> str:
    """Return the newest cuDNN that runs on all of these GPUs; empty where nothing bounds it."""
    return min((row.cudnn_max for row in _rows(arches) if row.cudnn_max), key=numbers, default="")


@cache
def _cuda_window(torch: TorchRelease, cuda: str) -> Problem | None:
    if torch.cuda.holds(cuda):
        return None
    inside = [version for version in tables.cuda() if torch.cuda.holds(version)]
    return Problem(
        "CUDA_VERSION",
        cuda,
        f"torch {torch.version} compiles with CUDA {torch.cuda}: {torch.cuda.reason}",
        allowed=", ".join(inside),
        next_step=f"set CUDA_VERSION={nearest(cuda, inside)}",
        source=torch.cuda.source,
    )


@cache
def _compilable(
    torch: TorchRelease, cuda: CudaRelease, asked: str, arch: Arch, dist: Distribution
) -> Problem | None:
    unknown = known_arch(arch)
    if unknown:
        return unknown
    row = tables.arches()[arch.number]
    if _name(arch) not in cuda.archs:
        targets = [it.version for it in tables.cuda().values() if _name(arch) in it.archs]
        near = nearest(asked, targets)
        other = _compiled_by(torch, asked, arch, dist) or (f"CUDA_VERSION={near}" if near else "")
        return Problem(
            "CCA",
            str(arch),
            f"CUDA {asked} has no target for {row}: {cuda.reason}",
            allowed=" ".join(cuda.archs),
            next_step=_instead(torch, arch, other),
            source=cuda.source,
        )
    if not _knows_name(torch, arch):
        first = _first_torch(arch)
        newer = first and numbers(torch.version) < numbers(first)
        known = (Arch.parse(f"{it}{suffix}") for it in tables.arches() for suffix in ("", "a"))
        return Problem(
            "CCA",
            str(arch),
            f"torch {torch.version} does not know the name {_name(arch)}: {row.reason}"
            if first
            else f"no torch on record knows {_name(arch)}, with this suffix",
            allowed=" ".join(str(it) for it in known if _knows_name(torch, it)),
            next_step=_instead(torch, arch, f"PYTORCH_VERSION_TAG=v{first}" if newer else ""),
            source=row.source,
        )
    return None


def _instead(torch: TorchRelease, arch: Arch, setting: str) -> str:
    """Return the next step where a capability cannot be compiled for as it is written."""
    row = tables.arches()[arch.number]
    if row.renamed and numbers(torch.version) >= numbers(row.renamed["since"]):
        return f"write {row.renamed['to']}, its name since torch {row.renamed['since']}"
    plain = f"write {arch.number} without the {arch.suffix!r}" if arch.suffix else ""
    step = f"set {setting}" if setting else ""
    return ", or ".join(filter(None, (step, plain))) or f"take {arch} out"


def _knows_name(torch: TorchRelease, arch: Arch) -> bool:
    """Say whether this torch accepts the capability in TORCH_CUDA_ARCH_LIST."""
    renamed = tables.arches()[arch.number].renamed
    first, version = _first_torch(arch), numbers(torch.version)
    return (
        bool(first)
        and numbers(first) <= version
        and not (renamed and numbers(renamed["since"]) <= version)
    )


def _first_torch(arch: Arch) -> str:
    """Return the first torch that accepts the capability as it is written; empty for none."""
    row = tables.arches()[arch.number]
    return {"": row.torch, "a": row.torch_a, "f": ""}[arch.suffix]


def _compiled_by(torch: TorchRelease, wanted: str, arch: Arch, dist: Distribution) -> str:
    """Return the settings that compile for `arch`, on this distribution if any does; else nothing.

    Upstream tests the CUDA versions that it builds wheels for, so the nearest of those goes first.
    Of others the oldest is nearest to what it tested.
    """
    if not _knows_name(torch, arch):
        return ""
    able = [
        row.version
        for row in tables.cuda().values()
        if torch.cuda.holds(row.version) and row.gcc_max and _name(arch) in row.archs
    ]
    for on in (dist, *reversed(distributions())):
        here = [version for version in able if _has_compilers(torch, version, on)]
        tested = [version for version in here if any(it.cuda == version for it in torch.wheels)]
        if here:
            cuda = f"CUDA_VERSION={nearest(wanted, tested) if tested else here[0]}"
            there = f", LINUX_DISTRO={on.name} and DISTRO_VERSION={on.version}"
            return cuda if on == dist else cuda + there
    return ""


def _has_compilers(torch: TorchRelease, cuda: str, dist: Distribution) -> bool:
    """Say whether a distribution has both compilers of this CUDA, and a Python that pip runs on."""
    return (
        not isinstance(toolkit(dist, cuda), Problem)
        and bool(_fitting(torch, tables.cuda()[cuda], dist))
        and numbers(dist.python) >= numbers(PIP_PYTHON)
    )


# The machine and the base image


def check_driver(cuda: str, driver: str, *, ptx: bool = False) -> Problem | None:
    """Return the problem of running what was built for `cuda` on this NVIDIA driver.

    Within a major version of CUDA an older driver will do, down to a floor; only code that is
    compiled from PTX on the machine (`ptx`) needs the toolkit's own driver (minor version
    compatibility, CUDA compatibility guide).
    """
    release = cuda_release(cuda)
    if isinstance(release, Problem):
        return release
    if _drives(release, driver, ptx=ptx):
        return None
    least = release.driver if ptx else release.driver_min
    kind = "PTX of CUDA" if ptx else "CUDA"
    fits = [row.version for row in tables.cuda().values() if _drives(row, driver, ptx=ptx)]
    return Problem(
        "CUDA_VERSION",
        cuda,
        f"{kind} {release.version} needs driver {least} or newer and this machine has {driver}"
        if least
        else f"which driver compiles the {kind} {release.version} is not on record",
        allowed=", ".join(fits) or "none with this driver",
        next_step=(f"set CUDA_VERSION={fits[-1]}" if fits else "")
        + (" or " if fits and least else "")
        + (f"update the driver to {least}" if least else ""),
        source=DRIVERS,
    )


def least_driver(cuda: str) -> str:
    """Return the oldest NVIDIA driver that runs what was built for `cuda`, empty if unknown."""
    release = cuda_release(cuda)
    return "" if isinstance(release, Problem) else release.driver_min


def _drives(cuda: CudaRelease, driver: str, *, ptx: bool) -> bool:
    least = cuda.driver if ptx else cuda.driver_min
    return bool(least) and numbers(driver) >= numbers(least)


def check_bootstrap(dist: Distribution) -> Problem | None:
    """Return the problem of a distribution that BASE_SOURCE=bootstrap does not make."""
    if dist.bootstrap:
        return None
    return Problem(
        "LINUX_DISTRO",
        dist.name,
        f"{dist} is not bootstrapped: {dist.reason}",
        allowed=", ".join(str(row) for row in distributions() if row.bootstrap),
        next_step="set BASE_SOURCE=image or archive, or one of those",
        source=dist.source,
    )


# Helpers


def _found(*problems: Problem | None) -> tuple[Problem, ...]:
    return tuple(problem for problem in problems if problem)


def _name(arch: Arch) -> str:
    return f"{arch.number}{arch.suffix}"


def _index(wheel: Wheel) -> str:
    return wheel.index_url or "PyPI"


def _rows(arches: Sequence[Arch]) -> list[ArchRow]:
    return [tables.arches()[it.number] for it in arches if it.number in tables.arches()]
