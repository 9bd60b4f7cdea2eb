"""What is compiled: which wheels, from which source, with what; and what their keys change with."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from pipeline import run
from pipeline.compat.flags import torch_flags, vision_flags
from pipeline.errors import BuildError, ConfigError, Problem
from pipeline.host import repository
from pipeline.plan import plan
from pipeline.report import Report
from pipeline.settings import load
from pipeline.spec import SourceSpec, WheelSpec
from pipeline.validate_source import unread, unresolved
from tests.unit.running import ROOT
from tests.unit.specs import arches, spec, spec_in

COMPILED = {"build_mode": "include", "pytorch_version_tag": "v2.6.0", "cca": "8.6"}
COMMIT = "1eba9b3aa3c43f86f4a2c807ac8e12c4a7767340"
SHA256 = "5" * 64
TORCH_ALONE = COMPILED | {"pytorch_version_tag": "v2.13.0", "vision_source": "index"}
"""With the official torchvision, whose C++ ABI is that of a compiled torch from 2.7 on."""


def wheels(**settings: str) -> tuple[WheelSpec, ...]:
    return spec(**COMPILED | settings).compiled


def keys(**settings: str) -> tuple[str, ...]:
    """Return the keys of torch and torchvision, compiled with these settings."""
    return tuple(wheel.key for wheel in wheels(**settings))


def tree(folder: Path, content: str = "x = 1\n") -> Path:
    """Make a working tree of git with one file in it."""
    folder.mkdir(parents=True)
    (folder / "setup.py").write_text(content)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run(["git", "add", "setup.py"], cwd=folder, check=True)
    return folder


# Keys and names


def test_the_keys_are_the_same_in_another_process() -> None:
    code = (
        f"from tests.unit.specs import spec; print(*[w.key for w in spec(**{COMPILED}).compiled])"
    )
    other = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert tuple(other.stdout.split()) == keys()
    assert [len(key) for key in keys()] == [64, 64]


SHAPING: list[dict[str, str]] = [
    {"cca": "8.0"},
    {"cca": "8.6+PTX"},
    {"cca": "7.5 8.6"},
    {"torch_flags": "USE_DISTRIBUTED=0"},
    {"torch_flags": "USE_DISTRIBUTED=0 USE_GLOO=0"},
    {"mkl_mode": "exclude"},
    {"magma_source": "off"},
    {"magma_source": "archive"},
    {"magma_source": "git"},
    {"magma_source": "git", "magma_ref": COMMIT},
    {"torch_ref": COMMIT},
    {"torch_url": "https://git.invalid/pytorch.git"},
    {"torch_source": "apt"},
    {
        "torch_source": "archive",
        "torch_url": "https://host.invalid/torch.tar.gz",
        "torch_sha256": SHA256,
    },
    {
        "torch_source": "archive",
        "torch_url": "https://host.invalid/torch.tar.gz",
        "torch_sha256": "6" * 64,
    },
    {"pytorch_version_tag": "v2.5.1"},
    {"python_version": "3.12"},
    {"linux_distro": "ubuntu", "distro_version": "22.04"},
    {"linux_distro": "ubuntu", "cuda_version": "12.6"},
]


@pytest.mark.parametrize("settings", SHAPING, ids=str)
def test_what_shapes_torch_is_in_its_key_and_in_that_of_torchvision(
    settings: dict[str, str],
) -> None:
    for one, other in zip(keys(), keys(**settings), strict=True):
        assert one != other


def test_no_two_wheels_share_a_key() -> None:
    every = [key for settings in [{}, *SHAPING] for key in keys(**settings)]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize(
    "settings",
    [
        {"tz": "Asia/Seoul"},
        {"project_root": "/elsewhere"},
        {"compression": "zstd"},
        {"max_jobs": "3"},
        {"cache_url": "redis://cache.invalid"},
        {"wheel_store": "off"},
        {"registry": "localhost:5000", "image_name": "other:tag"},
        {"index_url": "https://me:secret@host.invalid/simple"},
        {"git_old": "https://github.com/", "git_new": "https://mirror.invalid/"},
        {"uid": "1000", "usr": "me"},
        {"torch_ref": "v2.6.0"},
        {"torch_source": "git", "vision_source": "git", "magma_source": "auto"},
        {"cuda_source": "apt"},
        {"cuda_version": "12.4"},
        {"deb_old": "http://archive.invalid", "deb_new": "http://mirror.invalid"},
        {"base_source": "bootstrap"},
    ],
    ids=str,
)
def test_what_does_not_shape_a_wheel_is_not_in_its_key(settings: dict[str, str]) -> None:
    assert keys(**settings) == keys()


def test_torchvision_of_another_torch_is_another_wheel_but_not_the_reverse() -> None:
    torch, vision = keys()
    for settings in ({"vision_ref": COMMIT}, {"vision_url": "https://git.invalid/vision"}):
        other_torch, other_vision = keys(**settings)
        assert (other_torch == torch, other_vision == vision) == (True, False)
    (alone,) = keys(**TORCH_ALONE)
    assert alone == keys(**TORCH_ALONE | {"vision_source": "git"})[0]
    # Linked to the official torch of the same version, it is no longer the same.
    (of_official,) = keys(torch_source="index")
    assert of_official != vision


def tarball(folder: Path) -> dict[str, str]:
    """Make a file that is good enough for a tarball until it is unpacked; return its settings."""
    file = folder / "torch.tar.gz"
    file.write_bytes(b"x")
    sha256 = hashlib.sha256(b"x").hexdigest()
    return {"torch_source": "archive", "torch_url": str(file), "torch_sha256": sha256}


def test_the_same_tarball_is_the_same_source_anywhere(tmp_path: Path) -> None:
    source = tarball(tmp_path)
    here = keys(**source)
    there = "https://me:secret@mirror.invalid/v2.6.0.tar.gz"
    assert keys(**source | {"torch_url": there}) == here
    assert keys(**source | {"torch_url": f"{there}?X-Amz-Signature=secret#top"}) == here


def test_the_same_working_tree_is_the_same_source_anywhere(tmp_path: Path) -> None:
    one = keys(torch_source="path", torch_url=str(tree(tmp_path / "one")))
    assert keys(torch_source="path", torch_url=str(tree(tmp_path / "two"))) == one
    (tmp_path / "one" / "untracked.txt").write_text("a note")
    assert keys(torch_source="path", torch_url=str(tmp_path / "one")) == one
    (tmp_path / "one" / "setup.py").write_text("x = 2\n")
    assert keys(torch_source="path", torch_url=str(tmp_path / "one")) != one


def test_a_login_is_no_part_of_a_key_and_of_no_name() -> None:
    url = "https://{}git.invalid/torch.git"
    with_login = spec(**COMPILED, torch_url=url.format("me:hunter2@"))
    without = spec(**COMPILED, torch_url=url.format(""))
    assert with_login.key == without.key
    assert with_login.compiled[0].key == without.compiled[0].key
    assert "hunter2" not in with_login.model_dump_json()
    # Yet it is what the source is fetched with.
    assert with_login.compiled[0].source.location == url.format("me:hunter2@")


def test_a_signature_in_the_url_of_a_tarball_is_no_part_of_where_it_lies() -> None:
    url = "https://host.invalid/torch.tar.gz"
    signed = f"{url}?X-Amz-Signature=hunter2#hunter2"
    it = spec(**COMPILED, torch_source="archive", torch_url=signed, torch_sha256=SHA256)
    assert it.compiled[0].source.location == signed
    assert it.compiled[0].source.public_location == url
    assert "hunter2" not in it.model_dump_json() + repr(plan(it))
    odd = SourceSpec(kind="path", location="/home/me/what?#1")
    assert odd.public_location == odd.location


def test_only_the_files_that_a_compile_reads_are_in_its_key(tmp_path: Path) -> None:
    folder = tmp_path / "reqs"
    shutil.copytree(ROOT / "reqs", folder)

    def now() -> list[str]:
        return [wheel.key for wheel in spec_in(folder, "", unresolved, **COMPILED).compiled]

    before = now()
    for name in ("apt-train", "pip-train", "build-2.14"):
        (folder / f"{name}.requirements.txt").write_text("")
    assert now() == before == list(keys())
    for name in ("build-2.3", "build-mkl"):
        with (folder / f"{name}.requirements.txt").open("a") as file:
            file.write("# another\n")
        assert set(now()).isdisjoint(before)
        before = now()


def test_what_the_wheels_are_made_of_is_in_the_key_of_the_image() -> None:
    image = spec(**COMPILED)
    for settings in ({"cca": "8.0"}, {"torch_flags": "USE_GLOO=0"}, {"vision_ref": COMMIT}):
        assert spec(**COMPILED | settings).key != image.key
    assert spec(**COMPILED, max_jobs="2").key == image.key
    assert spec("devel", **COMPILED).key != image.key


@pytest.mark.parametrize(
    ("settings", "image", "names"),
    [
        ({}, "py313-torch2.6.0-cu124-sm86-trixie",
         ["torch-2.6.0-cu124-sm86-py313-trixie", "torchvision-0.21.0-cu124-sm86-py313-trixie"]),
        (TORCH_ALONE | {"cca": "7.5 8.6+PTX"},
         "py313-torch2.13.0-cu130-sm75-86ptx-trixie",
         ["torch-2.13.0-cu130-sm75-86ptx-py313-trixie"]),
        ({"cca": "9.0a", "linux_distro": "ubuntu", "cuda_version": "12.6.3"},
         "py312-torch2.6.0-cu126-sm90a-noble",
         ["torch-2.6.0-cu126-sm90a-py312-noble", "torchvision-0.21.0-cu126-sm90a-py312-noble"]),
    ],
)  # fmt: skip
def test_the_names_of_wheels_read_well(
    settings: dict[str, str], image: str, names: list[str]
) -> None:
    it = spec(**COMPILED | settings)
    assert it.variant == image
    assert [wheel.variant for wheel in it.compiled] == names


# Sources


def source(part: int = 0, /, **settings: str) -> SourceSpec:
    return wheels(**settings)[part].source


def test_where_each_kind_of_source_comes_from(tmp_path: Path) -> None:
    upstream = "https://github.com/pytorch/pytorch.git"
    assert source() == SourceSpec(kind="git", location=upstream, ref="v2.6.0")
    assert source(1).ref == "v0.21.0"
    assert source(torch_url="git@git.invalid:torch", torch_ref=COMMIT) == SourceSpec(
        kind="git", location="git@git.invalid:torch", ref=COMMIT
    )
    given = tarball(tmp_path)
    assert source(0, **given) == SourceSpec(
        kind="archive", location=given["torch_url"], sha256=given["torch_sha256"]
    )
    apt = SourceSpec(kind="apt", location="pytorch", ref="2.6.0+dfsg-7")
    assert source(torch_source="apt") == apt
    apt = SourceSpec(kind="apt", location="pytorch-vision", ref="0.21.0-3")
    assert source(1, vision_source="apt") == apt
    folder = tree(tmp_path / "torch")
    found = source(torch_source="path", torch_url=str(folder))
    assert (found.kind, found.location, len(found.sha256)) == ("path", str(folder), 64)


def test_a_branch_becomes_the_commit_it_stands_at() -> None:
    asked = []

    def resolve(url: str, ref: str) -> str:
        asked.append((url, ref))
        return COMMIT

    refs = {"torch_ref": "main", "vision_ref": "release/0.21", "magma_ref": "v2.9.0-rc1"}
    it = spec_in(ROOT / "reqs", "", resolve, **COMPILED, **refs, magma_source="git")
    assert [(url.rpartition("/")[2], ref) for url, ref in asked] == [
        ("pytorch.git", "main"),
        ("vision.git", "release/0.21"),
        ("magma.git", "v2.9.0-rc1"),
    ]
    torch, vision = it.compiled
    assert torch.magma is not None
    assert {torch.source.ref, vision.source.ref, torch.magma.source.ref} == {COMMIT}


@pytest.mark.parametrize("ref", ["v2.6.0", COMMIT])
def test_nobody_is_asked_where_a_release_or_a_commit_stands(ref: str) -> None:
    # `spec` refuses whatever would have to be asked.
    assert source(torch_ref=ref).ref == ref


def test_a_branch_that_nobody_may_be_asked_for_is_refused() -> None:
    with pytest.raises(ConfigError, match="TORCH_REF='main': a branch moves"):
        spec(**COMPILED, torch_ref="main")


def test_what_the_repository_says_against_it_is_told_of_the_setting() -> None:
    def resolve(_: str, ref: str) -> Problem:
        return Problem("", ref, "no such branch", allowed="a branch", next_step="look")

    refs = {"torch_ref": "one", "vision_ref": "two", "magma_source": "git", "magma_ref": "three"}
    with pytest.raises(ConfigError) as error:
        spec_in(ROOT / "reqs", "", resolve, **COMPILED, **refs)
    found = [(it.field, it.value, it.allowed, it.next_step) for it in error.value.problems]
    assert found == [
        ("TORCH_REF", "one", "a branch", "look"),
        ("VISION_REF", "two", "a branch", "look"),
        ("MAGMA_REF", "three", "a branch", "look"),
    ]


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """Make a repository with a commit, a branch ``work`` and an annotated tag ``v1``."""
    folder = tree(tmp_path / "repo")
    me = ["-c", "user.name=me", "-c", "user.email=me@host.invalid"]
    git = ["git", "-C", str(folder)]
    subprocess.run([*git, *me, "commit", "-q", "-m", "one"], check=True)
    subprocess.run([*git, "branch", "work"], check=True)
    subprocess.run([*git, *me, "tag", "-a", "v1", "-m", "one"], check=True)
    return folder


def head(folder: Path) -> str:
    git = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("ref", ["work", "v1"])
def test_a_repository_is_asked_where_a_branch_or_a_tag_stands(ref: str, repo: Path) -> None:
    assert repository.commit(str(repo), ref) == head(repo)
    mirror = ("https://git.invalid/", f"{repo.parent}/")
    assert repository.commit("https://git.invalid/repo", ref, mirror) == head(repo)
    # The mirror knows nothing of a login at the place that it stands in for.
    assert repository.commit("https://me:secret@git.invalid/repo", ref, mirror) == head(repo)


def test_a_branch_that_is_not_there_is_named(repo: Path) -> None:
    answer = repository.commit(str(repo), "wrok")
    assert isinstance(answer, Problem)
    assert "no branch and no tag of this name" in answer.why
    assert answer.next_step.startswith("git ls-remote ")
    gone = repository.commit(str(repo.parent / "none"), "work")
    assert isinstance(gone, Problem)
    assert "cannot be asked" in gone.why


def test_without_git_a_branch_cannot_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    answer = repository.commit("https://git.invalid/repo", "main")
    assert isinstance(answer, Problem)
    assert "apt-get install -y git" in answer.next_step


# What it is compiled with


@pytest.mark.parametrize(
    ("settings", "way", "image", "gcc"),
    [
        ({}, "apt", "debian:trixie-slim", "13"),
        ({"linux_distro": "ubuntu", "distro_version": "22.04"}, "image",
         "nvidia/cuda:12.4.1-cudnn-devel-ubuntu22.04", "11"),
        ({"linux_distro": "ubuntu", "cuda_version": "12.6"}, "image",
         "nvidia/cuda:12.6.3-cudnn-devel-ubuntu24.04", "13"),
        ({"pytorch_version_tag": "v2.15.0", "cuda_version": "13.0"}, "wheels",
         "debian:trixie-slim", "14"),
    ],
)  # fmt: skip
def test_the_toolchain_is_what_the_distribution_and_cuda_allow(
    settings: dict[str, str], way: str, image: str, gcc: str
) -> None:
    it = spec(**COMPILED | settings)
    torch, vision = it.compiled
    assert torch.toolchain == vision.toolchain
    tools = torch.toolchain
    assert (tools.cuda_source, tools.base.image, tools.gcc) == (way, image, gcc)
    assert tools.python == it.python
    # The image itself never stands on what compiles.
    assert "devel" not in it.base.image
    assert any(pin.startswith("nvidia-cudnn-cu") for pin in tools.libraries)
    assert any("nvcc" in pin for pin in tools.libraries) is (way == "wheels")
    assert (ROOT / "reqs" / tools.tools.name).is_file()


def test_torchvision_alone_needs_no_blas_and_no_cuda_library_of_torchs() -> None:
    (vision,) = wheels(torch_source="index")
    assert vision.toolchain.blas == ""
    assert vision.toolchain.libraries == ()
    assert (vision.torch, vision.torch_key) == ("2.6.0", "")


def test_wheels_say_what_they_run_with() -> None:
    torch, vision = wheels()
    assert vision.torch == torch.version == "2.6.0+cu124"
    assert vision.torch_key == torch.key
    assert vision.requires == ()
    assert {"triton==3.2.0", "nvidia-cudnn-cu12==9.1.0.70"} <= set(torch.requires)
    assert spec(**COMPILED).torch is not None
    pins = {name: it.torch.pins for name, it in (
        ("both", spec(**COMPILED)),
        ("torch", spec(**TORCH_ALONE)),
        ("vision", spec(**COMPILED, torch_source="index")),
    ) if it.torch}  # fmt: skip
    assert pins == {
        "both": ("torch==2.6.0+cu124", "torchvision==0.21.0+cu124"),
        "torch": ("torch==2.13.0+cu130", "torchvision==0.28.0"),
        "vision": ("torch==2.6.0", "torchvision==0.21.0+cu124"),
    }


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, "apt"),
        ({"magma_source": "off"}, None),
        ({"magma_source": "archive"}, "archive"),
        ({"magma_source": "git"}, "git"),
        ({"linux_distro": "ubuntu", "cuda_version": "12.6"}, "archive"),
        ({"pytorch_version_tag": "v2.15.0"}, None),
        ({"cca": "7.0"}, "apt"),
        # The distribution's has no code for it.
        ({"cca": "6.1"}, "archive"),
    ],
    ids=str,
)
def test_magma_comes_from_where_it_serves(settings: dict[str, str], kind: str | None) -> None:
    torch, vision = wheels(**settings)
    assert (torch.magma and torch.magma.source.kind) == kind
    assert dict(torch.flags)["USE_MAGMA"] == ("0" if kind is None else "1")
    assert vision.magma is None
    if kind == "archive":
        assert torch.magma is not None
        assert len(torch.magma.source.sha256) == 64


# Flags


def flags(cca: str = "8.6", kind: Any = "git", **more: Any) -> dict[str, str]:
    given: dict[str, Any] = {"mkl": True, "magma": True, "compress": False, "asked": {}}
    given |= {"version": "2.7.0", "packages": []}
    return torch_flags(arches(cca), kind, **given | more)


@pytest.mark.parametrize(
    ("cca", "flash"), [("7.5", "0"), ("7.5+PTX", "0"), ("8.0", "1"), ("6.1 9.0a", "1")]
)
def test_flash_attention_is_compiled_only_where_it_runs(cca: str, flash: str) -> None:
    assert flags(cca)["USE_FLASH_ATTENTION"] == flash


@pytest.mark.parametrize(("cca", "does"), [("3.7", "0"), ("5.0", "1"), ("3.5 8.6", "1")])
def test_memory_efficient_attention_begins_with_maxwell(cca: str, does: str) -> None:
    assert flags(cca)["USE_MEM_EFF_ATTENTION"] == does


def test_what_the_user_asks_for_goes_before_all() -> None:
    asked = {"USE_FLASH_ATTENTION": "0", "USE_CUDNN": "0", "MY_OWN": "a=b"}
    assert asked.items() <= flags(asked=asked).items()
    assert flags(kind="apt", asked={"USE_FBGEMM": "1"})["USE_FBGEMM"] == "1"
    told = dict(wheels(torch_flags="USE_FLASH_ATTENTION=0 MY_OWN=a=b")[0].flags)
    assert (told["USE_FLASH_ATTENTION"], told["MY_OWN"]) == ("0", "a=b")


def test_what_is_linked_is_what_the_flags_say() -> None:
    assert (flags()["BLAS"], flags(mkl=False)["BLAS"]) == ("MKL", "OpenBLAS")
    assert (flags()["USE_MAGMA"], flags(magma=False)["USE_MAGMA"]) == ("1", "0")
    assert "TORCH_NVCC_FLAGS" not in flags()
    assert "-compress-mode=size" in flags(compress=True)["TORCH_NVCC_FLAGS"]
    assert flags(kind="apt")["USE_SYSTEM_LIBS"] == "1"
    assert "USE_SYSTEM_LIBS" not in flags()
    assert dict(wheels(mkl_mode="exclude")[0].flags)["BLAS"] == "OpenBLAS"


def test_what_only_some_cuda_versions_have_is_linked_where_the_wheel_requires_it() -> None:
    on = {"linux_distro": "ubuntu", "distro_version": "22.04", "python_version": "3.10"}
    for tag, cuda, cufile in (
        ("v2.6.0", "12.6", "0"), ("v2.7.0", "11.8", "0"), ("v2.7.0", "12.6", "1"),
    ):  # fmt: skip
        torch = wheels(**on, pytorch_version_tag=tag, cuda_version=cuda)[0]
        told = dict(torch.flags)
        assert told["USE_CUFILE"] == cufile
        has_cusparselt = any("cusparselt" in pin for pin in torch.requires)
        assert told["USE_CUSPARSELT"] == ("1" if has_cusparselt else "0")


def test_flags_of_torch_do_not_reach_torchvision() -> None:
    _, vision = wheels(torch_flags="USE_GLOO=0")
    own = vision_flags(compress=False)
    assert dict(vision.flags) == own
    assert own["TORCHVISION_USE_JPEG"] == own["TORCHVISION_USE_PNG"] == "1"


def test_gpu_code_is_compressed_for_size_where_nvcc_can() -> None:
    on = {"linux_distro": "ubuntu", "pytorch_version_tag": "v2.7.0"}
    for cuda, does in (("12.6", False), ("12.8", True)):
        torch, vision = wheels(**on, cuda_version=cuda)
        assert ("-compress-mode=size" in dict(torch.flags).get("TORCH_NVCC_FLAGS", "")) is does
        assert ("-compress-mode=size" in dict(vision.flags)["NVCC_FLAGS"]) is does


@pytest.mark.parametrize(
    ("flag", "setting"),
    [
        ("TORCH_CUDA_ARCH_LIST=8.0", "CCA"),
        ("USE_MAGMA=1", "MAGMA_SOURCE"),
        ("USE_CUDA=0", "CUDA_VERSION"),
        ("USE_ROCM=1", "CUDA_VERSION"),
        ("USE_XPU=1", "CUDA_VERSION"),
        ("BLAS=OpenBLAS", "MKL_MODE"),
        ("MAX_JOBS=3", "MAX_JOBS"),
        ("PYTORCH_BUILD_VERSION=9", "PYTORCH_VERSION_TAG"),
    ],
)
def test_a_flag_that_has_a_setting_is_refused(flag: str, setting: str) -> None:
    with pytest.raises(ConfigError) as refused:
        wheels(torch_flags=flag)
    (problem,) = refused.value.problems
    assert (problem.field, problem.value) == ("TORCH_FLAGS", flag)
    assert f"set {setting}" in problem.next_step


def test_the_words_of_cmake_for_a_switch_are_one_flag() -> None:
    assert len({keys(torch_flags=f"USE_KINETO={word}") for word in ("0", "OFF", "False")}) == 1


def test_the_order_of_architectures_makes_no_other_wheel() -> None:
    for one, other in (("7.5 8.6", "8.6;7.5"), ("8.6+PTX", "8.6 8.6+PTX"), ("Turing", "7.5+PTX")):
        assert keys(cca=one) == keys(cca=other)


@pytest.mark.parametrize(
    ("settings", "field", "why"),
    [
        ({"torch_url": "gone.tar.gz"}, "TORCH_URL", "is no file of this machine"),
        ({"torch_sha256": SHA256}, "TORCH_SHA256", "is not the hash of"),
    ],
)
def test_a_tarball_is_looked_at_before_anything_starts(
    settings: dict[str, str], field: str, why: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as refused:
        wheels(**tarball(tmp_path) | settings)
    (problem,) = refused.value.problems
    assert problem.field == field
    assert why in problem.why


def test_a_repository_on_this_machine_is_no_repository_to_an_engine() -> None:
    with pytest.raises(ConfigError) as refused:
        wheels(torch_url="/home/me/pytorch")
    (problem,) = refused.value.problems
    assert problem.field == "TORCH_URL"
    assert "TORCH_SOURCE=path" in problem.next_step


@pytest.mark.parametrize(
    ("part", "ref", "setting"),
    [
        ("torch", "v2.5.1", "PYTORCH_VERSION_TAG=v2.5.1"),
        ("torch", "v2.7.0-rc1", "PYTORCH_VERSION_TAG=v2.7.0"),
        ("vision", "v0.20.1", "TORCHVISION_VERSION_TAG=v0.20.1"),
    ],
)
def test_the_tag_of_one_release_is_not_built_as_another(part: str, ref: str, setting: str) -> None:
    with pytest.raises(ConfigError) as refused:
        wheels(**{f"{part}_ref": ref})
    (problem,) = refused.value.problems
    assert problem.field == f"{part.upper()}_REF"
    assert problem.next_step == f"set {setting}"


@pytest.mark.parametrize(
    ("settings", "field", "value"),
    [
        ({"magma_source": "git", "magma_ref": "v2.10.0"}, "MAGMA_REF", "v2.10.0"),
        ({"magma_source": "git", "magma_ref": "v2.10.0-rc1"}, "MAGMA_REF", "v2.10.0-rc1"),
        ({"magma_url": "https://me:s3cret@host.invalid/magma-2.10.0.tar.gz?sign=s3cret"},
         "MAGMA_URL", "magma-2.10.0.tar.gz"),
        ({"magma_url": "/nonexistent/magma-2.10.0.tar.gz"}, "MAGMA_URL", "magma-2.10.0.tar.gz"),
    ],
    ids=str,
)  # fmt: skip
def test_one_magma_is_not_compiled_as_another(
    settings: dict[str, str], field: str, value: str
) -> None:
    given = {"magma_source": "archive", "magma_sha256": SHA256} | settings
    with pytest.raises(ConfigError) as refused:
        wheels(**given)
    (problem,) = refused.value.problems
    assert (problem.field, problem.value) == (field, value)
    assert problem.next_step == "set MAGMA_RELEASE=2.10.0"
    assert "s3cret" not in str(problem)


@pytest.mark.parametrize("name", ["pytorch-v2.7.0.tar.gz", "v2.7.0.tar.gz"])
def test_a_tarball_of_another_torch_is_refused(name: str) -> None:
    url = f"https://host.invalid/releases/{name}"
    with pytest.raises(ConfigError, match=r"is a release of 2\.7\.0, and 2\.6\.0 is what is to be"):
        wheels(torch_source="archive", torch_url=url, torch_sha256=SHA256)


def test_the_magma_that_is_proposed_in_its_place_is_compiled() -> None:
    url = "https://host.invalid/magma-2.10.0.tar.gz"
    tarball, tag = {"magma_url": url, "magma_sha256": SHA256}, {"magma_ref": "v2.10.0"}
    for way in (tarball, tag | {"magma_source": "git"}):
        torch, _ = wheels(pytorch_version_tag="v2.13.0", magma_release="2.10.0", **way)
        assert torch.magma is not None
        assert torch.magma.version == "2.10.0"


@pytest.mark.parametrize(
    "name", ["magma-2.9.0.tar.gz", "magma-2.9.0-patched.tgz", "ours-1.2.3.tar.gz"]
)
def test_a_magma_of_the_chosen_version_or_of_no_known_one_is_taken(name: str) -> None:
    url = f"https://host.invalid/magma-2.10.0/{name}?of=/magma-2.10.0"
    torch, _ = wheels(magma_source="archive", magma_url=url, magma_sha256=SHA256)
    assert torch.magma is not None
    assert torch.magma.source.location == url


@pytest.mark.parametrize(
    ("mode", "torch", "vision"), [("exclude", "2.6.0", "0.21.0"), ("include", "2.7.0", "0.22.0")]
)
def test_the_version_of_a_wheel_goes_before_the_tag_as_build_mode_says(
    mode: str, torch: str, vision: str
) -> None:
    both = {
        "pytorch_version": "2.6.0", "pytorch_version_tag": "v2.7.0",
        "torchvision_version": "0.21.0", "torchvision_version_tag": "v0.22.0",
    }  # fmt: skip
    on = {"linux_distro": "ubuntu", "cuda_version": "12.6", "vision_source": "git"}
    found = spec(**COMPILED | both | on | {"build_mode": mode}).torch
    assert found is not None
    assert (found.version, found.vision) == (torch, vision)


def test_a_refusal_names_the_setting_that_was_read() -> None:
    both = {"pytorch_version": "2.6.9", "pytorch_version_tag": "v2.6.0"}
    for settings, field, value in (
        ({"build_mode": "exclude"} | both, "PYTORCH_VERSION", "2.6.9"),
        ({"pytorch_version": "2.6.9", "pytorch_version_tag": ""}, "PYTORCH_VERSION", "2.6.9"),
        ({"pytorch_version": "2.6.0", "pytorch_version_tag": "v2.6.9"},
         "PYTORCH_VERSION_TAG", "v2.6.9"),
    ):  # fmt: skip
        with pytest.raises(ConfigError) as refused:
            wheels(vision_source="git", **settings)
        (problem,) = refused.value.problems
        assert (problem.field, problem.value) == (field, value)
        assert f"set {field}=" in problem.next_step


@pytest.mark.parametrize(
    ("base_image", "says"),
    [
        ("", "set CUDA_SOURCE=wheels, or name a mirror of docker.io"),
        ("mirror.invalid/ubuntu:24.04", "set CUDA_SOURCE=wheels, or name a mirror of docker.io"),
        ("nvidia/cuda:13.0.2-cudnn-devel-ubuntu24.04", "set BASE_IMAGE"),
    ],
)
def test_an_image_to_compile_in_that_cannot_be_pulled_has_another_way_than_a_base(
    base_image: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unavailable(_: object) -> str:
        return "denied"

    monkeypatch.setattr("pipeline.engine.session.why_unavailable", unavailable)
    on = {"linux_distro": "ubuntu", "pytorch_version_tag": "v2.9.0", "cuda_version": "13.0"}
    given = COMPILED | on | {"base_image": base_image}
    base = spec(**given).compiled[0].toolchain.base
    settings, report = load(given, environ={}).settings, cast("Report", None)
    with pytest.raises(BuildError) as refused:
        asyncio.run(run._base(base, settings, report, None, None))
    assert base.image in refused.value.what
    assert refused.value.next_step.startswith(says)


def test_torchvision_alone_is_held_to_what_compiles() -> None:
    alone = {"build_mode": "exclude", "vision_source": "git"}
    for wrong in ({"cca": "12.0f"}, {"cca": "12.0"}, {"cca": "3.5"}):
        with pytest.raises(ConfigError) as refused:
            wheels(**alone | wrong)
        assert {problem.field for problem in refused.value.problems} == {"CCA"}


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, []),
        ({"build_mode": "exclude", "torch_ref": "main", "torch_flags": "USE_GLOO=0"},
         ["TORCH_REF", "TORCH_FLAGS"]),
        ({"torch_source": "apt", "torch_url": "https://git.invalid/t", "torch_sha256": SHA256},
         ["TORCH_URL", "TORCH_SHA256"]),
        ({"magma_url": "https://git.invalid/m"}, ["MAGMA_URL"]),
        ({"magma_source": "git", "magma_url": "https://git.invalid/m"}, []),
        ({"magma_source": "off", "magma_release": "2.9.0"}, ["MAGMA_RELEASE"]),
        ({"cudnn_version": "9"}, ["CUDNN_VERSION"]),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_set_and_changes_nothing_is_told(
    settings: dict[str, str], names: list[str]
) -> None:
    given = COMPILED | settings
    told = unread(load(given, environ={}).settings, spec(**given))
    assert [line.partition(" ")[0] for line in told] == names


def test_a_python_that_the_build_tools_lack_is_refused() -> None:
    with pytest.raises(ConfigError) as refused:
        wheels(python_version="3.9")
    assert {problem.field for problem in refused.value.problems} == {"PYTHON_VERSION"}
