"""Where CUDA comes from: which image, package or wheel holds which version, for which system."""

from __future__ import annotations

import re
from functools import cache
from typing import Final, Literal

from pipeline.compat import tables
from pipeline.compat.lookup import cuda_release, distributions, minor, nearest
from pipeline.compat.tables import CudaRelease, Distribution, numbers
from pipeline.errors import Problem

CudaSource = Literal["image", "apt", "wheels"]

IMAGES: Final = "https://hub.docker.com/r/nvidia/cuda"
FLAVORS: Final = ("base", "runtime", "devel")
NGC_IMAGE: Final = "nvcr.io/nvidia/pytorch"
_PIP_CUDA: Final = "https://docs.nvidia.com/cuda/cuda-installation-guide-linux/#pip-wheels"
_WAYS: Final[tuple[CudaSource, ...]] = ("image", "apt", "wheels")
_FIRST_WHEELS: Final = (13,)


def toolkit(
    dist: Distribution, cuda: str, source: CudaSource | Literal["auto"] = "auto"
) -> CudaSource | Problem:
    """Return where this CUDA comes from on this distribution.

    ``auto`` prefers NVIDIA's image, which is whole, to the distribution's packages, which lie all
    over its folders, and those to the package index, which lacks parts.
    """
    release = cuda_release(cuda)
    if isinstance(release, Problem):
        return release
    refused = {}
    for way in _WAYS if source == "auto" else (source,):
        refusal = _refused(way, dist, cuda)
        if refusal is None:
            return way
        refused[way] = refusal
    if release.version in _versions(dist, "auto"):
        steps = ["CUDA_SOURCE=auto"]
    else:
        near = nearest(release.version, _versions(dist, source))
        others = [it for it in distributions() if release.version in _versions(it, source)]
        steps = [f"CUDA_VERSION={near}"] if near else []
        steps += [
            f"LINUX_DISTRO={it.name} and DISTRO_VERSION={it.version} to keep CUDA {release.version}"
            for it in others[-1:]
        ]
    return Problem(
        "CUDA_VERSION" if source == "auto" else "CUDA_SOURCE",
        cuda if source == "auto" else source,
        "; ".join(why for why, _ in refused.values()),
        allowed="; ".join(f"{way}: {', '.join(it)}" for way, it in _served(dist).items() if it),
        next_step="set " + ", or ".join(steps or ["CUDA_SOURCE=auto"]),
        source=next(page for _, page in refused.values()),
    )


def toolkit_wheels(cuda: str) -> tuple[str, ...]:
    """Return the packages of the index that `toolkit` calls ``wheels``, as pip pins."""
    parts = tables.toolkits()[minor(cuda)]
    return (*parts.compiler, *parts.runtime)


@cache
def _served(dist: Distribution) -> dict[CudaSource, list[str]]:
    """Return the CUDA versions that come each way on this distribution."""
    return {
        way: [version for version in tables.cuda() if not _refused(way, dist, version)]
        for way in _WAYS
    }


def _versions(dist: Distribution, source: CudaSource | Literal["auto"]) -> list[str]:
    """Return the CUDA versions that `source` serves on this distribution, oldest first."""
    served = _served(dist)
    if source != "auto":
        return served[source]
    return sorted({it for versions in served.values() for it in versions}, key=numbers)


def _refused(way: CudaSource, dist: Distribution, cuda: str) -> tuple[str, str] | None:
    """Return why this CUDA does not come this way, and where that is written."""
    if way == "image":
        image = nvidia_image(cuda, "", "devel", dist)
        return (image.why, image.source) if isinstance(image, Problem) else None
    if way == "apt":
        if dist.cuda == minor(cuda):
            return None
        return f"{dist} packages CUDA {dist.cuda}", dist.page("nvidia-cuda-toolkit")
    if numbers(cuda) < _FIRST_WHEELS:
        why = "the packages of CUDA 12 and older in the index hold libraries and ptxas, but no nvcc"
        return why, _PIP_CUDA
    if minor(cuda) in tables.toolkits():
        return None
    return f"no packages of the compiler of CUDA {minor(cuda)} are on record", _PIP_CUDA


# Images


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


def instead_of_image(image: str) -> str:
    """Return the next step where an image of NVIDIA's cannot be pulled; empty if it is none.

    Which mirrors a registry has, Dagger reads in its engine.json
    (https://docs.dagger.io/configuration/custom-registry/).
    """
    if image.startswith(f"{NGC_IMAGE}:"):
        return (
            "set BASE_IMAGE to a copy of it that this machine can pull, or NGC_YEAR and NGC_MONTH "
            "to a month of which NVIDIA has an image"
        )
    made = re.fullmatch(r"nvidia/cuda:(\d+\.\d+)\S*-devel-(\S+)", image)
    dist = next((it for it in distributions() if made and it.cuda_tag == made[2]), None)
    if made is None or dist is None:
        return ""
    others = [way for way in _WAYS if way != "image" and not _refused(way, dist, made[1])]
    steps = [f"set CUDA_SOURCE={way}" for way in others]
    return ", or ".join([*steps, "name a mirror of docker.io in the engine's engine.json"])


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
