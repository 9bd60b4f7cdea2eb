"""Which published image a machine gets, and why not another."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pipeline.doctor import fit
from pipeline.listing import Image
from pipeline.spec import code_arches
from tests.unit.running import run
from tests.unit.specs import arches

WHEEL = "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120 compute_120"


def image(
    torch: str, cuda: str, code: str = WHEEL, *, size: int = 3, target: str = "train", **more: str
) -> Image:
    told = {"torch": torch, "cuda": cuda, "arches": code, "target": target, **more}
    labels = {f"dev.cresset.{name}": text for name, text in told.items() if text}
    tag = f"{torch}-{cuda}-{size}"
    return Image("localhost:5000/cresset", f"sha256:{tag}", (tag,), size, labels)


def order(images: Sequence[Image], gpus: str, driver: str = "") -> list[str]:
    judged = fit.judged(images, arches(gpus), driver)
    return [("" if not it.why_not else "not ") + it.image.tag for it in judged]


def why_not(it: Image, gpus: str, driver: str = "") -> str:
    (judged,) = fit.judged([it], arches(gpus), driver)
    return "; ".join(judged.why_not)


def test_the_newest_torch_that_runs_goes_first() -> None:
    images = [image("2.9.0", "12.8"), image("2.15.0", "13.2"), image("2.15.0", "12.6")]
    assert order(images, "8.6") == ["2.15.0-13.2-3", "2.15.0-12.6-3", "2.9.0-12.8-3"]
    assert order(images, "8.6", "550") == ["2.15.0-12.6-3", "2.9.0-12.8-3", "not 2.15.0-13.2-3"]


def test_code_goes_before_ptx_and_the_smaller_of_two_that_are_alike_first() -> None:
    images = [image("2.15.0", "13.2", "sm_80 compute_80"), image("2.14.1", "13.0", "sm_90")]
    assert order(images, "9.0") == ["2.14.1-13.0-3", "2.15.0-13.2-3"]
    alike = [image("2.15.0", "13.2", size=9), image("2.15.0", "13.2", size=1)]
    assert order(alike, "8.6") == ["2.15.0-13.2-1", "2.15.0-13.2-9"]


def test_every_gpu_of_a_machine_is_served() -> None:
    assert why_not(image("2.6.0", "12.4", "sm_86"), "8.6 9.0").startswith("no code for 9.0")


def test_why_an_image_does_not_run_is_said() -> None:
    assert why_not(image("2.15.0", "13.2"), "6.1").startswith("no code for 6.1: it has 7.5 8.0")
    assert "driver" in why_not(image("2.15.0", "13.2"), "8.6", "470.57")
    newer = image("9.0.0", "99.0", driver="900.1")
    assert "900.1" in why_not(newer, "8.6", "580")
    assert why_not(newer, "8.6", "900.2") == ""


def test_images_without_torch_and_of_other_targets_are_not_asked_for() -> None:
    simple = image("", "", "")
    devel = image("2.15.0", "13.2", target="devel")
    assert order([simple, devel], "8.6") == []


def test_gpu_code_is_read_from_the_label() -> None:
    assert image("2.6.0", "12.4", "sm_86 sm_90a compute_90").arches == tuple(
        code_arches(["sm_86", "sm_90a", "compute_90"])
    )
    assert image("2.6.0", "12.4", WHEEL).gpus == "7.5 8.0 8.6 9.0 10.0 12.0+PTX"


IMAGES = [image("2.15.0", "13.2", python="3.13"), image("2.14.1", "12.6", python="3.12")]


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.listing.images", lambda *_, **__: IMAGES)


@pytest.mark.usefixtures("published", "checkout")
def test_find_prints_the_reference_alone_and_its_reasons_elsewhere() -> None:
    ran = run("find", "--registry", "localhost:5000", "--cca", "8.6", "--driver", "550")
    assert (ran.code, ran.out) == (0, f"{IMAGES[1].ref}\n")
    assert f"{IMAGES[0].tag}: CUDA 13.2 needs driver" in ran.err
    assert f"{IMAGES[1].tag}: runs" in ran.err


@pytest.mark.usefixtures("published", "checkout")
def test_find_takes_versions_that_are_set() -> None:
    found = run("find", "--registry=localhost:5000", "--cca=8.6", "--python-version=3.12")
    assert found.out == f"{IMAGES[1].ref}\n"


@pytest.mark.usefixtures("published", "checkout")
def test_where_none_fits_find_says_what_would() -> None:
    ran = run("find", "--registry=localhost:5000", "--cca=6.1", "--driver=580")
    assert ran.code == 3
    assert ran.out == ""
    assert "next: `make build" in ran.err
    assert "6.1" in ran.err
    told = run("find", "--registry=localhost:5000", "--cca=6.1", "--json")
    assert told.code == 3
    assert '"ref": null' in told.out


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "REGISTRY"),
        (["--registry=localhost:5000", "--driver=new"], "--driver='new'"),
        (["--registry=localhost:5000", "--cca=x"], "CCA='x'"),
    ],
)
def test_what_find_cannot_understand_is_refused(argv: list[str], says: str) -> None:
    ran = run("find", *argv)
    assert ran.code == 2
    assert says in ran.err
