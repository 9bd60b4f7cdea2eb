"""The guard itself: every way out of a unit test is shut."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable

import dagger
import pytest


def connect() -> None:
    with socket.socket() as ours:
        ours.connect(("127.0.0.1", 9))


WAYS: dict[str, Callable[[], object]] = {
    "a program": lambda: subprocess.run(["true"], check=False),
    "a shell": lambda: os.system("true"),  # noqa: S605
    "another program in place of this": lambda: os.execv("/bin/true", ["true"]),  # noqa: S606
    "a connection": connect,
    "an engine": lambda: dagger.connection(),  # noqa: PLW0108 - looked up late
}


@pytest.mark.parametrize("way", WAYS)
def test_a_real_call_fails_the_test(way: str) -> None:
    with pytest.raises(pytest.fail.Exception, match="a real call"):
        WAYS[way]()
