"""Names of an image: what people pull it by, and what the next build finds it by."""

from __future__ import annotations

import pytest

from pipeline.tags import key_tag, repository, tags
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
