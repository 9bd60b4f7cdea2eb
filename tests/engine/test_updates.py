"""``updates``, of a package index that answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from pipeline import updates
from tests.engine.conftest import Checkout
from tests.services import Answer, Asked, serving

NEWEST = {package: had[-1] for package, had in updates.known().items()}


def index(versions: Mapping[str, list[str]] | None) -> Callable[[Asked], Answer]:
    """Return what answers for an index with these releases, in HTML if there are none."""

    def answer(asked: Asked) -> Answer:
        if versions is None:
            return Answer(200, b"<a href='torch-9.9.9.whl'>torch-9.9.9.whl</a>")
        package = asked.path.strip("/").rpartition("/")[2]
        assert asked.headers["Accept"] == "application/vnd.pypi.simple.v1+json"
        return Answer(200, json.dumps({"versions": versions[package]}).encode())

    return answer


def test_it_lists_what_the_tables_lack(checkout: Checkout) -> None:
    listed = {package: [version] for package, version in NEWEST.items()}
    listed["torch"] += ["99.0.0", "99.1.0rc1"]
    with serving(index(listed)) as host:
        ran = checkout.cresset("updates", "--json", INDEX_URL=f"http://{host}/simple")
        assert ran.json == {"torch": ["99.0.0"], "torchvision": []}
        ran = checkout.cresset("updates", INDEX_URL=f"http://{host}/simple/")
    assert ran.out.splitlines() == [
        "- torch: the compatibility tables lack 99.0.0",
        "- torchvision: the compatibility tables have its newest release",
    ]


def test_an_index_that_lists_no_releases_is_named_without_its_login(checkout: Checkout) -> None:
    with serving(index(None)) as host:
        ran = checkout.cresset("updates", INDEX_URL=f"http://ann:hunter2@{host}/simple")
    assert (ran.code, ran.out) == (1, "")
    assert f"{host}/simple/torch/" in ran.err
    assert "INDEX_URL" in ran.err
    assert "hunter2" not in ran.err
    assert "Traceback" not in ran.err
