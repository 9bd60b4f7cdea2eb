"""What PyTorch's and torchvision's own builds are told: every USE_ and BUILD_ flag is here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from pipeline.compat.tables import numbers
from pipeline.errors import Problem
from pipeline.spec import Arch, SourceKind

# Major compute capabilities.
_FLASH: Final = 8
_MEMORY_EFFICIENT: Final = 5

_CUFILE: Final = (2, 7)

# What nvcc is told of fat binaries; PyTorch's own build always says the first.
FATBIN: Final = "-Xfatbin -compress-all"
FATBIN_FOR_SIZE: Final = f"{FATBIN} -compress-mode=size"

# Upstream's defaults too are said where a wheel can be asked for them afterwards: the official
# wheels of 1.13 to 2.15 have all of these. What nothing here brings along is off: upstream looks
# for it on the machine, and would link what the image does not have.
_TORCH: Final = {
    "BUILD_TEST": "0",
    "INSTALL_TEST": "0",
    "USE_CUDA": "1",
    "USE_CUDNN": "1",
    "USE_CUDSS": "0",
    "USE_CUPTI_SO": "1",
    "USE_DISTRIBUTED": "1",
    "USE_FBGEMM": "1",
    "USE_GFLAGS": "0",
    "USE_GLOG": "0",
    "USE_GLOO": "1",
    "USE_KINETO": "1",
    "USE_MKLDNN": "1",
    "USE_MPI": "0",
    "USE_NCCL": "1",
    "USE_NUMPY": "1",
    "USE_NVSHMEM": "0",
    "USE_OPENMP": "1",
    "USE_PYTORCH_QNNPACK": "1",
    "USE_ROCM": "0",
    "USE_SYSTEM_NCCL": "1",
    "USE_TENSORPIPE": "1",
    "USE_XPU": "0",
}

# What the source package of Debian 13 (pytorch 2.6.0+dfsg) carries: its bundled parts are taken
# out, and the distribution's libraries stand in for them. There is none for FBGEMM, NNPACK and ITT,
# and its CUTLASS (3.4) is older than the one that the attention kernels include (3.5).
_FROM_DISTRIBUTION: Final = {
    "USE_FBGEMM": "0",
    "USE_FLASH_ATTENTION": "0",
    "USE_ITT": "0",
    "USE_MEM_EFF_ATTENTION": "0",
    "USE_NNPACK": "0",
    "USE_SYSTEM_LIBS": "1",
    "USE_VULKAN": "0",
    "USE_XNNPACK": "1",
}


# Flags that say what a setting says, which all else is chosen by and checked against.
_SETTINGS: Final = {
    "BLAS": "MKL_MODE",
    "MAX_JOBS": "MAX_JOBS",
    "PYTORCH_BUILD_NUMBER": "PYTORCH_VERSION_TAG",
    "PYTORCH_BUILD_VERSION": "PYTORCH_VERSION_TAG",
    "TORCH_CUDA_ARCH_LIST": "CCA",
    "USE_CUDA": "CUDA_VERSION",
    "USE_MAGMA": "MAGMA_SOURCE",
    "USE_ROCM": "CUDA_VERSION",
    "USE_XPU": "CUDA_VERSION",
}
_SWITCHES: Final = dict.fromkeys(("ON", "TRUE", "YES", "Y"), "1") | dict.fromkeys(
    ("OFF", "FALSE", "NO", "N"), "0"
)


def parse(text: str) -> dict[str, str]:
    """Return the flags of TORCH_FLAGS; CMake's words for a switch become ``1`` and ``0``."""
    words = dict(word.split("=", 1) for word in text.split())
    return {
        name: _SWITCHES.get(value.upper(), value) if re.match("(USE|BUILD)_", name) else value
        for name, value in words.items()
    }


def check(asked: Mapping[str, str]) -> list[Problem]:
    """Return the flags that have a setting of their own."""
    return [
        Problem(
            "TORCH_FLAGS",
            f"{name}={asked[name]}",
            f"this is what {setting} is for, and more than the flag depends on it",
            allowed="flags of PyTorch's build that no setting speaks of",
            next_step=f"take it out, and set {setting}",
            source="https://github.com/pytorch/pytorch/blob/main/CONTRIBUTING.md#build-only-what-you-need",
        )
        for name, setting in _SETTINGS.items()
        if name in asked
    ]


def torch_flags(
    arches: Sequence[Arch],
    kind: SourceKind,
    *,
    mkl: bool,
    magma: bool,
    compress: bool,
    version: str,
    packages: Sequence[str],
    asked: Mapping[str, str],
) -> dict[str, str]:
    """Return the flags of PyTorch's build; `asked` are the user's, which go before all others.

    `packages` are the pins of the libraries it runs with; what only some CUDA versions have is
    linked where it is among them. cuFile is on by default from 2.7 on (PyTorch pull request
    145748), and packaged from CUDA 12.6.

    Flash attention needs compute capability 8.0, and is compiled for any list until PyTorch pull
    request 194502, in the files that take the most memory. The kernels of memory-efficient
    attention begin with Maxwell, 5.0 (``sm50`` is the oldest in their names). `compress` says that
    this nvcc can compress its fat binaries for size.
    """
    newest = max((arch.major for arch in arches), default=0)
    flags = _TORCH | {
        "BLAS": "MKL" if mkl else "OpenBLAS",
        "USE_STATIC_MKL": _switch(mkl),
        "USE_CUFILE": _switch(numbers(version) >= _CUFILE and _has(packages, "cufile")),
        "USE_CUSPARSELT": _switch(_has(packages, "cusparselt")),
        "USE_MAGMA": _switch(magma),
        "USE_FLASH_ATTENTION": _switch(newest >= _FLASH),
        "USE_MEM_EFF_ATTENTION": _switch(newest >= _MEMORY_EFFICIENT),
    }
    if compress:
        flags["TORCH_NVCC_FLAGS"] = FATBIN_FOR_SIZE
    if kind == "apt":
        flags |= _FROM_DISTRIBUTION
    return flags | dict(asked)


def _switch(on: bool) -> str:
    return "1" if on else "0"


def _has(packages: Sequence[str], library: str) -> bool:
    return any(library in pin for pin in packages)


def vision_flags(*, compress: bool) -> dict[str, str]:
    """Return the flags of torchvision's build; those it does not know it ignores."""
    return {
        "NVCC_FLAGS": FATBIN_FOR_SIZE if compress else FATBIN,
        "TORCHVISION_USE_FFMPEG": "0",
        "TORCHVISION_USE_JPEG": "1",
        "TORCHVISION_USE_NVJPEG": "1",
        "TORCHVISION_USE_PNG": "1",
        "TORCHVISION_USE_VIDEO_CODEC": "0",
        "TORCHVISION_USE_WEBP": "1",
    }
