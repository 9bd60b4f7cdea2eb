"""What is tried again, how often and how long apart, and what is said of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from pipeline import retry
from pipeline.errors import PublishError
from pipeline.retry import Lost

LOST = "the registry answers with 503"


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Wait for nothing, and return what would have been waited for."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("tenacity.nap.time.sleep", waited.append)
    monkeypatch.setattr("asyncio.sleep", sleep)
    return waited


def failing(times: int, after: float = 0) -> Callable[[], str]:
    """Return what is lost so many times, and then done."""
    left = [Lost(PublishError(LOST, why="busy"), after) for _ in range(times)]

    def once() -> str:
        if left:
            raise left.pop()
        return "done"

    return once


def test_what_passes_is_passed_over_and_told(waits: list[float]) -> None:
    said: list[str] = []
    with retry.told(said.append):
        assert retry.call(failing(2)) == "done"
    assert [it.partition(" in ")[0] for it in said] == ["try 2 of 5", "try 3 of 5"]
    assert said[0].endswith(f"s: {LOST} (busy)")
    assert len(waits) == 2


def test_waits_grow_to_a_bound_and_no_two_are_alike(waits: list[float]) -> None:
    with retry.told(lambda _: None):
        retry.call(failing(20), tries=21)
    first, bound, jitter = retry.FIRST_SECONDS, retry.LONGEST_SECONDS, retry.FIRST_SECONDS
    assert first <= waits[0] <= first + jitter
    assert waits[:5] == sorted(waits[:5])
    assert max(waits) <= bound + jitter
    assert len(set(waits[:4])) == 4


def test_a_server_that_says_when_is_left_alone_until_then(waits: list[float]) -> None:
    with retry.told(lambda _: None):
        retry.call(failing(1, after=retry.asked_seconds("30")))
    assert waits == [30]
    assert retry.asked_seconds("86400") == retry.LONGEST_ASKED_SECONDS
    assert retry.asked_seconds("Wed, 21 Oct 2026 07:28:00 GMT") == retry.asked_seconds(None) == 0


def test_what_does_not_pass_ends_with_its_own_error(waits: list[float]) -> None:
    said: list[str] = []
    with retry.told(said.append), pytest.raises(PublishError) as raised:
        retry.call(failing(9))
    assert raised.value.what == LOST
    assert raised.value.why == "busy (tried 5 times)"
    assert len(said) == len(waits) == 4


def test_once_is_once(waits: list[float]) -> None:
    with pytest.raises(PublishError) as raised:
        retry.call(failing(1), tries=1)
    assert raised.value.why == "busy"
    assert waits == []


def test_any_other_error_is_an_answer(waits: list[float]) -> None:
    def refused() -> None:
        raise PublishError("401")

    with pytest.raises(PublishError, match="401"):
        retry.call(refused)
    assert waits == []


def test_what_is_awaited_is_tried_again_too() -> None:
    once = failing(3)

    async def later() -> str:
        return once()

    said: list[str] = []
    with retry.told(said.append):
        assert asyncio.run(retry.acall(later, tries=9)) == "done"
    assert [it.partition(" in ")[0] for it in said] == [f"try {n} of 9" for n in (2, 3, 4)]


@pytest.mark.parametrize(
    "message",
    [
        "unexpected status from PUT request to https://r:5000/v2/x/blobs/up: 502 Bad Gateway",
        "unexpected status from HEAD request to https://r/v2/x: 429 Too Many Requests",
        'failed to do request: Head "https://r/v2/": read tcp 1.2.3.4:5->6.7.8.9:5: read: '
        "connection reset by peer",
        "short read: expected 149 bytes but got 0: unexpected EOF",
        'failed to do request: Post "https://r/": EOF',
        "dial tcp 1.2.3.4:443: connect: connection refused",
        "net/http: TLS handshake timeout",
        "unavailable: service unavailable",
        "toomanyrequests: You have reached your pull rate limit",
    ],
)
def test_the_engine_tells_of_what_may_pass(message: str) -> None:
    assert retry.stumbled(message)


@pytest.mark.parametrize(
    "message",
    [
        "unexpected status from POST request to https://r:503/v2/x/blobs/: 403 Forbidden",
        "pull access denied, repository does not exist or may require authorization",
        "server message: insufficient_scope: authorization failed: 401 Unauthorized",
        "tls: failed to verify certificate: x509: certificate signed by unknown authority",
        "docker.io/library/nothing:503: not found",
        "manifest unknown: manifest unknown",
        "write /var/lib/dagger/x: no space left on device",
        'process "pip install x" did not complete successfully: exit code: 1',
        "dial tcp: lookup registry-1.docker.io: no such host",
    ],
)
def test_the_engine_tells_of_what_will_not(message: str) -> None:
    assert not retry.stumbled(message)
