"""The only opener of ``dagger.connection``, and where its errors become ours."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final, TextIO

import anyio
import dagger

from pipeline.engine.select import Choice, choose
from pipeline.errors import BuildError, EngineError

_CONNECT_SECONDS: Final = 60
_PULL_SECONDS: Final = 20


@contextlib.asynccontextmanager
async def session(choice: Choice, log: TextIO) -> AsyncIterator[None]:
    """Keep a session with the chosen engine open; ``dagger.dag`` speaks to it.

    Raises:
        EngineError: the engine cannot be reached, or went away.
        BuildError: a command failed in it.

    """
    # No retries: the SDK's would send a two-hour build again on any hiccup.
    config = dagger.Config(
        retry=None, timeout=dagger.Timeout(None, connect=_CONNECT_SECONDS), log_output=log
    )
    with _environment(choice), _translated():
        async with dagger.connection(config):
            yield


@contextlib.contextmanager
def _environment(choice: Choice) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in choice.environment}
    os.environ.update(choice.environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except dagger.ExecError as error:
        raise BuildError(
            "a command failed in the build",
            command=shlex.join(error.command),
            command_exit_code=error.exit_code,
            tail="\n".join((error.stdout + "\n" + error.stderr).strip().splitlines()[-40:]),
        ) from error
    except dagger.QueryError as error:
        raise _query_error(str(error)) from error
    except dagger.DaggerError as error:
        raise EngineError(
            "the engine cannot be reached, or went away",
            why=_first_line(error),
            next_step="run the command again: the engine is started anew and keeps its cache "
            "(python -m pipeline engine logs shows what it said)",
        ) from error


def _query_error(message: str) -> BuildError:
    step = ""
    if "no space left on device" in message:
        step = "free disk space, or `python -m pipeline engine prune`, then run it again"
    return BuildError("the engine refused", why=message, next_step=step)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


async def why_unavailable(image: dagger.Container) -> str:
    """Return why an image cannot be pulled, empty if it can.

    The engine is asked, not the registry: its mirrors and its network are what counts. A registry
    that drops packets would hold it up for minutes, so it gets a deadline.
    """
    try:
        with anyio.fail_after(_PULL_SECONDS):
            await image.platform()
    except TimeoutError:
        return f"no answer in {_PULL_SECONDS} s"
    except dagger.QueryError as error:
        return str(error).strip().splitlines()[-1]
    return ""


async def prune_local(keep: str, say: Callable[[str], None]) -> int:
    """Shrink the local engine's cache to `keep`, as ``20GB``; return the bytes freed."""
    choice = choose("local", say)
    async with session(choice, sys.stderr):
        cache = dagger.dag.engine().local_cache()
        before = await cache.entry_set().disk_space_bytes()
        await cache.prune(max_used_space=keep, reserved_space="0", min_free_space="0")
        return before - await cache.entry_set().disk_space_bytes()
