"""Requirements files: what users may write, and what of it makes another image."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import reqs
from pipeline.spec import ReqsFile
from tests.unit.specs import spec, spec_in


@pytest.fixture
def folder(checkout: Path) -> Path:
    return checkout / "reqs"


def put(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def apt(folder: Path, text: str) -> None:
    (folder / reqs.APT_TRAIN).write_text(text)


def pip(folder: Path, text: str) -> None:
    (folder / reqs.PIP_TRAIN).write_text(text)


@pytest.mark.parametrize(
    ("line", "packages"),
    [
        ("git", ["git"]),
        ("  git  # for sources", ["git"]),
        ("# git", []),
        ("", []),
        ("git==1:2.47.2-0.1", ["git=1:2.47.2-0.1"]),
        ("git=1:2.47.2-0.1", ["git=1:2.47.2-0.1"]),
        ("git == 1:2.47.*", ["git=1:2.47.*"]),
        ("libstdc++6", ["libstdc++6"]),
        ("libc6:i386", ["libc6:i386"]),
        ("git; python_version >= '3.13'", ["git"]),
        ("git; python_version < '3.13'", []),
        ("git==1.0 ; platform_machine == 'x86_64'  # ours", ["git=1.0"]),
        ("git; platform_machine == 'aarch64'", []),
        ("git; sys_platform == 'win32' or python_full_version > '3.12.5'", ["git"]),
    ],
)
def test_an_apt_line(line: str, packages: list[str]) -> None:
    assert reqs.apt_packages(line, python="3.13", file="apt.txt") == (packages, [])


def test_an_apt_mistake_names_its_line_and_spares_the_others() -> None:
    packages, problems = reqs.apt_packages("git\ngit lfs\ncurl\n", python="3.13", file="apt.txt")
    assert packages == ["git", "curl"]
    assert [(it.field, it.value) for it in problems] == [("apt.txt:2", "git lfs")]


def test_an_apt_marker_is_judged_for_the_python_of_the_image(folder: Path) -> None:
    apt(folder, "git; python_version < '3.13'\n")
    assert spec_in(folder).apt == ()
    assert spec_in(folder, python_version="3.12").apt == ("git",)


def test_a_comment_in_the_apt_file_makes_no_other_image(folder: Path) -> None:
    apt(folder, "git\n")
    before = spec_in(folder)
    apt(folder, "# for sources\n\ngit  # and for nothing else\n")
    assert spec_in(folder).key == before.key
    apt(folder, "git\ncurl\n")
    assert spec_in(folder).key != before.key


@pytest.mark.parametrize("how", ["-r {}", "-r{}", "--requirement={}", "-c {}", "--constraint {}"])
def test_what_a_pip_file_includes_enters_the_key(how: str, folder: Path) -> None:
    pip(folder, how.format("more.txt"))
    put(folder, more="einops\n")
    before = spec_in(folder)
    assert [file.name for file in before.pip] == [reqs.PIP_TRAIN, "more.txt"]
    put(folder, more="einops  # a comment is bytes too\n")
    assert spec_in(folder).key != before.key


def test_includes_are_followed_from_where_they_stand_and_each_once(folder: Path) -> None:
    pip(folder, "-r sub/a.txt\n-r b.txt\n")
    put(folder, sub__a="-r b.txt\n-r ../b.txt\n", sub__b="", b=f"-r ../reqs/{reqs.PIP_TRAIN}\n")
    files = [file.name for file in spec_in(folder).pip]
    assert sorted(files) == sorted([reqs.PIP_TRAIN, "sub/a.txt", "sub/b.txt", "b.txt"])
    assert files[0] == reqs.PIP_TRAIN


def test_a_wheel_beside_the_file_enters_the_key(folder: Path) -> None:
    pip(folder, "./mine-1.0-py3-none-any.whl\n")
    wheel = folder / "mine-1.0-py3-none-any.whl"
    wheel.write_bytes(b"\x00one")
    before = spec_in(folder)
    wheel.write_bytes(b"\x00two")
    assert spec_in(folder).key != before.key


def test_a_link_that_leads_outside_is_outside(folder: Path) -> None:
    (folder.parent / "secret.txt").write_text("einops\n")
    (folder / "link.txt").symlink_to("../secret.txt")
    pip(folder, "-r link.txt\n")
    _, problems = reqs.pip_files(folder, reqs.PIP_TRAIN)
    assert [(it.value, "outside" in it.why) for it in problems] == [("link.txt", True)]


@pytest.mark.parametrize(
    "line",
    [
        "einops",
        "torch",
        "torch==2.15.0",
        "torch>=2",
        "torch==1; python_version < '3'",
        "einops==0.8.0 --hash=sha256:00",
        "einops==0.8.0 \\\n    --hash=sha256:00 \\\n    --hash=sha256:11",
        "uvicorn[standard]>=0.1; python_version > '3.8'  # why",
        "mine @ https://host/mine.whl",
        "--extra-index-url https://host/simple",
        "-e ./mine",
        "",
    ],
)
def test_a_pip_line_that_is_let_be(line: str, folder: Path) -> None:
    pip(folder, line)
    file = ReqsFile(name=reqs.PIP_TRAIN, sha256="")
    assert reqs.check_pip(folder, spec().model_copy(update={"pip": (file,)})) == []
