"""The plan: an order that can be followed, and a picture of it."""

from __future__ import annotations

import re

import pytest

from pipeline.plan import mermaid, plan
from tests.unit.specs import spec

TARGETS = ("train", "simple")


@pytest.mark.parametrize("target", TARGETS)
def test_each_step_comes_after_those_it_needs(target: str) -> None:
    done: set[str] = set()
    for step in plan(spec(target)):
        assert set(step.needs) <= done, step
        assert step.name not in done
        done.add(step.name)


@pytest.mark.parametrize("target", TARGETS)
def test_only_what_is_checked_is_delivered(target: str) -> None:
    *_, verify, deliver = plan(spec(target))
    assert (verify.name, deliver.name) == ("verify", "deliver")
    assert verify.name in deliver.needs


@pytest.mark.parametrize("target", TARGETS)
def test_the_picture_has_every_step_and_every_need(target: str) -> None:
    steps = plan(spec(target))
    lines = mermaid(steps).splitlines()
    assert lines[0].startswith("flowchart")
    edges = {tuple(line.split(" --> ")) for line in map(str.strip, lines) if " --> " in line}
    assert edges == {(need, step.name) for step in steps for need in step.needs}
    for step in steps:
        assert any(re.match(rf"\s*{step.name}\[", line) and step.makes in line for line in lines)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "debian 13 from a registry, else by mmdebstrap"),
        ({"linux_distro": "ubuntu"}, "ubuntu 24.04 from a registry"),
        ({"base_image": "mirror/debian:13"}, "debian 13 from a registry"),
        ({"base_source": "image"}, "debian 13 from a registry"),
        ({"base_source": "bootstrap"}, "debian 13 from mmdebstrap"),
    ],
    ids=str,
)
def test_it_says_where_the_base_will_come_from(settings: dict[str, str], says: str) -> None:
    assert plan(spec(**settings))[0].makes == says
