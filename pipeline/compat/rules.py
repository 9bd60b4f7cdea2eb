"""What goes with what: lookups and checks over the tables, each refusal with its reason and source.

A lookup returns the row or the `Problem` of not having it, a check returns the problems it found.
What no row speaks of is refused. `check_wheel` and `check_source` are everything there is to check
of prebuilt wheels and of a build from source; the rest are their parts.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence

from pipeline.compat import tables
from pipeline.compat.tables import (
    ArchRow,
    CudaRelease,
    Distribution,
    TorchRelease,
    Wheel,
    numbers,
)
from pipeline.errors import Problem
from pipeline.spec import Arch

RELEASES = "https://github.com/pytorch/pytorch/blob/main/RELEASE.md"
TOOLKITS = "https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/index.html"
DRIVERS = "https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html"
IMAGES = "https://hub.docker.com/r/nvidia/cuda"
CAPABILITIES = "https://developer.nvidia.com/cuda-gpus"
PIP_NEWS = "https://pip.pypa.io/en/stable/news/"
PIP_PYTHON = "3.10"
"""The oldest Python of the pip in ``reqs/pip-build.requirements.txt``."""
FLAVORS = ("base", "runtime", "devel")


# Lookups


def torch_release(version: str) -> TorchRelease | Problem:
    """Return the row of a torch release, given as ``2.6.0`` or as its git tag ``v2.6.0``."""
    found = tables.torch().get(_bare(version))
    return found or no_row("PYTORCH_VERSION_TAG", version, "torch", tables.torch(), RELEASES)


def newest_torch() -> TorchRelease:
    """Return the newest torch release on record."""
    return list(tables.torch().values())[-1]


def distributions() -> tuple[Distribution, ...]:
    """Return every distribution on record, each name's releases oldest first."""
    return tables.distributions()


def distribution(name: str, version: str = "") -> Distribution | Problem:
    """Return a distribution by name and version or codename; without a version its newest."""
    named = [row for row in distributions() if row.name == name.lower()]
    if not named:
        known = dict.fromkeys(row.name for row in distributions())
        return no_row("LINUX_DISTRO", name, "distribution", known, distributions()[0].source)
    if not version:
        return named[-1]
    found = next((row for row in named if version.lower() in (row.version, row.codename)), None)
    known = dict.fromkeys(row.version for row in named)
    return found or no_row("DISTRO_VERSION", version, name, known, named[-1].source)


def cuda_release(version: str) -> CudaRelease | Problem:
    """Return the row of a CUDA release, given as ``12.4`` or ``12.4.1``."""
    found = tables.cuda().get(minor(version))
    return found or no_row("CUDA_VERSION", version, "CUDA", tables.cuda(), TOOLKITS)


def known_arch(arch: Arch) -> Problem | None:
    """Return the problem of a compute capability that no row speaks of."""
    if arch.number in tables.arches():
        return None
    return no_row("CCA", str(arch), "compute capability", tables.arches(), CAPABILITIES)


def named_archs() -> Mapping[str, tuple[Arch, ...]]:
    """Return what TORCH_CUDA_ARCH_LIST makes of ``ampere`` and the like, by lower-case name."""
    return {row.name.lower(): row.archs for row in tables.names()}


def known_python(version: str) -> Problem | None:
    """Return the problem of a Python that neither a distribution nor a torch on record has."""
    if version in (known := _pythons()):
        return None
    return no_row(
        "PYTHON_VERSION", version, "Python", known, "https://devguide.python.org/versions/"
    )


def _pythons() -> list[str]:
    known = {row.python for row in distributions()}
    for release in tables.torch().values():
        known.update(release.pythons.stable, release.pythons.preview)
    return sorted(known, key=numbers)


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
        known = torch.pythons.stable if torch else _pythons()
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


def check_pair(torch: TorchRelease, vision: str) -> Problem | None:
    """Return the problem of a torchvision that was not released for this torch.

    The pins are exact up to torchvision 0.29.0 (its wheels say ``torch==x.y.z``); compiled ones
    have no such pin but the same interfaces.
    """
    if _bare(vision) in torch.pairing.visions:
        return None
    partner = [
        row.version for row in tables.torch().values() if _bare(vision) in row.pairing.visions
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
    torch: TorchRelease, vision: str, python: str, cuda: str, arches: Sequence[Arch]
) -> tuple[Problem, ...]:
    """Return everything wrong with taking torch and torchvision as wheels."""
    wheel = wheel_for(torch, cuda)
    return _found(
        check_pair(torch, vision),
        check_python(torch, python, prebuilt=True),
        *([wheel] if isinstance(wheel, Problem) else check_coverage(torch, wheel, arches)),
    )


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
    torch: TorchRelease, wheel: Wheel, arches: Sequence[Arch]
) -> tuple[Problem, ...]:
    """Return the wanted capabilities that the wheel has no code for.

    ``+PTX`` asks for GPUs that do not exist yet. Those are newer than everything in the wheel, so
    PTX of any capability in it serves them, and only a wheel without PTX is a problem; GPUs
    between two capabilities exist today and are wanted by naming them.
    """
    return _found(*(_coverage(torch, wheel, arch) for arch in dict.fromkeys(arches)))


def _coverage(torch: TorchRelease, wheel: Wheel, arch: Arch) -> Problem | None:
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
    compiler = _cuda_that_compiles(torch, wheel.cuda, arch)
    if compiler:
        steps.append(f"BUILD_MODE=include with CUDA_VERSION={compiler} to compile for it")
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
    cudnn: str = "",
) -> tuple[Problem, ...]:
    """Return everything wrong with compiling torch and torchvision; `cudnn` where it is known."""
    release = cuda_release(cuda)
    parts: list[Problem | None] = [check_pair(torch, vision), check_python(torch, python)]
    if isinstance(release, Problem):
        parts.append(release)
    else:
        compiler = host_gcc(torch, release, dist)
        parts += [
            _cuda_window(torch, cuda),
            *(_compilable(torch, release, cuda, arch) for arch in dict.fromkeys(arches)),
            compiler if isinstance(compiler, Problem) else None,
        ]
    if cudnn:
        parts += check_cudnn(torch, cudnn, arches)
    return _found(*parts)


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


def check_cudnn(torch: TorchRelease, cudnn: str, arches: Sequence[Arch]) -> tuple[Problem, ...]:
    """Return why this cuDNN cannot be compiled with, or does not run on a wanted GPU."""
    problems = []
    if not torch.cudnn.holds(cudnn):
        problems.append(
            Problem(
                "CUDNN_VERSION",
                cudnn,
                f"torch {torch.version} compiles with cuDNN {torch.cudnn}: {torch.cudnn.reason}",
                allowed=str(torch.cudnn),
                next_step="set CUDNN_VERSION inside it, or a CUDA_VERSION whose images hold one",
                source=torch.cudnn.source,
            )
        )
    newest = newest_cudnn(arches)
    if newest and numbers(cudnn) > numbers(newest):
        row = next(row for row in _rows(arches) if row.cudnn_max == newest)
        problems.append(
            Problem(
                "CUDNN_VERSION",
                cudnn,
                f"this cuDNN does not run on {row}: {row.reason}",
                allowed=f"{newest} or older",
                next_step=f"set CUDNN_VERSION={newest}",
                source=row.source,
            )
        )
    return tuple(problems)


def newest_cudnn(arches: Sequence[Arch]) -> str:
    """Return the newest cuDNN that runs on all of these GPUs; empty where nothing bounds it."""
    return min((row.cudnn_max for row in _rows(arches) if row.cudnn_max), key=numbers, default="")


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


def _compilable(torch: TorchRelease, cuda: CudaRelease, asked: str, arch: Arch) -> Problem | None:
    unknown = known_arch(arch)
    if unknown:
        return unknown
    row = tables.arches()[arch.number]
    if _name(arch) not in cuda.archs:
        targets = [it.version for it in tables.cuda().values() if _name(arch) in it.archs]
        other = _cuda_that_compiles(torch, asked, arch) or nearest(asked, targets)
        return Problem(
            "CCA",
            str(arch),
            f"CUDA {asked} has no target for {row}: {cuda.reason}",
            allowed=" ".join(cuda.archs),
            next_step=_instead(torch, arch, f"CUDA_VERSION={other}" if other else ""),
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


def _cuda_that_compiles(torch: TorchRelease, wanted: str, arch: Arch) -> str:
    """Return the CUDA to compile for `arch` with, near the wanted one if upstream tests it.

    Upstream tests those it builds wheels for. Of others the oldest is nearest to what it tested.
    """
    if not _knows_name(torch, arch):
        return ""
    able = [
        row.version
        for row in tables.cuda().values()
        if torch.cuda.holds(row.version) and row.gcc_max and _name(arch) in row.archs
    ]
    tested = [version for version in able if any(it.cuda == version for it in torch.wheels)]
    return nearest(wanted, tested) if tested else next(iter(able), "")


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


def _drives(cuda: CudaRelease, driver: str, *, ptx: bool) -> bool:
    least = cuda.driver if ptx else cuda.driver_min
    return bool(least) and numbers(driver) >= numbers(least)


def nvidia_image(cuda: str, cudnn: str, flavor: str, dist: Distribution) -> str | Problem:
    """Return the nvidia/cuda reference, as ``nvidia/cuda:12.4.1-cudnn-devel-ubuntu22.04``.

    An empty `cudnn` takes the one NVIDIA put into that image; `base` images have none. A `cuda`
    without patch takes the newest on record. Tags are ``X.Y.Z[-cudnn*]-flavor-ubuntuNN.NN``, where
    the middle part has changed twice (Docker Hub, nvidia/cuda).
    """
    release = cuda_release(cuda)
    if isinstance(release, Problem):
        return release
    refused = _image_problem(release, cuda, cudnn, flavor, dist)
    if refused:
        return refused
    patch = cuda if cuda != release.version else release.patch
    tag = f"{release.cudnn_tag}-" if flavor != "base" else ""
    return f"nvidia/cuda:{patch}-{tag}{flavor}-{dist.cuda_tag}"


def _image_problem(
    cuda: CudaRelease, asked: str, cudnn: str, flavor: str, dist: Distribution
) -> Problem | None:
    if flavor not in FLAVORS:
        return Problem(
            "IMAGE_FLAVOR",
            flavor,
            "nvidia/cuda has no images of this flavor",
            allowed=", ".join(FLAVORS),
            next_step="set IMAGE_FLAVOR=devel to compile, runtime to run",
            source=IMAGES,
        )
    if not dist.cuda_tag:
        with_images = [row for row in distributions() if row.cuda_tag]
        return Problem(
            "LINUX_DISTRO",
            dist.name,
            f"nvidia/cuda has no images of {dist}: {dist.reason}",
            allowed=", ".join(map(str, with_images)),
            next_step=f"set LINUX_DISTRO={with_images[-1].name}, or leave IMAGE_FLAVOR empty",
            source=IMAGES,
        )
    if dist.version not in cuda.ubuntu:
        others = [row.version for row in tables.cuda().values() if dist.version in row.ubuntu]
        ubuntu = f"set DISTRO_VERSION={cuda.ubuntu[-1]}, or " if cuda.ubuntu else ""
        return Problem(
            "DISTRO_VERSION" if cuda.ubuntu else "CUDA_VERSION",
            dist.version if cuda.ubuntu else asked,
            f"no nvidia/cuda image of CUDA {cuda.version} on {dist} is on record: {cuda.reason}",
            allowed=", ".join(cuda.ubuntu or others),
            next_step=f"{ubuntu}set CUDA_VERSION={nearest(asked, others)}",
            source=IMAGES,
        )
    return _patch_problem(cuda, asked, flavor) or _image_cudnn_problem(cuda, cudnn, flavor)


def _patch_problem(cuda: CudaRelease, asked: str, flavor: str) -> Problem | None:
    if asked == cuda.version:
        patched = bool(cuda.patch)
        why = f"the tags name a patch release, and the newest of {cuda.version} is not on record"
    else:
        newest = numbers(cuda.patch)
        least = numbers(cuda.cudnn_since) if flavor != "base" else ()
        patched = least <= numbers(asked) and (not newest or numbers(asked) <= newest)
        why = f"no nvidia/cuda {flavor} image of this patch release is on record: {cuda.reason}"
    if patched:
        return None
    return Problem(
        "CUDA_VERSION",
        asked,
        why,
        allowed=f"{cuda.version}.N, at most {cuda.patch or 'what Docker Hub lists'}"
        + (f", with cuDNN at least {cuda.cudnn_since}" if cuda.cudnn_since else ""),
        next_step=f"set CUDA_VERSION={cuda.patch or cuda.version + '.0'}",
        source=IMAGES,
    )


def _image_cudnn_problem(cuda: CudaRelease, cudnn: str, flavor: str) -> Problem | None:
    if not cudnn or (flavor != "base" and cudnn == cuda.cudnn):
        return None
    if flavor == "base":
        what, steps = "they hold none", "leave CUDNN_VERSION empty, or set IMAGE_FLAVOR=runtime"
    else:
        what, steps = f"they hold {cuda.cudnn}", "leave CUDNN_VERSION empty"
        others = [row.version for row in tables.cuda().values() if row.cudnn == cudnn]
        if others:
            steps += f", or set CUDA_VERSION={nearest(cuda.version, others)}"
    return Problem(
        "CUDNN_VERSION",
        cudnn,
        f"no nvidia/cuda {flavor} image of CUDA {cuda.version} has this cuDNN: {what}",
        allowed="(empty)" if flavor == "base" else f"{cuda.cudnn}, or empty",
        next_step=steps,
        source=IMAGES,
    )


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


def _bare(tag: str) -> str:
    return tag.removeprefix("v")


def minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _name(arch: Arch) -> str:
    return f"{arch.number}{arch.suffix}"


def _index(wheel: Wheel) -> str:
    return wheel.index_url or "PyPI"


def _rows(arches: Sequence[Arch]) -> list[ArchRow]:
    return [tables.arches()[it.number] for it in arches if it.number in tables.arches()]


def nearest(wanted: str, known: Iterable[str]) -> str:
    """Return the known version to take instead; of words the closest in spelling, or nothing.

    That is one which `wanted` begins, else the newest that is older, else the oldest. The tables
    are in that order.
    """
    names, want = list(known), numbers(_bare(wanted))
    if not (want and names and all(map(numbers, names))):
        return next(iter(difflib.get_close_matches(wanted, names, 1, 0.5)), "")
    alike = [name for name in names if numbers(name)[: len(want)] == want]
    older = [name for name in names if numbers(name) <= want]
    return (alike or older or names[:1])[-1]


def no_row(field: str, value: str, what: str, known: Iterable[str], source: str) -> Problem:
    """Return the refusal of what the tables do not know."""
    names = list(known)
    near = nearest(value, names)
    tag = "v" if field.endswith("_TAG") else ""
    return Problem(
        field,
        value,
        f"no row for {what} {_bare(value)}, and unknown means refused",
        allowed=", ".join(names),
        next_step=f"set {field}={tag}{near}, the nearest" if near else "set one of those",
        source=source,
    )
