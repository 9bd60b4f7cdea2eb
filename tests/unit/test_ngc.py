"""NVIDIA's image as a base: which month, what it stands on, and what is not to be chosen of it."""

from __future__ import annotations

import itertools

import pytest

from pipeline.compat import lookup, tables, toolkit
from pipeline.compat.tables import numbers
from pipeline.errors import ConfigError
from pipeline.settings import load
from pipeline.validate_source import unread
from tests.unit.running import run
from tests.unit.specs import spec

NEWEST = lookup.newest_ngc_month()


def refused(**settings: str) -> str:
    with pytest.raises(ConfigError) as caught:
        spec("ngc", **settings)
    (problem,) = caught.value.problems
    return str(problem)


@pytest.mark.parametrize(
    ("month", "codename", "python"),
    [
        ("23.05", "jammy", "3.10"),
        ("24.10", "jammy", "3.10"),
        ("24.11", "noble", "3.12"),
        ("25.09", "noble", "3.12"),
        (NEWEST, "noble", "3.12"),
    ],
)
def test_a_month_says_the_image_its_ubuntu_and_its_python(
    month: str, codename: str, python: str
) -> None:
    year, _, number = month.partition(".")
    it = spec("ngc", ngc_year=year, ngc_month=number)
    assert it.base.image == f"nvcr.io/nvidia/pytorch:{month}-py3"
    assert (it.base.codename, it.python) == (codename, python)
    assert it.python_from_distribution
    assert not it.base.can_bootstrap


def test_without_a_month_it_is_the_newest_on_record() -> None:
    year, _, number = NEWEST.partition(".")
    assert spec("ngc") == spec("ngc", ngc_year=year, ngc_month=number)


@pytest.mark.parametrize(
    ("year", "month", "nearest"),
    [("23", "04", "NGC_YEAR=23 and NGC_MONTH=05"), ("39", "01", "NGC_YEAR=26 and NGC_MONTH=02")],
)
def test_an_unknown_month_is_refused_with_those_on_record(
    year: str, month: str, nearest: str
) -> None:
    said = refused(ngc_year=year, ngc_month=month)
    assert f"NGC_MONTH='{year}.{month}'" in said
    assert f"23.05 to {NEWEST}" in said
    assert nearest in said


@pytest.mark.parametrize("half", [{"ngc_year": "25"}, {"ngc_month": "09"}])
def test_half_a_month_is_refused(half: dict[str, str]) -> None:
    assert "NGC_YEAR and NGC_MONTH go together" in refused(**half)


def test_the_months_on_record_have_no_gap_and_do_not_overlap() -> None:
    def after(month: str) -> tuple[int, int]:
        year, number = numbers(month)
        return (year, number + 1) if number < 12 else (year + 1, 1)

    rows = tables.ngc()
    assert all(numbers(row.first) <= numbers(row.last) for row in rows)
    for older, newer in itertools.pairwise(rows):
        assert after(older.last) == numbers(newer.first)


CHOSEN = {
    "build_mode": "include", "cca": "all", "cuda_version": "99.1", "cudnn_version": "8",
    "image_flavor": "base", "linux_distro": "ubuntu", "distro_version": "20.04",
    "magma_source": "off", "mkl_mode": "exclude", "python_version": "3.9",
    "pytorch_version_tag": "v2.6.0", "torch_flags": "USE_NCCL=0", "vision_source": "apt",
}  # fmt: skip


def test_what_is_nvidias_own_is_noted_and_neither_refused_nor_used() -> None:
    it = spec("ngc", **CHOSEN)
    assert it == spec("ngc")
    loaded = load(CHOSEN, environ={})
    notes = unread(loaded.settings, it)
    assert [note.partition(" ")[0].lower() for note in notes] == [
        name for name in type(loaded.settings).model_fields if name in CHOSEN
    ]
    assert (
        unread(
            load({"ngc_year": "25", "ngc_month": "09", "tz": "Asia/Seoul"}, environ={}).settings, it
        )
        == []
    )


@pytest.mark.usefixtures("checkout", "no_machine")
def test_the_note_is_printed_and_the_plan_with_it() -> None:
    planned = run("plan", "ngc", "--cca", "8.6")
    assert planned.code == 0
    assert "note: CCA is set and changes nothing" in planned.err
    assert f"NVIDIA's PyTorch image of {NEWEST}" in planned.out


def test_a_base_image_of_another_distribution_is_what_distro_version_says() -> None:
    other = {"base_image": "localhost:5000/pytorch:1", "distro_version": "13"}
    it = spec("ngc", **other)
    assert (it.base.image, it.base.codename, it.python) == (other["base_image"], "trixie", "3.13")
    assert unread(load(other, environ={}).settings, it) == []
    copy = spec("ngc", base_image=other["base_image"])
    assert (copy.base.image, copy.base.codename) == (other["base_image"], "noble")


def test_nvidias_image_is_not_bootstrapped() -> None:
    assert "BASE_SOURCE='bootstrap'" in refused(base_source="bootstrap")


def test_where_it_cannot_be_pulled_a_copy_of_it_is_what_helps() -> None:
    assert "BASE_IMAGE" in toolkit.instead_of_image(spec("ngc").base.image)
