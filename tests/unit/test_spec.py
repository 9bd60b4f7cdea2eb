"""The name and the key of an image: what they change with, and what they do not."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Literal

import pytest

from pipeline.spec import Arch, Frozen
from tests.unit.running import ROOT
from tests.unit.specs import spec


def test_the_key_is_the_same_in_another_process() -> None:
    code = "from tests.unit.specs import spec; print(spec().key)"
    environ = os.environ | {"PYTHONHASHSEED": "7"}
    other = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == spec().key
    assert len(spec().key) == 64


SHAPING: list[dict[str, str]] = [
    {"pytorch_version_tag": "v2.14.1"},
    {"pytorch_version_tag": "v2.14.1", "torchvision_version_tag": "v0.29.1"},
    {"cuda_version": "13.0"},
    {"python_version": "3.12"},
    {"mkl_mode": "exclude"},
    {"tz": "Asia/Seoul"},
    {"project_root": "/work"},
    {"distro_version": "12"},
    {"linux_distro": "ubuntu"},
    {"base_source": "image"},
    {"base_source": "bootstrap"},
    {"base_image": "mirror.local/debian:trixie-slim"},
    {"deb_old": "http://archive.example", "deb_new": "http://mirror"},
    {"compression": "zstd"},
    {"service": "simple"},
    {"service": "ngc"},
    {"service": "ngc", "ngc_year": "25", "ngc_month": "09"},
    {"service": "ngc", "ngc_year": "24", "ngc_month": "10"},
    {"service": "ngc", "base_image": "mirror.local/nvidia/pytorch:26.02-py3"},
]


@pytest.mark.parametrize("settings", SHAPING, ids=str)
def test_what_shapes_the_image_is_in_the_key(settings: dict[str, str]) -> None:
    assert spec(**settings).key != spec().key


def test_no_two_images_share_a_key() -> None:
    assert len({spec(**settings).key for settings in SHAPING}) == len(SHAPING)


@pytest.mark.parametrize(
    "settings",
    [
        {"cca": "8.6"},
        {"cca": "8.0 9.0a"},
        {"index_url": "https://user:secret@host/simple"},
        {"extra_index_url": "https://host/simple"},
        {"pytorch_index_url": "https://host/whl/cu132"},
        {"index_url": "http://host/simple", "trusted_host": "host"},
        {"registry": "localhost:5000"},
        {"image_name": "other:tag"},
        {"engine": "local"},
        {"uid": "1000", "gid": "1000", "usr": "me", "grp": "us", "add_user": "exclude"},
        {"host_root": "/home", "project": "mine", "command": "bash"},
        {"cuda_version": "13.2"},
        {"cuda_version": "13.2.0"},
        {"pytorch_version": "2.15.0"},
        {"pytorch_version_tag": "v2.15.0"},
        {"linux_distro": "Debian", "distro_version": "trixie"},
        {"service": "full"},
    ],
    ids=str,
)
def test_what_does_not_shape_the_image_is_not_in_the_key(settings: dict[str, str]) -> None:
    assert spec(**settings).key == spec().key


def test_no_secret_is_in_a_spec() -> None:
    secret = spec(index_url="https://user:hunter2@host/simple").model_dump_json()
    assert "hunter2" not in secret


def test_words_and_numbers_are_written_as_json_has_them() -> None:
    class Made(Frozen):
        format: Literal[1] = 1
        word: Literal["a", "b"] = "b"
        either: Literal["a", 2] = 2

    assert Made().canonical == '{"either":2,"format":1,"word":"b"}'


@pytest.mark.parametrize(
    ("settings", "variant"),
    [
        ({"pytorch_version_tag": "v2.6.0"}, "py313-torch2.6.0-cu124-trixie"),
        (
            {"pytorch_version": "2.6.0", "cuda_version": "12.6.3", "linux_distro": "ubuntu"},
            "py312-torch2.6.0-cu126-noble",
        ),
        ({"service": "simple", "distro_version": "12"}, "simple-py311-bookworm"),
        ({"service": "simple", "python_version": "3.14"}, "simple-py314-trixie"),
        ({"service": "ngc", "ngc_year": "25", "ngc_month": "09"}, "ngc25.09-py312-noble"),
        ({"service": "ngc", "ngc_year": "24", "ngc_month": "10"}, "ngc24.10-py310-jammy"),
    ],
)
def test_the_variant_reads_well(settings: dict[str, str], variant: str) -> None:
    assert spec(**settings).variant == variant


def test_the_target_goes_before_the_service() -> None:
    assert spec("simple", service="train").target == "simple"
    assert spec("full", service="simple").target == "train"


@pytest.mark.parametrize(
    ("code", "device", "runs"),
    [
        ("8.0", "8.6", True),
        ("8.6", "8.0", False),
        ("8.6", "9.0", False),
        ("8.6+PTX", "9.0", True),
        ("8.6+PTX", "8.0", False),
        ("9.0a", "9.0", True),
        ("9.0a", "10.0", False),
        ("12.0+PTX", "12.1", True),
    ],
)
def test_which_code_runs_on_which_gpu(code: str, device: str, *, runs: bool) -> None:
    assert Arch.parse(code).runs_on(Arch.parse(device)) is runs


@pytest.mark.parametrize("text", ["8.6", "8.6+PTX", "9.0a", "12.0f", "12.1a+PTX"])
def test_an_architecture_is_written_as_it_is_read(text: str) -> None:
    assert str(Arch.parse(text)) == text
    assert Arch.parse(text.lower()) == Arch.parse(text)
