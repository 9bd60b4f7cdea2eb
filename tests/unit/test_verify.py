"""The judge of a built image: a good one passes, and each thing that is wrong is named."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.spec import Arch
from pipeline.stages import verify
from tests.unit.specs import spec

SPEC = spec(pytorch_version_tag="v2.6.0", cca="8.6", tz="Asia/Seoul")

GOOD: dict[str, Any] = {
    "python": "3.13",
    "prefix": "/opt/venv",
    "compilers": [],
    "apt_lists": [],
    "apt_archives": [],
    "caches": [],
    "homes": [],
    "build_leftovers": [],
    "cuda_libraries": {"libcudart.so.12": ["/opt/venv/lib"]},
    "preload": "libjemalloc.so.2",
    "preload_errors": [],
    "timezone": "Asia/Seoul",
    "timezone_known": True,
    "torch": {
        "version": "2.6.0+cu124",
        "vision": "0.21.0+cu124",
        "cuda": "12.4",
        "arches": ["sm_80", "sm_90", "compute_90"],
        "mkl": True,
        "config": "",
        "tensor_op": "ok",
        "vision_op": "ok",
    },
}


def problems(**wrong: Any) -> list[str]:
    """Return what the judge says of good facts but for some; ``torch__x`` is torch's own x."""
    facts = GOOD | {"torch": dict(GOOD["torch"])}
    for name, value in wrong.items():
        if name.startswith("torch__"):
            facts["torch"][name.removeprefix("torch__")] = value
        else:
            facts[name] = value
    return [str(problem) for problem in verify.judge(SPEC, facts)]


def test_a_good_image_passes() -> None:
    assert problems() == []
    plain = GOOD | {"torch": None, "timezone": "UTC"}
    assert verify.judge(spec("simple"), plain) == []


HOME = {"path": "/home/me", "uid": 1000, "world_writable": False}

WRONG: dict[str, tuple[Any, list[str]]] = {
    "python": ("3.12", ["python='3.12'", "allowed: 3.13"]),
    "timezone": ("UTC", ["TZ='UTC'", "allowed: Asia/Seoul"]),
    "timezone_known": (False, ["TZ='Asia/Seoul'", "no such time zone"]),
    "compilers": (["/usr/bin/gcc"], ["compilers='/usr/bin/gcc'", "devel"]),
    "apt_lists": (["/var/lib/apt/lists/Packages"], ["apt_lists", "Packages"]),
    "apt_archives": (["/var/cache/apt/archives/git.deb"], ["apt_archives", "git.deb"]),
    "caches": (["/home/me/.cache/uv"], ["caches='/home/me/.cache/uv'"]),
    "build_leftovers": (["/mnt/wheels"], ["build_leftovers='/mnt/wheels'"]),
    "preload_errors": (["ld.so: cannot be preloaded"], ["preload_errors", "cannot be preloaded"]),
    "homes": ([HOME | {"uid": 0}], ["home='/home/me'", "owned by root"]),
    "cuda_libraries": (
        {"libcudart.so.12": ["/usr/lib", "/opt/venv/lib"]},
        ["libcudart.so.12", "twice", "/usr/lib or /opt/venv/lib"],
    ),
    "torch__version": ("2.5.1+cu124", ["torch='2.5.1'", "allowed: 2.6.0"]),
    "torch__vision": ("0.20.1", ["torchvision='0.20.1'", "allowed: 0.21.0"]),
    "torch__cuda": (None, ["CUDA of torch='none'", "allowed: 12.4"]),
    "torch__arches": (["sm_90"], ["CCA='8.6'", "compute capability 8.6", "allowed: sm_90"]),
    "torch__mkl": (False, ["MKL_MODE", "without MKL", "allowed: exclude"]),
    "torch__tensor_op": ("RuntimeError: no", ["tensor_op='RuntimeError: no'"]),
    "torch__vision_op": ("nms kept [0]", ["vision_op='nms kept [0]'"]),
    "torch__import_error": ("OSError: libcudnn", ["import torch", "OSError: libcudnn"]),
}


@pytest.mark.parametrize("fact", WRONG)
def test_what_is_wrong_is_named(fact: str) -> None:
    value, words = WRONG[fact]
    (said,) = problems(**{fact: value})
    assert [word for word in words if word not in said] == []


def test_every_kind_of_fact_can_fail() -> None:
    judged = {name for name in GOOD if name not in {"prefix", "preload", "torch"}}
    judged |= {f"torch__{name}" for name in GOOD["torch"] if name != "config"}
    assert judged <= WRONG.keys()


def test_several_wrong_facts_are_all_named() -> None:
    assert len(problems(python="3.12", caches=["/home/me/.cache/pip"], torch__mkl=False)) == 3


def test_a_home_that_everyone_writes_to_is_named_and_a_users_own_is_not() -> None:
    assert problems(homes=[HOME]) == []
    (said,) = problems(homes=[HOME | {"world_writable": True}])
    assert "writable by everyone" in said


def test_a_compiler_that_reqs_asks_for_may_stay() -> None:
    asked = SPEC.model_copy(update={"apt": ("git", "g++=4:14.2")})
    assert verify.judge(asked, GOOD | {"compilers": ["/usr/bin/g++"]}) == []


def test_mkl_is_asked_for_only_where_it_is_wanted() -> None:
    without = SPEC.model_copy(update={"mkl": False})
    assert verify.judge(without, GOOD | {"torch": GOOD["torch"] | {"mkl": False}}) == []


def test_facts_are_read_below_what_libraries_print() -> None:
    assert verify.read('UserWarning: numpy\n{"python": "3.13"}\n') == {"python": "3.13"}


@pytest.mark.parametrize(
    ("flag", "arch"),
    [
        ("sm_86", "8.6"),
        ("sm_90a", "9.0a"),
        ("sm_120", "12.0"),
        ("sm_120f", "12.0f"),
        ("compute_90", "9.0+PTX"),
        ("compute_120", "12.0+PTX"),
    ],
)
def test_flags_of_a_compiler_are_architectures(flag: str, arch: str) -> None:
    assert verify.arches([flag]) == [Arch.parse(arch)]


def test_a_flag_of_no_architecture_is_passed_over() -> None:
    assert verify.arches(["gfx90a", "sm_", "lto_90", "sm_80"]) == [Arch.parse("8.0")]
