"""What is written on an image for those who look before they pull."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.host import repository
from pipeline.labels import ARCHES, PROJECT, labels
from pipeline.stages import verify
from tests.unit.specs import spec

DIGEST = f"sha256:{'5' * 64}"
ORIGIN = f"image docker.io/library/debian:trixie@{DIGEST}"


def test_an_image_says_what_is_in_it_and_which_driver_it_needs() -> None:
    written = labels(spec(pytorch_version_tag="v2.6.0", cuda_version="12.4"), ORIGIN)
    own = {name.rpartition(".")[2]: text for name, text in written.items() if "cresset." in name}
    assert own | {"key": "", "version": ""} == {
        "key": "", "version": "", "target": "train", "python": "3.13", "cuda": "12.4",
        "torch": "2.6.0", "torchvision": "0.21.0", "driver": "525.60.13", "base": ORIGIN,
    }  # fmt: skip
    assert written["org.opencontainers.image.base.digest"] == DIGEST


OCI = {
    f"org.opencontainers.image.{name}"
    for name in (
        "title", "description", "version", "vendor", "url", "documentation", "source", "revision",
        "licenses", "base.name", "base.digest",
    )
}  # fmt: skip
OURS = {f"dev.cresset.{name}" for name in ("key", "target", "python", "base", "version")}
OF_TORCH = {f"dev.cresset.{name}" for name in ("cuda", "torch", "torchvision", "driver")}


def test_an_image_has_these_labels_and_no_other() -> None:
    # Without when it was made, by which the same image would get another digest each time.
    written = labels(spec(), ORIGIN, PROJECT, "ab" * 20)
    assert written.keys() == OCI | OURS | OF_TORCH
    assert ARCHES not in written, "it is told once the image is checked"
    # Outside a checkout there is no commit.
    outside = labels(spec(), ORIGIN)
    assert outside.keys() == written.keys() - {"org.opencontainers.image.revision"}


def test_an_image_without_torch_says_nothing_of_it() -> None:
    written = labels(spec("simple"), f"bootstrap trixie.oci.tar@{DIGEST}", PROJECT, "ab" * 20)
    assert all(written.values())
    # It is the digest of a file, and not that of an image which anybody could pull.
    assert written.keys() == OCI - {"org.opencontainers.image.base.digest"} | OURS


def test_the_commit_of_the_checkout_is_on_the_image() -> None:
    written = labels(spec("simple"), ORIGIN, "https://git.example/team/cresset", "ab" * 20)
    assert written["org.opencontainers.image.source"] == "https://git.example/team/cresset"
    assert written["org.opencontainers.image.revision"] == "ab" * 20
    assert labels(spec("simple"), ORIGIN)["org.opencontainers.image.source"] == PROJECT


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://me:token@git.example/team/cresset.git", "https://git.example/team/cresset"),
        ("git@git.example:team/cresset.git", "https://git.example/team/cresset"),
        ("ssh://git@git.example:2222/team/cresset", "https://git.example/team/cresset"),
        ("https://git.example/team/cresset?token=secret", "https://git.example/team/cresset"),
        ("/srv/git/cresset", ""),
        ("file:///srv/git/cresset", ""),
        ("", ""),
    ],
)
def test_a_repository_is_told_as_a_browser_takes_it(url: str, told: str) -> None:
    assert repository.web(url) == told


def git(*words: str) -> str:
    named = ["-c", "user.name=tests", "-c", "user.email=tests@example.com"]
    done = subprocess.run(["git", *named, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_a_checkout_is_known_by_its_remote_and_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert repository.checkout() == ("", "")
    git("init", "--quiet")
    git("config", "remote.origin.url", "git@git.example:team/cresset.git")
    Path("file").write_text("1")
    git("add", "file")
    git("commit", "--quiet", "--message=first")
    head = git("rev-parse", "HEAD")
    assert repository.checkout() == ("https://git.example/team/cresset", head)
    Path("file").write_text("2")
    assert repository.checkout()[1] == f"{head}-dirty"


@pytest.mark.parametrize(
    ("torch", "told"),
    [
        (None, []),
        ({"code": {}, "arches": ["compute_120", "sm_120", "sm_75"]},
         ["sm_75", "sm_120", "compute_120"]),
        ({"code": {"torch/lib/a.so": ["sm_86", "compute_86"], "nvidia/b.so": ["sm_70"]},
          "arches": ["sm_90"]}, ["sm_86", "compute_86"]),
    ],
)  # fmt: skip
def test_the_gpu_code_of_an_image_is_told_from_what_is_in_it(
    torch: dict[str, Any] | None, told: list[str]
) -> None:
    assert verify.gpu_code({"torch": torch}) == told
