"""Names of an image: what people pull it by, and what the next build finds it by."""

from __future__ import annotations

from datetime import date

import pytest

from pipeline.tags import dated, day_of, is_for_people, key_tag, repository, tags
from tests.unit.specs import spec


@pytest.mark.parametrize(
    ("name", "registry", "expected"),
    [
        ("cresset", "", "cresset"),
        ("cresset", "localhost:5000", "localhost:5000/cresset"),
        ("Cresset:Train-ME", "", "cresset"),
        ("team/cresset:me", "GHCR.io/team", "ghcr.io/team/team/cresset"),
    ],
)
def test_the_repository_is_lower_case_and_has_no_tag(
    name: str, registry: str, expected: str
) -> None:
    assert repository(name, registry) == expected


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("cresset", []),
        ("cresset:train-me", ["train-me"]),
        ("cresset:py313-simple", ["py313-simple"]),
    ],
)
def test_an_image_has_its_variant_the_users_tag_and_its_key_last(
    name: str, extra: list[str]
) -> None:
    made = spec()
    assert list(tags(made, name)) == [made.variant, *extra, key_tag(made)]


def test_no_tag_is_named_twice() -> None:
    made = spec()
    assert tags(made, f"cresset:{made.variant}") == (made.variant, key_tag(made))


def test_images_of_other_keys_have_other_key_tags() -> None:
    assert key_tag(spec()) != key_tag(spec(tz="Asia/Seoul"))
    # The registry's limit for a tag (OCI distribution spec).
    assert len(key_tag(spec())) <= 128


def test_a_dated_tag_has_the_day_of_the_delivery_and_is_no_name_to_find_by() -> None:
    made = spec()
    tag = dated(made, date(2026, 11, 28))
    assert tag == f"{made.variant}-20261128"
    assert tag not in tags(made, "cresset")
    assert day_of(tag) == date(2026, 11, 28)


@pytest.mark.parametrize("tag", ["py313-trixie", "x-20269999", "20261128", "x-2026112", "key-0"])
def test_a_tag_without_a_day_has_none(tag: str) -> None:
    assert day_of(tag) is None


@pytest.mark.parametrize(
    ("tag", "readable"),
    [
        ("py313-torch2.6.0-cu124-trixie", True),
        ("train-me", True),
        ("py313-trixie-20261128", False),
        (f"key-{'0' * 64}", False),
        (f"sha256-{'0' * 64}", False),
    ],
)
def test_people_read_variants_and_names(tag: str, readable: bool) -> None:
    assert is_for_people(tag) is readable
