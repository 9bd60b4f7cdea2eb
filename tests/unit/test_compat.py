"""The compatibility tables and rules, by what a user would read of them."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.compat import lookup, rules, tables, toolkit
from pipeline.compat.tables import CudaRelease, Distribution, TorchRelease, Wheel
from pipeline.errors import Problem
from pipeline.spec import Arch

FOLDER = Path(tables.__file__).parent
PYTHONS = tuple(f"3.{minor}" for minor in range(6, 17))
ARCHES = (*tables.arches(), "8.6+PTX", "9.0a", "12.0a", "12.0f", "8.8", "99.0")


def torch(version: str) -> TorchRelease:
    found = lookup.torch_release(version)
    assert isinstance(found, TorchRelease), str(found)
    return found


def cuda(version: str) -> CudaRelease:
    found = lookup.cuda_release(version)
    assert isinstance(found, CudaRelease), str(found)
    return found


def dist(name: str, version: str = "") -> Distribution:
    found = lookup.distribution(name, version)
    assert isinstance(found, Distribution), str(found)
    return found


def wheel(version: str, of_cuda: str) -> Wheel:
    found = rules.wheel_for(torch(version), of_cuda)
    assert isinstance(found, Wheel), str(found)
    return found


def arches(text: str) -> list[Arch]:
    return [Arch.parse(word) for word in text.split()]


def covered(
    version: str, of_cuda: str, wanted: str, distribution: str = "ubuntu 24.04"
) -> tuple[Problem, ...]:
    found = dist(*distribution.split())
    return rules.check_coverage(torch(version), wheel(version, of_cuda), arches(wanted), found)


def source(
    version: str,
    of_cuda: str,
    wanted: str = "8.0",
    distribution: str = "ubuntu 22.04",
    python: str = "",
) -> tuple[Problem, ...]:
    release = torch(version)
    return rules.check_source(
        release,
        release.vision,
        python or release.pythons.stable[-1],
        of_cuda,
        arches(wanted),
        dist=dist(*distribution.split()),
    )


def vision_wheel(
    version: str, of_cuda: str, wanted: str = "8.6", python: str = "3.13"
) -> tuple[Problem, ...]:
    found = torch(version)
    return rules.check_vision_wheel(found, python, of_cuda, arches(wanted), dist("debian"))


def image(of_cuda: str, cudnn: str, flavor: str, distribution: str) -> str | Problem:
    return toolkit.nvidia_image(of_cuda, cudnn, flavor, dist(*distribution.split()))


# The tables


def rows() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(FOLDER.glob("*.toml")):
        for name, table in tomllib.loads(path.read_text()).items():
            for at, row in enumerate(table):
                yield f"{path.name}[{name}][{at}]", row


@pytest.mark.parametrize(
    ("where", "row"), list(rows()), ids=lambda it: it if type(it) is str else ""
)
def test_every_row_has_a_reason_and_a_source(where: str, row: dict[str, Any]) -> None:
    assert row["reason"].strip(), where
    assert row["source"].startswith("https://"), where


def test_the_folder_has_the_seven_tables() -> None:
    names = ["arch", "cuda", "distro", "libraries", "magma", "ngc", "torch"]
    assert [path.stem for path in sorted(FOLDER.glob("*.toml"))] == names


def test_tables_are_in_order_and_refer_to_each_other() -> None:
    for known in (tables.torch(), tables.cuda(), tables.arches()):
        assert list(known) == sorted(known, key=tables.numbers)
    for release in tables.torch().values():
        assert [wheel.index for wheel in release.wheels].count("pypi") == 1, release.version
        for built in release.wheels:
            targets = tables.cuda()[built.cuda].archs
            for arch in built.archs:
                assert f"{arch.number}{arch.suffix}" in targets, (release.version, built.cuda)
                assert arch.number in tables.arches()
            assert release.cuda.holds(built.cuda), "upstream compiles it, so a source build can"
    for row in tables.cuda().values():
        assert {name.rstrip("af") for name in row.archs} <= set(tables.arches())
        assert set(row.ubuntu) <= {it.version for it in lookup.distributions()}
        assert row.patch == "" or row.patch.startswith(row.version + ".")
    for word in tables.names():
        assert {arch.number for arch in word.archs} <= set(tables.arches())


def test_the_range_of_releases_on_record() -> None:
    assert next(iter(tables.torch())) == "1.13.0"
    assert lookup.newest_torch().version == "2.15.0"
    assert lookup.newest_torch().wheel.cuda == "13.2"
    assert [str(it) for it in lookup.distributions()] == [
        "debian 12", "debian 13", "ubuntu 20.04", "ubuntu 22.04", "ubuntu 24.04",
    ]  # fmt: skip


def test_loading_needs_no_engine_no_network_and_no_settings() -> None:
    code = (
        "import sys; from pipeline.compat import lookup; lookup.newest_torch();"
        "print([m for m in ('dagger', 'pipeline.settings', 'httpx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Lookups


@pytest.mark.parametrize(
    ("version", "vision"),
    [("2.5.1", "0.20.1"), ("v2.6.0", "0.21.0"), ("2.0.0", "0.15.1"), ("2.14.1", "0.29.2")],
)
def test_a_release_is_found_by_version_or_tag_with_its_vision(version: str, vision: str) -> None:
    assert torch(version).vision == vision


@pytest.mark.parametrize("version", ["12.4", "12.4.1"])
def test_cuda_is_found_with_and_without_patch(version: str) -> None:
    assert cuda(version).version == "12.4"


def test_a_distribution_is_found_by_version_codename_or_as_its_newest() -> None:
    assert dist("debian").image == "debian:trixie-slim"
    assert dist("Ubuntu", "jammy") == dist("ubuntu", "22.04")


@pytest.mark.parametrize(
    ("name", "expansion"),
    [("ampere", "8.0 8.6+PTX"), ("pascal", "6.0 6.1+PTX"), ("ada", "8.9+PTX")],
)
def test_named_lists_expand_as_torch_does(name: str, expansion: str) -> None:
    assert list(lookup.named_archs()[name]) == arches(expansion)


def test_named_lists_are_the_eight_generations() -> None:
    assert set(lookup.named_archs()) == {
        "maxwell", "pascal", "volta", "turing", "ampere", "ada", "hopper", "blackwell",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("version", "of_cuda", "index"),
    [
        ("2.6.0", "12.4.1", ""),
        ("2.6.0", "12.6", "https://download.pytorch.org/whl/cu126"),
        ("2.15.0", "13.2.2", ""),
    ],
)
def test_a_wheel_says_which_index_serves_it(version: str, of_cuda: str, index: str) -> None:
    assert wheel(version, of_cuda).index_url == index


# Refusals: one for each rule, as a user would meet it

REFUSALS: dict[str, tuple[Callable[[], object], str, tuple[str, ...]]] = {
    "torch without a row": (
        lambda: lookup.torch_release("1.11.0"),
        "PYTORCH_VERSION_TAG",
        ("no row for torch 1.11.0", "1.13.0", "2.15.0", "PYTORCH_VERSION_TAG=v1.13.0"),
    ),
    "torch by branch": (
        lambda: lookup.torch_release("main"),
        "PYTORCH_VERSION_TAG",
        ("no row for torch main", "2.15.0", "RELEASE.md"),
    ),
    "distribution misspelt": (
        lambda: lookup.distribution("debain"),
        "LINUX_DISTRO",
        ("debian, ubuntu", "LINUX_DISTRO=debian"),
    ),
    "distribution version": (
        lambda: lookup.distribution("ubuntu", "18.04"),
        "DISTRO_VERSION",
        ("no row for ubuntu 18.04", "20.04, 22.04, 24.04", "DISTRO_VERSION=20.04"),
    ),
    "CUDA that never was": (
        lambda: lookup.cuda_release("12.7.1"),
        "CUDA_VERSION",
        ("no row for CUDA 12.7.1", "12.6, 12.8", "CUDA_VERSION=12.6", "docs.nvidia.com"),
    ),
    "capability that no row has": (
        lambda: lookup.known_arch(Arch.parse("8.8")),
        "CCA",
        ("no row for compute capability 8.8", "8.7, 8.9", "developer.nvidia.com"),
    ),
    "torchvision of another torch": (
        lambda: rules.check_pair(torch("2.5.1"), "v0.21.0"),
        "TORCHVISION_VERSION_TAG",
        (
            "torch 2.5.1",
            "pin torch exactly",
            "0.20.1",
            "TORCHVISION_VERSION_TAG=v0.20.1",
            "PYTORCH_VERSION_TAG=v2.6.0",
            "https://github.com/pytorch/vision",
        ),
    ),
    "torchvision 0.29.0 is pinned to 2.14.0": (
        lambda: rules.check_pair(torch("2.14.1"), "0.29.0"),
        "TORCHVISION_VERSION_TAG",
        ("0.29.1, 0.29.2", "torch==2.14.0"),
    ),
    "Python too old": (
        lambda: rules.check_python(torch("2.15.0"), "3.10"),
        "PYTHON_VERSION",
        ("requires 3.11", "3.11, 3.12, 3.13, 3.14, 3.15", "PYTHON_VERSION=3.11", "v2.14.1"),
    ),
    "Python too new": (
        lambda: rules.check_python(torch("2.1.0"), "3.12"),
        "PYTHON_VERSION",
        ("3.8, 3.9, 3.10, 3.11", "PYTHON_VERSION=3.11", "PYTORCH_VERSION_TAG=v2.2.0"),
    ),
    "Python that has no wheels yet": (
        lambda: rules.check_python(torch("2.14.1"), "3.15", prebuilt=True),
        "PYTHON_VERSION",
        ("experimental", "BUILD_MODE=include also 3.15", "v2.15.0"),
    ),
    "no wheel for this CUDA, but it compiles": (
        lambda: rules.wheel_for(torch("2.15.0"), "12.6.3"),
        "CUDA_VERSION",
        (
            "no wheel for CUDA 12.6",
            "13.2 (PyPI)",
            "13.0 (https://download.pytorch.org/whl/cu130)",
            "BUILD_MODE=include",
            "https://github.com/pytorch/pytorch/issues/190385",
        ),
    ),
    "the wheel is too new for Pascal": (
        lambda: covered("2.15.0", "13.2", "6.1"),
        "CCA",
        (
            "Pascal",
            "GTX 1080 Ti",
            "7.5 8.0 8.6 9.0 10.0 12.0",
            "BUILD_MODE=include",
            "PYTORCH_VERSION_TAG=v2.14.1 with CUDA_VERSION=12.6",
            "https://github.com/pytorch/pytorch/issues/190385",
        ),
    ),
    "another wheel of the same torch has Volta": (
        lambda: covered("2.11.0", "13.0", "7.0"),
        "CCA",
        ("Volta", "V100", "set CUDA_VERSION=12.6", "pull/175253"),
    ),
    "the wheel is too old for Blackwell": (
        lambda: covered("2.6.0", "12.4", "12.0"),
        "CCA",
        ("RTX 5090", "PYTORCH_VERSION_TAG=v2.7.0 with CUDA_VERSION=12.8"),
    ),
    "compiling for Pascal on a distribution without such a CUDA": (
        lambda: covered("2.15.0", "13.2", "6.1", "debian 13"),
        "CCA",
        ("CUDA_VERSION=12.6, LINUX_DISTRO=ubuntu and DISTRO_VERSION=24.04 to compile for it",),
    ),
    "no wheel anywhere": (
        lambda: covered("2.15.0", "13.2", "3.5"),
        "CCA",
        ("Kepler", "Tesla K40", "take it out"),
    ),
    "no PTX in the wheel": (
        lambda: covered("2.6.0", "12.4", "8.6+PTX", "debian 13"),
        "CCA",
        ("PTX", "take +PTX out", "BUILD_MODE=include with CUDA_VERSION=12.4"),
    ),
    "capability without a row, in a wheel": (
        lambda: covered("2.15.0", "13.2", "8.8"),
        "CCA",
        ("no row for compute capability 8.8",),
    ),
    "CUDA too new for the source": (
        lambda: source("2.3.1", "12.4.1"),
        "CUDA_VERSION",
        ("11.0 to 12.3", "CUDA_VERSION=12.3", "https://github.com/pytorch/pytorch/issues/122169"),
    ),
    "CUDA 13 is too new for 2.8": (
        lambda: source("2.8.0", "13.0"),
        "CUDA_VERSION",
        ("CUDA 11.0 to 12.9", "CUDA_VERSION=12.9"),
    ),
    "CUDA too old for the source": (
        lambda: source("2.15.0", "12.4"),
        "CUDA_VERSION",
        ("12.6 or newer", "CUDA_VERSION=12.6", "https://github.com/pytorch/pytorch/pull/192257"),
    ),
    "V100 with CUDA 13": (
        lambda: source("2.15.0", "13.0", "7.0"),
        "CCA",
        ("CUDA 13.0", "Volta: V100", "CUDA_VERSION=12.6", "docs.nvidia.com"),
    ),
    "V100 with CUDA 13, on Debian": (
        lambda: source("2.15.0", "13.0", "7.0", "debian 13"),
        "CCA",
        ("set CUDA_VERSION=12.6, LINUX_DISTRO=ubuntu and DISTRO_VERSION=24.04",),
    ),
    "the official torchvision has another C++ ABI": (
        lambda: vision_wheel("2.6.0", "12.4"),
        "VISION_SOURCE",
        ("C++ ABI of GCC 4", "leave VISION_SOURCE empty", "issues/51039"),
    ),
    "the official torchvision is for another CUDA": (
        lambda: vision_wheel("2.13.0", "12.6"),
        "VISION_SOURCE",
        ("compiled for CUDA 13.0", "torch for 12.6", "CUDA_VERSION=13.0"),
    ),
    "the official torchvision has no code for Pascal": (
        lambda: vision_wheel("2.9.1", "12.8", "6.1"),
        "CCA",
        ("Pascal",),
    ),
    "the official torchvision has no wheel for this Python": (
        lambda: vision_wheel("2.14.1", "13.0", python="3.15"),
        "PYTHON_VERSION",
        ("3.10, 3.11, 3.12, 3.13, 3.14",),
    ),
    "sm_120 with a CUDA that does not know it": (
        lambda: source("2.7.0", "12.6", "12.0"),
        "CCA",
        ("CUDA 12.6", "RTX 5090", "CUDA_VERSION=12.8"),
    ),
    "sm_120 with a torch that does not know it": (
        lambda: source("2.6.0", "12.8", "12.0"),
        "CCA",
        ("torch 2.6.0 does not know the name 12.0", "v2.7.0", "issues/164051"),
    ),
    "9.0a with torch 2.2": (
        lambda: source("2.2.0", "12.1", "9.0a"),
        "CCA",
        ("does not know the name 9.0a", "v2.3.0", "without the 'a'", "issues/113948"),
    ),
    "10.1 is 11.0 now": (
        lambda: source("2.9.0", "12.8", "10.1"),
        "CCA",
        ("10.1", "write 11.0", "issues/166120"),
    ),
    "suffix f": (
        lambda: source("2.15.0", "13.2", "12.0f"),
        "CCA",
        ("no torch on record knows 12.0f", "without the 'f'"),
    ),
    "capability without a row, compiled": (
        lambda: source("2.15.0", "13.2", "8.8"),
        "CCA",
        ("no row for compute capability 8.8",),
    ),
    "the distribution's compilers are too old": (
        lambda: source("2.15.0", "12.9", "8.0", "ubuntu 20.04"),
        "DISTRO_VERSION",
        ("GCC 9, 10, 8, 7", "11 or newer", "C++20", "ubuntu 24.04"),
    ),
    "the distribution's compilers are too new": (
        lambda: source("1.13.1", "11.7", "8.0", "debian 13"),
        "DISTRO_VERSION",
        ("at most 11", "debian 12", "https://github.com/pytorch/pytorch/issues/77614"),
    ),
    "the compiler of this CUDA is not on record": (
        lambda: source("2.15.0", "13.5"),
        "CUDA_VERSION",
        ("not on record", "13.2, 13.3", "BUILD_MODE=exclude"),
    ),
    "driver too old": (
        lambda: rules.check_driver("12.4.1", "470.82.01"),
        "CUDA_VERSION",
        ("525.60.13", "470.82.01", "CUDA_VERSION=11.8", "minor-version-compatibility"),
    ),
    "driver too old for anything": (
        lambda: rules.check_driver("12.4", "390.12"),
        "CUDA_VERSION",
        ("none with this driver", "update the driver to 525.60.13"),
    ),
    "driver too old to compile PTX": (
        lambda: rules.check_driver("12.8", "550.54.14", ptx=True),
        "CUDA_VERSION",
        ("PTX", "570.26", "CUDA_VERSION=12.4"),
    ),
    "driver of this CUDA is not on record": (
        lambda: rules.check_driver("13.5", "999.1", ptx=True),
        "CUDA_VERSION",
        ("not on record", "CUDA_VERSION=13.4"),
    ),
    "driver for a CUDA without a row": (
        lambda: rules.check_driver("14.0", "999.1"),
        "CUDA_VERSION",
        ("no row for CUDA 14.0",),
    ),
    "image of an unknown flavor": (
        lambda: image("12.4.1", "", "developer", "ubuntu 22.04"),
        "IMAGE_FLAVOR",
        ("base, runtime, devel", "hub.docker.com"),
    ),
    "image on Debian": (
        lambda: image("12.4.1", "", "devel", "debian 13"),
        "LINUX_DISTRO",
        ("ubuntu 22.04", "LINUX_DISTRO=ubuntu"),
    ),
    "image on an Ubuntu too new for it": (
        lambda: image("12.4.1", "", "devel", "ubuntu 24.04"),
        "DISTRO_VERSION",
        ("20.04, 22.04", "DISTRO_VERSION=22.04", "CUDA_VERSION=12.6"),
    ),
    "image of a CUDA without images": (
        lambda: image("13.4", "", "devel", "ubuntu 24.04"),
        "CUDA_VERSION",
        ("not on record", "CUDA_VERSION=13.3"),
    ),
    "image without a known patch": (
        lambda: image("13.3", "", "devel", "ubuntu 24.04"),
        "CUDA_VERSION",
        ("patch release", "13.3.N"),
    ),
    "image of a patch too new": (
        lambda: image("12.4.9", "", "devel", "ubuntu 22.04"),
        "CUDA_VERSION",
        ("12.4.1",),
    ),
    "image of a patch before cuDNN was in it": (
        lambda: image("12.4.0", "", "devel", "ubuntu 22.04"),
        "CUDA_VERSION",
        ("with cuDNN at least 12.4.1",),
    ),
    "image with another cuDNN": (
        lambda: image("12.4.1", "8", "devel", "ubuntu 22.04"),
        "CUDNN_VERSION",
        ("hold 9", "leave CUDNN_VERSION empty", "CUDA_VERSION=12.2"),
    ),
    "base image with cuDNN": (
        lambda: image("12.4.1", "9", "base", "ubuntu 22.04"),
        "CUDNN_VERSION",
        ("hold none", "IMAGE_FLAVOR=runtime"),
    ),
    "image of a CUDA without a row": (
        lambda: image("12.7", "", "devel", "ubuntu 22.04"),
        "CUDA_VERSION",
        ("no row for CUDA 12.7",),
    ),
    "bootstrap of Ubuntu": (
        lambda: rules.check_bootstrap(dist("ubuntu")),
        "LINUX_DISTRO",
        ("debian 12, debian 13", "BASE_SOURCE=image"),
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_says_what_why_and_what_next(case: str) -> None:
    call, field, words = REFUSALS[case]
    result = call()
    problems = result if isinstance(result, tuple) else (result,)
    (problem,) = (it for it in problems if isinstance(it, Problem) and it.field == field)
    assert all((problem.why, problem.allowed, problem.next_step))
    assert problem.source.startswith("https://")
    for word in words:
        assert word in str(problem)


# Acceptance


@pytest.mark.parametrize(
    ("version", "of_cuda", "wanted", "distribution"),
    [
        ("2.6.0", "12.4.1", "8.6", "debian 13"),
        ("2.15.0", "12.6.3", "6.1 7.0", "ubuntu 24.04"),
        ("2.15.0", "13.2", "8.6 12.0+PTX", "debian 13"),
        ("2.7.0", "12.8", "12.0", "ubuntu 24.04"),
        ("2.3.0", "12.1", "9.0a", "ubuntu 22.04"),
        ("2.8.0", "12.8", "10.1", "ubuntu 24.04"),
        ("2.9.0", "13.0", "11.0", "ubuntu 24.04"),
        ("1.13.1", "11.6", "3.5", "ubuntu 20.04"),
    ],
)
def test_what_compiles(version: str, of_cuda: str, wanted: str, distribution: str) -> None:
    assert source(version, of_cuda, wanted, distribution) == ()


@pytest.mark.parametrize(
    ("version", "of_cuda", "wanted"),
    [
        ("2.14.1", "12.6", "6.1 7.0 8.9 9.0a"),
        ("2.15.0", "13.2", "8.6 12.1"),
        ("2.15.0", "13.2", ""),
        ("2.10.0", "12.8", "7.0"),
        ("2.7.1", "11.8", "3.7"),
    ],
)
def test_what_a_wheel_runs_on(version: str, of_cuda: str, wanted: str) -> None:
    release = torch(version)
    python = release.pythons.stable[0]
    found = rules.check_wheel(
        release, release.vision, python, of_cuda, arches(wanted), dist("debian")
    )
    assert found == ()


def test_all_mistakes_are_found_at_once() -> None:
    found = rules.check_wheel(
        torch("2.15.0"), "0.21.0", "3.9", "13.2", arches("6.1 7.0"), dist("debian")
    )
    fields = [problem.field for problem in found]
    assert fields == ["TORCHVISION_VERSION_TAG", "PYTHON_VERSION", "CCA", "CCA"]


def test_a_compiled_torch_goes_with_the_official_torchvision_of_the_same_cuda() -> None:
    assert vision_wheel("2.9.1", "12.8.1") == ()


def test_an_experimental_python_compiles_but_has_no_wheel() -> None:
    release = torch("2.5.1")
    assert rules.check_python(release, "3.13") is None
    assert rules.check_python(release, "3.13", prebuilt=True) is not None


@pytest.mark.parametrize(
    ("version", "of_cuda", "distribution", "gcc"),
    [
        ("2.6.0", "12.4", "debian 13", "13"),
        ("2.6.0", "12.8", "debian 13", "14"),
        ("2.4.0", "11.8", "debian 12", "11"),
        ("2.6.0", "12.4", "ubuntu 22.04", "11"),
        ("2.1.0", "11.8", "ubuntu 24.04", "11"),
    ],
)
def test_an_older_packaged_gcc_serves_where_the_default_is_too_new(
    version: str, of_cuda: str, distribution: str, gcc: str
) -> None:
    assert rules.host_gcc(torch(version), cuda(of_cuda), dist(*distribution.split())) == gcc


@pytest.mark.parametrize(("wanted", "newest"), [("8.6", ""), ("8.6 6.1", "9.10.2.21")])
def test_old_gpus_bound_cudnn(wanted: str, newest: str) -> None:
    assert rules.newest_cudnn(arches(wanted)) == newest


@pytest.mark.parametrize(
    ("of_cuda", "driver", "ptx"),
    [
        ("12.8", "525.60.13", False),
        ("12.8", "570.26", True),
        ("13.2.2", "580.65.06", False),
        ("11.8", "610.43.02", True),
    ],
)
def test_a_driver_within_minor_compatibility_runs_it(of_cuda: str, driver: str, ptx: bool) -> None:
    assert rules.check_driver(of_cuda, driver, ptx=ptx) is None


@pytest.mark.parametrize(
    ("of_cuda", "cudnn", "flavor", "distribution", "reference"),
    [
        ("12.4.1", "", "devel", "ubuntu 22.04", "nvidia/cuda:12.4.1-cudnn-devel-ubuntu22.04"),
        ("12.4", "9", "runtime", "ubuntu 20.04", "nvidia/cuda:12.4.1-cudnn-runtime-ubuntu20.04"),
        ("12.3.2", "9", "devel", "ubuntu 22.04", "nvidia/cuda:12.3.2-cudnn9-devel-ubuntu22.04"),
        ("12.2.2", "8", "devel", "ubuntu 22.04", "nvidia/cuda:12.2.2-cudnn8-devel-ubuntu22.04"),
        ("11.8.0", "", "runtime", "ubuntu 20.04", "nvidia/cuda:11.8.0-cudnn8-runtime-ubuntu20.04"),
        ("12.4.0", "", "base", "ubuntu 22.04", "nvidia/cuda:12.4.0-base-ubuntu22.04"),
        ("13.3.1", "", "base", "ubuntu 24.04", "nvidia/cuda:13.3.1-base-ubuntu24.04"),
    ],
)
def test_the_name_of_an_nvidia_image(
    of_cuda: str, cudnn: str, flavor: str, distribution: str, reference: str
) -> None:
    assert image(of_cuda, cudnn, flavor, distribution) == reference


def test_bootstrap_of_debian() -> None:
    assert rules.check_bootstrap(dist("debian")) is None


# The whole matrix


@pytest.mark.parametrize("version", tables.torch())
def test_every_cell_is_accepted_or_refused_with_a_reason(version: str) -> None:
    release, base = torch(version), dist("ubuntu", "22.04")
    accepted = 0
    wanted = [[Arch.parse(text)] for text in ARCHES]
    for of_cuda, python, arch in itertools.product((*tables.cuda(), "12.7"), PYTHONS, wanted):
        prebuilt = rules.check_wheel(release, release.vision, python, of_cuda, arch, base)
        compiled = rules.check_source(release, release.vision, python, of_cuda, arch, dist=base)
        for problem in (*prebuilt, *compiled):
            assert problem.why
            assert problem.source.startswith("https://")
        accepted += (not prebuilt) + (not compiled)
    assert accepted, "a release that nothing goes with should have no row"


@pytest.mark.parametrize("version", tables.torch())
@pytest.mark.parametrize("on", lookup.distributions(), ids=str)
def test_what_a_refusal_of_a_wheel_proposes_is_accepted(version: str, on: Distribution) -> None:
    for built in torch(version).wheels:
        for number in tables.arches():
            (arch,) = arches(number)
            for problem in rules.check_coverage(torch(version), built, [arch], on):
                for step in problem.next_step.split(", or "):
                    proposed = dict(re.findall(r"(\w+)=v?([\w.]+)", step))
                    near = proposed.get("PYTORCH_VERSION_TAG", version)
                    if "BUILD_MODE" in proposed:
                        assert compiles(near, proposed, number, on)
                    elif proposed:
                        assert wheel(near, proposed["CUDA_VERSION"]).runs_on(arch)


@pytest.mark.parametrize("version", tables.torch())
@pytest.mark.parametrize("on", lookup.distributions(), ids=str)
def test_what_a_refusal_of_an_architecture_proposes_compiles(
    version: str, on: Distribution
) -> None:
    for of_cuda, number in itertools.product(tables.cuda(), tables.arches()):
        for problem in source(version, of_cuda, number, str(on)):
            proposed = dict(re.findall(r"(\w+)=v?([\w.]+)", problem.next_step))
            if problem.field == "CCA" and "LINUX_DISTRO" in proposed:
                assert compiles(version, proposed, number, on)


def compiles(version: str, proposed: dict[str, str], wanted: str, on: Distribution) -> bool:
    """Say whether these settings compile this torch where CUDA can be had."""
    there = dist(proposed.get("LINUX_DISTRO", on.name), proposed.get("DISTRO_VERSION", on.version))
    by = toolkit.toolkit(there, proposed["CUDA_VERSION"])
    return isinstance(by, str) and not source(version, proposed["CUDA_VERSION"], wanted, str(there))
