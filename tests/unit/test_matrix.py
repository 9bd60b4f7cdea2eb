"""The matrix: what its file may say, the cells it makes, and what the verb prints of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import settings as how
from hypothesis import strategies as st

from pipeline import lock as locks
from pipeline import matrix, plan, publish, tags, validate
from pipeline.compat import lookup, tables
from pipeline.errors import ConfigError, NothingSelected, Problem
from pipeline.matrix import Cell
from pipeline.once import Once
from pipeline.settings import NAMES, Settings, load
from pipeline.spec import Arch, ImageSpec, WheelSpec
from tests.unit.running import ROOT, Result, run
from tests.unit.specs import spec
from tests.unit.test_lock import lock_of

WHEELS = """
[axes]
PYTHON_VERSION = ["3.12", "3.13"]
CUDA_VERSION = ["13.0", "13.2"]
[[exclude]]
PYTHON_VERSION = "3.12"
CUDA_VERSION = "13.2"
reason = "nobody has both"
[[include]]
SERVICE = "simple"
reason = "for machines without a GPU"
"""
VARIANTS = [
    "py312-torch2.15.0-cu130-trixie",
    "py313-torch2.15.0-cu130-trixie",
    "py313-torch2.15.0-cu132-trixie",
    "simple-py313-trixie",
]


def read(text: str, folder: Path) -> matrix.Matrix:
    file = folder / "images.toml"
    file.write_text(text)
    return matrix.read(file)


def cells(text: str, folder: Path, **settings: str) -> tuple[Cell, ...]:
    own = load(settings, environ={}, env_file=Path("/nonexistent/.env")).settings
    return matrix.cells(read(text, folder), own, folder=ROOT / "reqs")


def mistakes(text: str, folder: Path, **settings: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        cells(text, folder, **settings)
    return caught.value.problems


def test_the_cells_are_the_axes_less_the_excludes_and_one_more_for_each_include(
    tmp_path: Path,
) -> None:
    found = cells(WHEELS, tmp_path)
    assert [cell.variant for cell in found] == VARIANTS
    assert found[0].settings == {"PYTHON_VERSION": "3.12", "CUDA_VERSION": "13.0"}
    assert found[-1].settings == {"SERVICE": "simple"}


def test_a_cell_is_set_on_top_of_the_settings_of_the_file_and_those_on_top_of_the_users(
    tmp_path: Path,
) -> None:
    text = '[settings]\nDISTRO_VERSION = "12"\n[axes]\nPYTHON_VERSION = ["3.11", "3.12"]\n'
    found = cells(text, tmp_path, distro_version="13", python_version="3.14", tz="Asia/Seoul")
    assert [cell.variant for cell in found] == [
        "py311-torch2.15.0-cu132-bookworm",
        "py312-torch2.15.0-cu132-bookworm",
    ]
    assert {cell.spec.timezone for cell in found} == {"Asia/Seoul"}


def test_settings_that_go_together_are_one_axis(tmp_path: Path) -> None:
    text = """
[axes]
base = [
    { LINUX_DISTRO = "debian", DISTRO_VERSION = "12" },
    { LINUX_DISTRO = "ubuntu", DISTRO_VERSION = "24.04" },
]
PYTHON_VERSION = ["3.12"]
"""
    found = cells(text, tmp_path)
    assert [cell.spec.base.codename for cell in found] == ["bookworm", "noble"]


def test_images_of_one_key_are_one_cell(tmp_path: Path) -> None:
    (cell,) = cells('[axes]\nSERVICE = ["train", "full"]\nCCA = ["8.0", "8.6"]', tmp_path)
    assert cell.settings == {"SERVICE": "train", "CCA": "8.0"}


REPEATED = [
    ("[axes]\nIMAGE_NAME = ['a', 'b']\nPYTHON_VERSION = ['3.12', '3.13']", "axes",
     "IMAGE_NAME=b", "2 of the images are in the matrix already, with IMAGE_NAME=a",
     "take IMAGE_NAME out, and have a run for each by --image-name"),
    ("[axes]\nREGISTRY = ['localhost:5000', 'localhost:5001']", "axes",
     "REGISTRY=localhost:5001", "1 of the images", "by --registry"),
    ("[axes]\nPYTHON_VERSION = ['3.12']\n[[include]]\nPYTHON_VERSION = '3.12'\n"
     "IMAGE_NAME = 'cresset:stable'\nreason = 'stable'", "include 1",
     "IMAGE_NAME=cresset:stable", "this image is in the matrix already, with IMAGE_NAME=cresset:",
     "take the include out"),
    ("[axes]\ngit = [{GIT_OLD = 'https://a/', GIT_NEW = 'https://b/'}, "
     "{GIT_OLD = 'https://a/', GIT_NEW = 'https://c/'}]", "axes",
     "GIT_NEW=https://c/", "GIT_NEW makes no image another one", "take GIT_NEW out"),
    ("[axes]\nATTEST = ['auto', 'off']", "axes", "ATTEST=off", "ATTEST", "--attest"),
    ("[axes]\nMAX_JOBS = ['1', '2']", "axes", "MAX_JOBS=2", "MAX_JOBS", "--max-jobs"),
    ("[axes]\nof = [{CCA = '8.0', IMAGE_NAME = 'a'}, {CCA = '8.6', IMAGE_NAME = 'b'}]", "axes",
     "IMAGE_NAME=b", "IMAGE_NAME=a", "--image-name"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "where", "value", "why", "step"), REPEATED)
def test_an_image_that_would_be_delivered_twice_is_a_mistake(
    text: str, where: str, value: str, why: str, step: str, tmp_path: Path
) -> None:
    (found,) = mistakes(text, tmp_path)
    assert (found.field, found.value) == (f"{tmp_path}/images.toml: {where}", value)
    assert why in found.why
    assert step in found.next_step


def test_images_that_would_be_delivered_twice_are_told_at_once(tmp_path: Path) -> None:
    include = "[[include]]\nATTEST = 'off'\nreason = 'x'\n"
    found = mistakes(f"[axes]\nIMAGE_NAME = ['a', 'b', 'c']\n{include}{include}", tmp_path)
    fields = [it.field.removeprefix(f"{tmp_path}/images.toml: ") for it in found]
    assert fields == ["axes", "include 1", "include 2"]
    assert "2 of the images" in found[0].why


def test_other_images_may_have_other_names_and_an_include_may_say_what_holds_anyway(
    tmp_path: Path,
) -> None:
    text = """
[axes]
of = [{ DISTRO_VERSION = "12", IMAGE_NAME = "a" }, { DISTRO_VERSION = "13", IMAGE_NAME = "b" }]
[[include]]
IMAGE_NAME = "c"
SERVICE = "simple"
reason = "a shell"
[[include]]
IMAGE_NAME = "c"
SERVICE = "simple"
CCA = "8.6"
reason = "the same shell"
"""
    assert len(cells(text, tmp_path, image_name="c")) == 3


def test_a_value_is_taken_as_its_setting_takes_it(tmp_path: Path) -> None:
    (cell,) = cells('[axes]\nTZ = [":Asia/Seoul"]', tmp_path)
    assert cell.key == spec(tz="Asia/Seoul").key


MISTAKES = [
    ("", "names no image", ""),
    ("[axes", "is not TOML", ""),
    ("[axis]\nTZ = ['UTC']", "not a table of this file", "did you mean axes?"),
    ("[axes]\nPYTHON_VERSION = []", "not of this form", ""),
    ("[axes]\nPYTHON_VERSION = '3.12'", "not of this form", ""),
    ("[axes]\nPYTHON_VERSION = [3.12]", "settings are text", "put it into quotes"),
    ("[axes]\nPYTHON_VERSION = ['']", "settings are text", "take it out"),
    ("[axes]\nPYTHON_VERSION = ['4']", "not a minor version of Python 3", ""),
    ("[axes]\nPYTHON_VERSION = ['3.12', '3.12']", "is in the list twice", "take one out"),
    ("[axes]\nPYTHON_VERSIN = ['3.12']", "not a setting", "did you mean PYTHON_VERSION?"),
    ("[axes]\nENGINE = ['local']", "changes no image", "set it in .env"),
    ("[axes]\nUID = ['1000']", "changes no image", "set it in .env"),
    ("[settings]\nTZ = 'UTC'\n[axes]\nTZ = ['UTC']", "an axis sets it, and settings", "one of"),
    ("[axes]\nTZ = ['UTC']\na = [{TZ = 'UTC'}]", "an axis sets it, and another axis", "one of"),
    ("[axes]\nTZ = ['UTC']\n[[exclude]]\nTZ = 'UTC'", "has a reason", "write reason"),
    ("[axes]\nTZ = ['UTC']\n[[exclude]]\nTZ = 'UTC'\nreason = ' '", "has a reason", "write"),
    ("[axes]\nTZ = ['UTC']\n[[exclude]]\nreason = 'x'", "names no setting", ""),
    ("[axes]\nTZ = ['UTC']\n[[exclude]]\nCCA = '8.6'\nreason = 'x'", "no axis sets it", "take it"),
    ("[axes]\nTZ = ['UTC']\n[[exclude]]\nTZ = 'GMT'\nreason = 'x'", "no combination", "mend it"),
    ("[[include]]\nTZ = 'UTC'", "has a reason", "write reason"),
    ("[include]\nTZ = 'UTC'", "not of this form", ""),
    ("[[settings]]\nTZ = 'UTC'", "not of this form", ""),
    ("[axes]\nTZ = ['UTC', 'Asia/Seoul']", "would have this name in turns", "leave one of them"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "why", "step"), MISTAKES, ids=[it[0] for it in MISTAKES])
def test_a_mistake_in_the_file_is_told_with_what_comes_next(
    text: str, why: str, step: str, tmp_path: Path
) -> None:
    found = mistakes(text, tmp_path)
    assert any(why in it.why and step in it.next_step for it in found), [*map(str, found)]
    assert all(it.field.startswith(str(tmp_path)) or "images" in it.field for it in found)
    assert all(it.allowed or it.next_step for it in found)


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    text = "[axis]\n[axes]\nTZ = ['Asia/Soul']\nPYTHON_VERSION = [3.12]\n[[include]]\nCCA = '8.6'\n"
    fields = [it.field.removeprefix(f"{tmp_path}/images.toml: ") for it in mistakes(text, tmp_path)]
    assert fields == ["axis", "axes.TZ", "axes.PYTHON_VERSION", "include 1.reason"]


def test_no_file_is_told_with_the_option_that_names_another(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No such file(.|\n)*--file"):
        matrix.read(tmp_path / "none.toml")


IMPOSSIBLE = """
[axes]
PYTHON_VERSION = ["3.12", "3.13"]
PYTORCH_VERSION_TAG = ["v2.15.0", "v2.8.0"]
CUDA_VERSION = ["12.6", "12.8"]
"""


def test_what_cannot_be_built_is_a_mistake_with_the_exclude_to_paste(tmp_path: Path) -> None:
    (found,) = mistakes(IMPOSSIBLE, tmp_path)
    assert found.value == "PYTORCH_VERSION_TAG=v2.15.0"
    assert "4 combinations cannot be built" in found.why
    assert found.source
    pasted = "[[exclude]]" + found.next_step.partition("[[exclude]]")[2]
    assert [cell.variant for cell in cells(IMPOSSIBLE + pasted, tmp_path)] == [
        "py312-torch2.8.0-cu126-trixie",
        "py312-torch2.8.0-cu128-trixie",
        "py313-torch2.8.0-cu126-trixie",
        "py313-torch2.8.0-cu128-trixie",
    ]


def test_an_include_that_cannot_be_built_is_told_by_its_place(tmp_path: Path) -> None:
    text = '[[include]]\nPYTHON_VERSION = "3.9"\nreason = "old"\n'
    assert {it.field for it in mistakes(text, tmp_path)} == {
        f"{tmp_path}/images.toml: include 1.PYTHON_VERSION"
    }


def test_one_tag_for_several_images_is_a_mistake(tmp_path: Path) -> None:
    (found,) = mistakes(WHEELS, tmp_path, image_name="cresset:mine")
    assert (found.field, found.value) == ("IMAGE_NAME", "cresset:mine")
    assert "4 images" in found.why


@pytest.mark.parametrize(
    ("only", "skip", "left"),
    [
        ((), (), VARIANTS),
        (("simple*",), (), VARIANTS[3:]),
        (("*cu130*", "simple*"), (), [*VARIANTS[:2], VARIANTS[3]]),
        ((), ("*cu13?*",), VARIANTS[3:]),
        (("py313*",), ("*cu130*", "*x"), [VARIANTS[2]]),
    ],
)
def test_globs_are_matched_with_whole_variants(
    only: tuple[str, ...], skip: tuple[str, ...], left: list[str], tmp_path: Path
) -> None:
    found = matrix.select(cells(WHEELS, tmp_path), only, skip)
    assert [cell.variant for cell in found] == left


def test_globs_that_leave_nothing_end_in_3_with_a_variant_that_is_near(tmp_path: Path) -> None:
    with pytest.raises(
        NothingSelected, match=r"such as py313-torch2\.15\.0-cu132-trixie"
    ) as caught:
        matrix.select(cells(WHEELS, tmp_path), ["py313-torch2.15.0-cu132"])
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("only", [(), ("simple*",)])
def test_a_matrix_that_excludes_all_of_itself_says_so(
    only: tuple[str, ...], tmp_path: Path
) -> None:
    text = "[axes]\nTZ = ['UTC']\n[[exclude]]\nTZ = 'UTC'\nreason = 'x'"
    with pytest.raises(NothingSelected) as caught:
        matrix.select(cells(text, tmp_path), only)
    assert str(caught.value).startswith("the matrix has no image\n")
    assert "take an [[exclude]] out" in str(caught.value)


def test_branches_and_gpus_are_asked_once(tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []
    looked = []

    def resolve(url: str, ref: str) -> str:
        asked.append((url, ref))
        return "c0ffee" * 6 + "beef"

    def gpus() -> list[Arch]:
        looked.append(1)
        return [Arch.parse("8.6")]

    text = """
[settings]
BUILD_MODE = "include"
CCA = "auto"
TORCH_REF = "main"
VISION_REF = "main"
PYTORCH_VERSION_TAG = "v2.9.1"
CUDA_VERSION = "13.0"
[axes]
PYTHON_VERSION = ["3.11", "3.12", "3.13"]
"""
    found = matrix.cells(
        read(text, tmp_path), Settings(), folder=ROOT / "reqs", gpus=gpus, resolve=resolve
    )
    assert len(found) == 3
    assert looked == [1]
    assert sorted(asked) == [
        ("https://github.com/pytorch/pytorch.git", "main"),
        ("https://github.com/pytorch/vision.git", "main"),
    ]


# The file of the repository


def test_the_repositorys_images_can_all_be_built() -> None:
    found = matrix.cells(matrix.read(ROOT / matrix.FILE), Settings(), folder=ROOT / "reqs")
    assert {cell.spec.target for cell in found} >= {"train", "simple"}
    assert any(cell.spec.compiled for cell in found)


# The verb


def listed(*argv: str) -> Result:
    """Return what the verb does in the checkout that the test stands in."""
    Path("images.toml").write_text(WHEELS)
    return run("matrix", *argv)


def in_checkout(*argv: str, published: Mapping[str, list[str]] | None = None) -> tuple[int, str]:
    """Return how the verb ends and what it prints, where registries have these tags."""
    with mock.patch.object(publish, "published", side_effect=(published or {}).__getitem__) as ask:
        done = listed(*argv)
    assert ask.call_count <= 1, "a registry is asked once, not for each cell"
    return done.code, done.out


@pytest.mark.usefixtures("checkout")
def test_the_table_names_each_image() -> None:
    code, out = in_checkout()
    header, *lines = out.splitlines()
    assert code == 0
    assert header.split() == ["VARIANT", "TARGET", "KEY", "PUBLISHED", "COMPILED"]
    assert [line.split()[0] for line in lines] == VARIANTS
    assert {line.split()[3] for line in lines} == {"-"}


REGISTRY = ("--registry", "localhost:5000")


@pytest.mark.usefixtures("checkout")
def test_what_the_registry_has_is_told_and_left_out_of_what_is_missing() -> None:
    key = spec("simple").key
    there = {"localhost:5000/cresset": [f"key-{key}"]}
    _, out = in_checkout(*REGISTRY, "--json", published=there)
    rows = json.loads(out)
    assert [row["published"] for row in rows] == [False, False, False, True]
    assert rows[3]["tags"] == ["simple-py313-trixie", f"key-{key}"]
    assert rows[3]["settings"] == {"SERVICE": "simple"}
    _, out = in_checkout(*REGISTRY, "--json", "--missing", published=there)
    assert [row["variant"] for row in json.loads(out)] == VARIANTS[:3]


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize("option", ["--missing", "--unsigned"])
def test_a_registry_that_the_file_names_is_asked(option: str) -> None:
    text = '[settings]\nREGISTRY = "localhost:5000"\n[axes]\nSERVICE = ["simple", "train"]\n'
    Path("images.toml").write_text(text)
    repository, tag = "localhost:5000/cresset", f"key-{spec('simple').key}"
    signed = frozenset({(repository, tag)})
    with (
        mock.patch.object(publish, "published", side_effect={repository: [tag]}.__getitem__),
        mock.patch("pipeline.attest.attached.are_signed", return_value=signed),
    ):
        done = run("matrix", "--json", option)
    assert done.code == 0, done.err
    assert [row["target"] for row in json.loads(done.out)] == ["train"]


@pytest.mark.usefixtures("checkout")
def test_an_image_without_a_registry_cannot_be_missing_there() -> None:
    Path("images.toml").write_text(
        '[axes]\nof = [{SERVICE = "simple"}, {SERVICE = "train", REGISTRY = "localhost:5000"}]\n'
    )
    done = run("matrix", "--missing")
    assert (done.code, done.out) == (2, "")
    assert "none is named for 1 of 2 images, such as simple-py313-trixie" in done.err


@pytest.mark.usefixtures("checkout")
def test_a_workflow_gets_one_line_of_flat_entries() -> None:
    code, out = in_checkout("--github", "--only", "py312*")
    assert code == 0
    assert out.count("\n") == 1
    (entry,) = json.loads(out)["include"]
    assert all(isinstance(value, str) for value in entry.values())
    assert entry["variant"] == VARIANTS[0]
    words = entry["settings"].splitlines()
    assert words == ["PYTHON_VERSION=3.12", "CUDA_VERSION=13.0"]


@pytest.mark.usefixtures("checkout")
def test_a_workflow_gets_the_key_of_each_image_and_whether_it_is_there() -> None:
    key = spec("simple").key
    there = {"localhost:5000/cresset": [f"key-{key}"]}
    _, out = in_checkout(*REGISTRY, "--github", published=there)
    entries = json.loads(out)["include"]
    assert [it["variant"] for it in entries] == VARIANTS
    assert [it["published"] for it in entries] == ["false", "false", "false", "true"]
    assert entries[3]["key"] == key
    assert [it["key"] for it in entries] == [it["key"] for it in json.loads(listed("--json").out)]
    # Without a registry nobody knows.
    unknown = json.loads(in_checkout("--github")[1])["include"]
    assert {it["published"] for it in unknown} == {""}


@pytest.mark.usefixtures("checkout")
def test_an_image_that_nobody_signed_is_not_there_for_whoever_signs() -> None:
    repository, tag = "localhost:5000/cresset", f"key-{spec('simple').key}"
    there = {repository: [tag]}
    for signed in (False, True):
        said = frozenset({(repository, tag)} if signed else ())
        with mock.patch("pipeline.attest.attached.are_signed", return_value=said):
            _, out = in_checkout(*REGISTRY, "--json", "--unsigned", published=there)
        assert [row["variant"] for row in json.loads(out)] == VARIANTS[: 3 if signed else 4]


@pytest.mark.usefixtures("checkout")
def test_a_matrix_is_held_to_the_lock_of_all_its_images() -> None:
    (unlocked,) = json.loads(listed("--json", "--only", "simple*").out)
    missing = listed("--frozen")
    assert (missing.code, missing.out) == (2, "")
    assert "`python -m pipeline lock --matrix` writes what is missing" in missing.err
    assert missing.err.count("simple-py313-trixie") == 1

    made = spec("simple")
    locks.write(lock_of(made))
    (row,) = json.loads(listed("--json", "--only", "simple*", "--frozen").out)
    assert row["key"] == locks.held(made, lock_of(made)).key != unlocked["key"]
    assert row["variant"] == unlocked["variant"]
    again = run("lock", "--matrix", "--only", "simple*")
    assert (again.code, again.out) == (0, ""), again.err
    assert "nothing moves" in again.err


@pytest.mark.usefixtures("checkout")
def test_a_matrix_with_images_that_no_lock_holds_is_refused_once_for_all() -> None:
    Path("images.toml").write_text("""
        [settings]
        SERVICE = "ngc"
        [axes]
        month = [{ NGC_YEAR = "25", NGC_MONTH = "09" }, { NGC_YEAR = "26", NGC_MONTH = "02" }]
    """)
    for verb in ("lock", "build-only"):
        refusal = run(verb, "--matrix", *(["--locked"] if verb != "lock" else []))
        assert refusal.code == 2
        assert refusal.err.count("a lock does not hold what is installed") == 1
        assert "--skip leaves it out" in refusal.err


@pytest.mark.usefixtures("checkout")
def test_a_workflow_with_nothing_missing_gets_no_entry() -> None:
    key = spec("simple").key
    there = {"localhost:5000/cresset": [f"key-{key}"]}
    only = ("--only", "simple*")
    done = in_checkout(*REGISTRY, "--github", "--missing", *only, published=there)
    assert done == (0, '{"include": []}\n')


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("--only", "x*"), 3, "no image of the matrix is left by --only x*"),
        (("--missing",), 2, "set REGISTRY"),
        (("--python-version", "3.14"), 2, "sets PYTHON_VERSION itself"),
        (("--file", "none.toml"), 2, "cannot be read"),
    ],
)
def test_what_cannot_be_listed_ends_in_words(argv: tuple[str, ...], code: int, words: str) -> None:
    done = listed(*argv)
    assert done.code == code
    assert words in done.err
    assert not done.out


@pytest.mark.usefixtures("checkout")
def test_what_this_machine_adds_to_every_image_is_said() -> None:
    Path(".env").write_text("CCA=8.6\n")
    done = listed()
    assert "CCA is from .env" in done.err


# Planning many is planning each


AXES = {
    "SERVICE": ["", "train", "devel", "simple", "ngc"],
    "BUILD_MODE": ["", "include"],
    "CCA": ["", "3.5", "6.1", "7.0", "8.6", "9.0a", "12.0+PTX", "7.5 8.6", "ampere", "auto"],
    "PYTORCH_VERSION_TAG": ["", *(f"v{it}" for it in tables.torch())],
    "CUDA_VERSION": ["", *tables.cuda()],
    "PYTHON_VERSION": ["", *lookup.pythons()],
    "DISTRO": ["", *map(str, lookup.distributions())],
    "MKL_MODE": ["", "exclude"],
    "TORCH_SOURCE": ["", "index", "git", "apt"],
    "VISION_SOURCE": ["", "index", "git"],
    "MAGMA_SOURCE": ["", "apt", "archive", "git", "off"],
    "CUDA_SOURCE": ["", "image", "apt", "wheels"],
    "TORCH_REF": ["", "main"],
    "TORCH_FLAGS": ["", "USE_DISTRIBUTED=0"],
    "IMAGE_FLAVOR": ["", "base", "devel"],
    "BASE_SOURCE": ["", "bootstrap", "image"],
    "DEB_NEW": ["", "http://mirror"],
    "TZ": ["", "Asia/Seoul"],
    "COMPRESSION": ["", "zstd"],
}  # fmt: skip


def chosen(drawn: Mapping[str, str]) -> Settings:
    """Return the settings of a drawn cell."""
    distro, _, version = drawn["DISTRO"].partition(" ")
    own = {**drawn, "LINUX_DISTRO": distro, "DISTRO_VERSION": version}
    own["DEB_OLD"] = "http://deb.debian.org" if drawn["DEB_NEW"] else ""
    del own["DISTRO"]
    assert own.keys() <= NAMES.keys()
    return load(own, environ={}, env_file=Path("/nonexistent/.env")).settings


def answer(settings: Settings, once: Once | None = None) -> ImageSpec | tuple[Problem, ...]:
    def resolve(url: str, ref: str) -> str:
        return f"{len(url):020}{len(ref):020}"

    try:
        return validate.image_spec(
            settings, folder=ROOT / "reqs", gpus=list, resolve=resolve, once=once
        )
    except ConfigError as error:
        return error.problems


COMPILED = AXES | {
    "SERVICE": ["train", "devel"],
    "BUILD_MODE": ["include"],
    "CCA": ["7.0", "7.5", "8.6", "9.0a", "7.5 8.6+PTX"],
    "PYTORCH_VERSION_TAG": ["v2.4.1", "v2.6.0", "v2.8.0", "v2.10.0"],
    "CUDA_VERSION": ["12.4", "12.6", "12.8"],
    "PYTHON_VERSION": ["3.10", "3.12"],
    "DISTRO": ["ubuntu 22.04", "ubuntu 24.04", "debian 13"],
    "TORCH_SOURCE": ["", "git"],
    "CUDA_SOURCE": [""],
    "IMAGE_FLAVOR": [""],
    "BASE_SOURCE": ["", "image"],
}
"""Axes of which most combinations can be compiled."""


def drawn_of(axes: Mapping[str, list[str]]) -> st.SearchStrategy[dict[str, str]]:
    """Return a strategy of cells, most of whose settings are the first of their axis."""
    one = {name: st.just(it[0]) | st.sampled_from(it) for name, it in axes.items()}
    return st.fixed_dictionaries(one)


SHARED = Once(name.lower() for name in NAMES)
IN_TABLES = {
    "CUDA_SOURCE", "CUDA_VERSION", "DISTRO_VERSION", "MAGMA_SOURCE", "PYTHON_VERSION",
    "PYTORCH_VERSION_TAG",
}  # fmt: skip
"""Settings that are only refused by a row of the tables."""


@how(deadline=None, derandomize=True, max_examples=150)
@given(drawn=drawn_of(AXES) | drawn_of(COMPILED))
@example(drawn=dict.fromkeys(AXES, "") | {"BUILD_MODE": "include", "CCA": "8.6"})
@example(
    drawn=dict.fromkeys(AXES, "") | {"BUILD_MODE": "include", "CCA": "8.6", "SERVICE": "devel"}
)
def test_a_cell_planned_among_others_is_the_one_planned_alone(drawn: dict[str, str]) -> None:
    settings = chosen(drawn)
    alone, among = answer(settings), answer(settings, SHARED)
    if isinstance(alone, ImageSpec):
        assert isinstance(among, ImageSpec)
        assert among == alone
        assert (among.key, among.variant) == (alone.key, alone.variant)
        assert among.key == key_by_pydantic(alone)
        assert [it.name for it in plan.plan(among)][-2:] == ["deliver", "attest"]
        assert tags.key_tag(among).endswith(among.key)
    else:
        assert among == alone
        assert alone
        assert all(it.why and (it.allowed or it.next_step) for it in alone)
        assert all(it.source.startswith("https://") for it in alone if it.field in IN_TABLES)


def key_by_pydantic(spec: ImageSpec) -> str:
    """Return the key as pydantic's own dump gives it, by the definition of a key."""
    shaping = spec.model_dump(mode="json", exclude={"arches", "lock"})
    for wheel in spec.compiled:
        part = "torch_wheel" if wheel.package == "torch" else "vision_wheel"
        shaping["torch"][part] = wheel_key_by_pydantic(wheel)
    return digest(shaping)


def wheel_key_by_pydantic(wheel: WheelSpec) -> str:
    shaping = wheel.model_dump(mode="json")
    for name in ("apt_mirror", "can_bootstrap", "source"):
        del shaping["toolchain"]["base"][name]
    return digest(shaping)


def digest(shaping: object) -> str:
    canonical = json.dumps(shaping, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
