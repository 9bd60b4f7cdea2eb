"""The judge of a built image: a good one passes, and each thing that is wrong is named."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.spec import Arch, WheelSpec, code_arches
from pipeline.stages import verify
from tests.unit.specs import spec

SPEC = spec(pytorch_version_tag="v2.6.0", cca="8.6", tz="Asia/Seoul")

GOOD: dict[str, Any] = {
    "python": "3.13",
    "codename": "trixie",
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
        "git": "1eba9b3aa3c43f86f4a2c807ac8e12c4a7767340",
        "vision": "0.21.0+cu124",
        "nvjpeg": True,
        "cuda": "12.4",
        "arches": ["sm_80", "sm_90", "compute_90"],
        "mkl": True,
        "magma": True,
        "cudnn": 90100,
        "lapack": True,
        "nccl": True,
        "gloo": True,
        "config": "PyTorch built with: BLAS_INFO=mkl, USE_CUDNN=ON",
        "features": {
            "USE_CUSPARSELT": True,
            "USE_FBGEMM": True,
            "USE_FLASH_ATTENTION": True,
            "USE_KINETO": True,
            "USE_MKLDNN": True,
            "USE_NUMPY": True,
            "USE_OPENMP": True,
            "USE_PYTORCH_QNNPACK": True,
            "USE_TENSORPIPE": True,
            "USE_XNNPACK": True,
        },
        "tensor_op": "ok",
        "vision_op": "ok",
        "image_codecs": "ok",
        "gpu": "none",
        "code": {},
        "missing": {},
    },
}

# What only a compiled wheel is asked for.
OF_WHEELS = {
    "git", "magma", "cudnn", "config", "features", "code", "missing", "lapack", "nccl", "gloo",
    "nvjpeg",
}  # fmt: skip


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
    "codename": (
        "bookworm", ["tag='py313-torch2.6.0-cu124-bookworm'", "allowed: py313-torch2.6.0-cu124-tr"]
    ),
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
    "torch__image_codecs": ("RuntimeError: no JPEG", ["image_codecs='RuntimeError: no JPEG'"]),
    "torch__gpu": ("nms kept [0]", ["on the GPU='nms kept [0]'", "allowed: ok"]),
    "torch__import_error": ("OSError: libcudnn", ["import torch", "OSError: libcudnn"]),
}


@pytest.mark.parametrize("fact", WRONG)
def test_what_is_wrong_is_named(fact: str) -> None:
    value, words = WRONG[fact]
    (said,) = problems(**{fact: value})
    assert [word for word in words if word not in said] == []


def test_every_kind_of_fact_can_fail() -> None:
    judged = {name for name in GOOD if name not in {"prefix", "preload", "torch"}}
    judged |= {f"torch__{name}" for name in GOOD["torch"].keys() - OF_WHEELS}
    assert judged <= WRONG.keys()
    assert {fact for fact, _, _ in WRONG_IN_WHEELS} == OF_WHEELS - {"nvjpeg"}


def test_a_gpu_that_works_and_none_at_all_are_no_mistake() -> None:
    assert problems(torch__gpu="ok") == problems(torch__gpu="none") == []


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
    assert code_arches([flag]) == [Arch.parse(arch)]


def test_a_flag_of_no_architecture_is_passed_over() -> None:
    assert code_arches(["gfx90a", "sm_", "lto_90", "sm_80"]) == [Arch.parse("8.0")]


# A compiled wheel

COMPILED = spec(
    pytorch_version_tag="v2.6.0", cca="8.6", build_mode="include", magma_source="archive",
    tz="Asia/Seoul",
)  # fmt: skip
CODE = {
    "torch/lib/libtorch_cuda.so": ["sm_86"],
    "torch/lib/libtorch_cuda_linalg.so": ["sm_86"],
    "torchvision/_C.so": ["sm_86"],
    "torchvision.libs/libnvjpeg-4ac9ff42.so.12": ["compute_90", "sm_50", "sm_90"],
}
FEATURES = GOOD["torch"]["features"]
SITE = "/opt/build/lib/python3.13/site-packages"

WRONG_IN_WHEELS: list[tuple[str, Any, list[str]]] = [
    ("code", None, ["cuobjdump=", "nobody knows"]),
    ("code", {}, ["GPU code of torch='none'", "allowed: sm_86"]),
    ("code", CODE | {"torch/lib/libtorch_cuda.so": ["sm_80", "sm_86"]},
     ["GPU code of torch='sm_80, sm_86'", "by cuobjdump", "allowed: sm_86"]),
    ("code", CODE | {"torch/lib/libtorch_cuda.so": ["compute_86", "sm_86"]},
     ["GPU code of torch='compute_86, sm_86'", "allowed: sm_86"]),
    ("code", CODE | {"torch.libs/libmagma-5c1b.so": ["sm_70", "sm_90"]},
     ["GPU code of MAGMA='sm_70, sm_90'", "allowed: sm_86"]),
    ("missing", {f"{SITE}/torch/lib/libtorch_cuda.so": ["libcudnn.so.9", "libnccl.so.2"]},
     ["libtorch_cuda.so", "needs libcudnn.so.9, libnccl.so.2, which is not found"]),
    ("missing", {f"{SITE}/torch.libs/libopenblas-1a2b.so": ["libgfortran.so.5"]},
     ["torch.libs/libopenblas", "needs libgfortran.so.5"]),
    ("config", "BLAS_INFO=open", ["MKL='not in it'", "allowed: in it"]),
    ("cudnn", None, ["cuDNN='not in it'", "allowed: in it"]),
    ("cudnn", 90800, ["cuDNN='90800'", "allowed: 90100"]),
    *[
        ("features", FEATURES | {flag: False}, [f"{flag}='not in it'", "allowed: in it"])
        for flag in FEATURES
        if flag != "USE_XNNPACK"
    ],
    ("magma", False, ["MAGMA='not in it'", "allowed: in it"]),
    ("lapack", False, ["LAPACK='not in it'", "allowed: in it"]),
    ("nccl", False, ["NCCL='not in it'", "allowed: in it"]),
    ("gloo", False, ["gloo='not in it'", "allowed: in it"]),
    ("git", "0" * 40, ["torch's git commit", "0" * 40]),
]  # fmt: skip


def of_wheel(number: int = 0, wheel: WheelSpec | None = None, **wrong: Any) -> list[str]:
    """Return what the judge of a wheel says of good facts but for some."""
    facts = GOOD["torch"] | {"code": CODE} | wrong
    wheel = wheel or COMPILED.compiled[number]
    return [str(it) for it in verify.judge_wheel(wheel, {"torch": facts})]


def test_good_wheels_may_be_kept() -> None:
    assert of_wheel(0) == of_wheel(1) == []


@pytest.mark.parametrize(("fact", "value", "words"), WRONG_IN_WHEELS, ids=lambda it: str(it)[:40])
def test_what_is_wrong_with_a_wheel_is_named(fact: str, value: Any, words: list[str]) -> None:
    torch = COMPILED.compiled[0]
    source = torch.source.model_copy(update={"ref": GOOD["torch"]["git"]})
    (said,) = of_wheel(wheel=torch.model_copy(update={"source": source}), **{fact: value})
    assert [word for word in words if word not in said] == []


def test_an_image_of_compiled_wheels_is_asked_for_the_same() -> None:
    good = GOOD | {"torch": GOOD["torch"] | {"code": CODE, "arches": ["sm_86"]}}
    assert verify.judge(COMPILED, good) == []
    for fact, value, _ in WRONG_IN_WHEELS:
        if fact not in {"git", "code"}:
            torch = good["torch"] | {fact: value}
            assert len(verify.judge(COMPILED, good | {"torch": torch})) == 1, fact


@pytest.mark.parametrize(
    ("cca", "code"),
    [
        ("8.6", ["sm_86"]),
        ("8.6+PTX", ["compute_86", "sm_86"]),
        ("7.5 8.6", ["sm_75", "sm_86"]),
        ("9.0a", ["sm_90a"]),
    ],
)
def test_gpu_code_is_what_was_asked_for_and_no_more(cca: str, code: list[str]) -> None:
    it = spec(pytorch_version_tag="v2.6.0", cca=cca, build_mode="include", magma_source="off")
    files = {"torch/lib/libtorch_cuda.so": code, "torchvision/_C.so": code}
    for wheel in it.compiled:
        assert of_wheel(wheel=wheel, code=files, magma=False) == []
        for other in (code[:-1], [*code, "sm_52"], [*code, "compute_52"]):
            wrong = dict.fromkeys(files, other)
            assert len(of_wheel(wheel=wheel, code=wrong, magma=False)) == 1, other


def test_what_torch_compiles_for_besides_is_no_mistake() -> None:
    it = spec(
        pytorch_version_tag="v2.7.0", cca="8.6 9.0", build_mode="include", linux_distro="ubuntu"
    )
    torch, vision = it.compiled
    version: dict[str, Any] = {"version": "2.7.0+cu126", "vision": "0.22.0+cu126", "cudnn": 90501}
    asked = ["sm_86", "sm_90"]
    for code in (asked, [*asked, "sm_89"], [*asked, "sm_89", "sm_90a"]):
        assert of_wheel(wheel=torch, code={"torch/lib/libtorch_cuda.so": code}, **version) == []
    for code in (["sm_86", "sm_89"], [*asked, "sm_80"], [*asked, "sm_100a"]):
        wrong = {"torch/lib/libtorch_cuda.so": code}
        assert len(of_wheel(wheel=torch, code=wrong, **version)) == 1
    # torchvision has no such files.
    wrong = {"torchvision/_C.so": [*asked, "sm_89"]}
    assert len(of_wheel(wheel=vision, code=wrong, **version)) == 1


def test_a_file_of_torch_may_lack_an_architecture_that_others_have() -> None:
    it = spec(pytorch_version_tag="v2.6.0", cca="7.5 8.6", build_mode="include", magma_source="off")
    # Flash attention has no code for 7.5.
    code = {"torch/lib/libtorch_cuda.so": ["sm_75", "sm_86"], "torch/lib/flash.so": ["sm_86"]}
    assert of_wheel(wheel=it.compiled[0], code=code, magma=False) == []


def test_the_distributions_magma_need_only_run_on_the_gpus() -> None:
    it = spec(pytorch_version_tag="v2.6.0", cca="8.6", build_mode="include")
    magma = it.compiled[0].magma
    assert magma is not None
    assert magma.source.kind == "apt"
    its_own = {"torch.libs/libmagma-5c1b.so": ["compute_80", "sm_70", "sm_75", "sm_80"]}
    assert of_wheel(wheel=it.compiled[0], code=CODE | its_own) == []
    (said,) = of_wheel(wheel=it.compiled[0], code=CODE | {"torch.libs/libmagma.so": ["sm_70"]})
    assert "GPU code of MAGMA='sm_70'" in said


def test_what_torch_lacks_is_not_torchvisions_fault() -> None:
    torch = f"{SITE}/torch/lib/libtorch_cuda.so"
    assert of_wheel(1, missing={torch: ["libcudnn.so.9"]}, magma=False, cudnn=None) == []
    (said,) = of_wheel(1, missing={f"{SITE}/torchvision/_C.so": ["libpng16.so.16"]})
    assert "needs libpng16.so.16" in said
    (said,) = of_wheel(1, code={"torch/lib/libtorch_cuda.so": ["sm_86"]})
    assert "GPU code of torchvision='none'" in said


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"torch_flags": "USE_CUDNN=OFF"}, {"cudnn": None}),
        ({"torch_flags": "USE_NCCL=0"}, {"nccl": False}),
        (
            {"torch_flags": "USE_DISTRIBUTED=0"},
            {"nccl": False, "gloo": False, "features": FEATURES | {"USE_TENSORPIPE": False}},
        ),
        ({"torch_flags": "USE_KINETO=0"}, {"features": FEATURES | {"USE_KINETO": False}}),
        (
            {"torch_flags": "USE_FLASH_ATTENTION=0"},
            {"features": FEATURES | {"USE_FLASH_ATTENTION": False}},
        ),
        ({"magma_source": "off"}, {"magma": False}),
        ({"mkl_mode": "exclude"}, {"config": "BLAS_INFO=open"}),
    ],
    ids=str,
)
def test_what_is_switched_off_on_purpose_is_not_missed(
    settings: dict[str, str], facts: dict[str, Any]
) -> None:
    it = spec(**{"pytorch_version_tag": "v2.6.0", "cca": "8.6", "build_mode": "include"} | settings)
    assert of_wheel(wheel=it.compiled[0], **facts) == []
    said = of_wheel(wheel=it.compiled[0])
    assert len(said) == len(facts)
    assert all("in it'" in line for line in said)


def test_what_a_torch_has_no_word_for_and_no_flag_asks_is_not_judged() -> None:
    untold = {name: it for name, it in FEATURES.items() if name != "USE_CUSPARSELT"}
    assert of_wheel(features=untold) == []
    assert "USE_XNNPACK" not in dict(COMPILED.compiled[0].flags)
    assert of_wheel(features=FEATURES | {"USE_XNNPACK": False}) == []


def test_an_older_cudnn_numbers_itself_otherwise() -> None:
    torch = COMPILED.compiled[0].model_copy(update={"requires": ("nvidia-cudnn-cu12==8.9.2.26",)})
    assert of_wheel(wheel=torch, cudnn=8902) == []
    (said,) = of_wheel(wheel=torch, cudnn=8907)
    assert "cuDNN='8907'" in said
    assert "allowed: 8902" in said


def test_torchvision_decodes_on_the_gpu() -> None:
    (said,) = of_wheel(1, nvjpeg=False)
    assert said.startswith("nvJPEG='not in it': torchvision tells it otherwise")


def test_a_tag_is_no_commit_to_compare() -> None:
    assert COMPILED.compiled[0].source.ref == "v2.6.0"
    assert of_wheel(git="0" * 40) == []


def test_a_wheel_is_of_the_version_that_was_asked_for() -> None:
    (said,) = of_wheel(version="2.6.0a0+gitabc")
    assert "torch='2.6.0a0+gitabc'" in said
    assert "allowed: 2.6.0+cu124" in said
    (said,) = of_wheel(1, vision="0.21.0")
    assert "allowed: 0.21.0+cu124" in said


def test_a_wheel_that_cannot_be_imported_or_does_not_compute_is_refused() -> None:
    (said,) = of_wheel(import_error="OSError: libcudnn.so.9")
    assert said.startswith("import torch='OSError: libcudnn.so.9'")
    (said,) = of_wheel(tensor_op="RuntimeError: no")
    assert "tensor_op='RuntimeError: no'" in said


def test_torch_is_checked_before_there_is_a_torchvision() -> None:
    alone = {name: it for name, it in GOOD["torch"].items()
             if name not in {"vision", "vision_op", "image_codecs"}}  # fmt: skip
    assert verify.judge_wheel(COMPILED.compiled[0], {"torch": alone | {"code": CODE}}) == []


def test_the_proof_names_the_code_of_the_wheels_own_files() -> None:
    facts = {"torch": GOOD["torch"] | {"code": CODE}}
    said = verify.proof(COMPILED.compiled[0], facts)
    assert "torch/lib/libtorch_cuda.so sm_86" in said
    assert "torchvision" not in said
    assert said.endswith(f"; git commit {GOOD['torch']['git']}")
    of_vision = verify.proof(COMPILED.compiled[1], facts)
    assert "torchvision/_C.so sm_86" in of_vision
    assert "commit" not in of_vision
    facts = {"torch": GOOD["torch"] | {"code": CODE, "git": "Unknown"}}
    assert "commit" not in verify.proof(COMPILED.compiled[0], facts)


NGC = spec("ngc", tz="Asia/Seoul")
OF_NGC = GOOD | {
    "python": NGC.python,
    "torch": None,
    "own_torch": {"version": "2.9.0a0+nv25.9", "file": "/usr/local/lib/torch/__init__.py"},
    # NVIDIA's own, with which nobody built anything here.
    "compilers": ["/usr/local/cuda/bin/nvcc"],
    "cuda_libraries": {"libcudart.so.12": ["/usr/lib", "/usr/local/cuda/lib64"]},
    "caches": ["/root/.cache/pip"],
    "build_leftovers": ["/tmp/theirs"],
}


def test_what_nvidias_image_has_is_no_mistake_of_ours() -> None:
    assert verify.judge(NGC, OF_NGC) == []
    assert verify.judge(NGC, OF_NGC | {"own_torch": None}) == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"python": "3.10"}, ["python='3.10'", "allowed: 3.12"]),
        ({"timezone": "UTC"}, ["TZ='UTC'", "allowed: Asia/Seoul"]),
        ({"build_leftovers": ["/mnt/reqs"]}, ["build_leftovers='/mnt/reqs'"]),
        ({"preload_errors": ["ld.so: no"]}, ["preload_errors='ld.so: no'"]),
        (
            {"own_torch": {"import_error": "OSError: libcudnn"}},
            ["import torch='OSError: libcudnn'"],
        ),
        (
            {"own_torch": {"version": "2.9", "file": "/opt/venv/lib/torch/__init__.py"}},
            ["torch='2.9'", "hides NVIDIA's", "reqs/pip-train"],
        ),
    ],
    ids=lambda it: next(iter(it)),
)
def test_what_is_wrong_with_what_we_put_on_it_is_named(
    wrong: dict[str, Any], words: list[str]
) -> None:
    (problem,) = verify.judge(NGC, OF_NGC | wrong)
    assert [word for word in words if word not in str(problem)] == []
