"""What the package index has and the tables lack."""

from __future__ import annotations

from packaging.version import Version

from pipeline import updates


def test_only_final_releases_newer_than_any_in_the_table_are_missing() -> None:
    listed = [
        "1.0",
        "2.9.0",
        "2.10.0",
        "2.11.0rc1",
        "2.11.0",
        "2.11.0.post1",
        "3.0.dev2",
        "0.1-x y",
    ]
    assert updates.lacking(listed, ["2.9.0", "2.8.0"]) == ["2.10.0", "2.11.0"]
    assert updates.lacking(listed, ["2.11.0"]) == []


def test_each_table_misses_what_its_package_released() -> None:
    newest = {package: max(map(Version, had)) for package, had in updates.known().items()}
    assert set(newest) == {"torch", "torchvision"}
    listed = {package: [str(it), f"{it.major + 1}.0.0"] for package, it in newest.items()}
    assert updates.missing(lambda package: listed[package]) == {
        package: [f"{it.major + 1}.0.0"] for package, it in newest.items()
    }
