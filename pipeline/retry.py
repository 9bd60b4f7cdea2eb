"""Second tries, for what a network loses: bounded, further and further apart, and said aloud.

A refusal is an answer and is taken as one: whoever may not push (401, 403), what is not there
(404), what a compiler says. Only `Lost` is tried again.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pipeline.errors import CressetError

if TYPE_CHECKING:
    from tenacity import RetryCallState

T = TypeVar("T")

TRIES: Final = 5
PUSH_TRIES: Final = 30
"""What is built is worth minutes of waiting, and an image is dozens of requests.

Of 15 layers, with one request in five lost, one push in six gets through once the blobs are there.
"""
FIRST_SECONDS: Final = 0.5
LONGEST_SECONDS: Final = 8.0
LONGEST_ASKED_SECONDS: Final = 60.0
"""The most that is waited where a server says when to come back (``Retry-After``)."""

STATUSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP's answers that another time may be better (RFC 9110, RFC 6585, RFC 8470)."""

# What Dagger's engine says of a connection that was lost, or of a server that stumbled.
_STUMBLED: Final = re.compile(
    r"(status|response|code)\b[^\n]*\b(408|425|429|500|502|503|504)\b"
    r"|connection (reset|refused)|broken pipe|\bEOF\b|closed network connection|i/o timeout"
    # What a registry says of itself in JSON, which the engine tells without the status.
    r"|\bunavailable:|toomanyrequests:|unknown: unknown error"
    r"|timed out|network is unreachable|no route to host|server misbehaving|deadline exceeded"
    r"|temporary failure|TLS handshake|timeout awaiting|server closed|stream error|GOAWAY"
    r"|handshake timeout"
    r"|request canceled while waiting|blob upload unknown|digest did not match|failed size val",
    re.IGNORECASE,
)
_REFUSED: Final = re.compile(
    r"\b(401|403)\b|unauthorized|denied|forbidden|x509|no space left", re.IGNORECASE
)


class Lost(Exception):
    """What may go better another time; `error` is what is raised if it never does.

    `after` is how long the server asks to be left alone, in seconds.
    """

    def __init__(self, error: CressetError, after: float = 0) -> None:
        super().__init__(str(error))
        self.error = error
        self.after = after


def stumbled(message: str) -> bool:
    """Say whether what the engine says of a registry tells of a fault that may pass."""
    return bool(_STUMBLED.search(message)) and not _REFUSED.search(message)


def asked_seconds(header: str | None) -> float:
    """Return the seconds of a ``Retry-After`` header; 0 where there is none, or it is a date."""
    return min(float(header), LONGEST_ASKED_SECONDS) if header and header.isdecimal() else 0.0


def call(once: Callable[[], T], *, tries: int = TRIES) -> T:
    """Return what `once` does, tried again while it raises `Lost`; raises that one's error."""
    try:
        return once()
    except Lost as lost:
        first = lost
    # Imported only now: it takes longer than a build with nothing to do may wait.
    from tenacity import Retrying  # noqa: PLC0415

    outcomes = iter([first])

    def again() -> T:
        for lost in outcomes:
            raise lost
        return once()

    return Retrying(**_policy(tries))(again)


async def acall(once: Callable[[], Awaitable[T]], *, tries: int = TRIES) -> T:
    """Return what `once` does, as `call`."""
    from tenacity import AsyncRetrying  # noqa: PLC0415 - as in call

    return await AsyncRetrying(**_policy(tries))(once)


def _policy(tries: int) -> dict[str, Any]:
    import tenacity  # noqa: PLC0415 - as in call

    backoff = tenacity.wait_exponential_jitter(
        multiplier=FIRST_SECONDS, max=LONGEST_SECONDS, jitter=FIRST_SECONDS
    )

    def wait(state: RetryCallState) -> float:
        return max(backoff(state), _lost(state).after)

    def before_sleep(state: RetryCallState) -> None:
        seconds = state.next_action.sleep if state.next_action else 0
        error = _lost(state).error
        why = next(iter(error.why.splitlines()), "")
        _say.get()(
            f"try {state.attempt_number + 1} of {tries} in {seconds:.1f} s: {error.what}"
            + (f" ({why})" if why else "")
        )

    def give_up(state: RetryCallState) -> None:
        lost = _lost(state)
        if tries > 1:
            lost.error.why = f"{lost.error.why} (tried {tries} times)".strip()
        raise lost.error from lost.__cause__

    return {
        "retry": tenacity.retry_if_exception_type(Lost),
        "stop": tenacity.stop_after_attempt(tries),
        "wait": wait,
        "before_sleep": before_sleep,
        "retry_error_callback": give_up,
    }


def _lost(state: RetryCallState) -> Lost:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, Lost)
    return error


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")


_say: ContextVar[Callable[[str], None]] = ContextVar("say", default=_to_stderr)


@contextlib.contextmanager
def told(say: Callable[[str], None]) -> Iterator[None]:
    """Have tries told to `say` while the context is open; else they go to standard error."""
    token = _say.set(say)
    try:
        yield
    finally:
        _say.reset(token)
