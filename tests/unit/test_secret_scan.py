"""The scan for secrets finds what is there, and nothing else."""

from __future__ import annotations

import base64
import json

import pytest

from tests.secret_scan import USER, Secrets


@pytest.mark.parametrize("before", ["", "a", "ab", "abc", "user:", "http://x:"])
def test_a_password_is_found_plain_and_in_base64_whatever_stands_before_it(before: str) -> None:
    known = Secrets()
    password = known.new("one")
    known.new("other")
    text = f"{before}{password}@host"
    assert known.found_in(text.encode()) == ["one"]
    assert known.found_in(b"..." + base64.b64encode(text.encode()) + b"...") == ["one"]


def test_a_login_is_found_as_docker_writes_it() -> None:
    known = Secrets()
    auth = base64.b64encode(known.login("registry").encode()).decode()
    assert known.found_in(json.dumps({"auths": {"host": {"auth": auth}}}).encode()) == ["registry"]
    assert known.login("other").startswith(f"{USER}:")


def test_what_is_not_there_is_not_found() -> None:
    known = Secrets()
    known.new("one")
    assert known.found_in(b"somebody" + base64.b64encode(bytes(1000))) == []
