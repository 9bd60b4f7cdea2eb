"""The only opener of ``dagger.connection``, and where its errors become ours."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from typing import Any, Final, TextIO, TypeVar

import anyio
import dagger

from pipeline import retry
from pipeline.engine.select import Choice, choose
from pipeline.errors import BuildError, CressetError, EngineError, Unfinished, interruptible
from pipeline.report import TAIL_LINES
from pipeline.stages.inside.compile import UNFINISHED

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

_CONNECT_SECONDS: Final = 60
_PULL_SECONDS: Final = 20


def run(work: Coroutine[Any, Any, T]) -> T:
    """Return what the coroutine does; Ctrl-C cancels it, which stops the engine's work too."""
    with interruptible(), translated():
        return asyncio.run(work)


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
    failed: CressetError | None = None
    with _environment(choice), translated():
        try:
            async with dagger.connection(config):
                try:
                    yield
                except CressetError as error:
                    failed = error
                    raise
        except dagger.DaggerError:
            # A session whose engine is gone fails to end, too; what failed in it tells more.
            if failed is None:
                raise
            raise failed from None


@contextlib.contextmanager
def _environment(choice: Choice) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in choice.environment}
    _set(choice.environment)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn what the SDK raises into errors that say what happened and what to do."""
    try:
        yield
    except BaseExceptionGroup as group:
        # The SDK resolves the arguments of a call in a task group.
        if (ours := group.subgroup(CressetError)) is not None:
            raise _first(ours) from group
        if (theirs := group.subgroup(dagger.DaggerError)) is None:
            raise
        raise _ours(_first(theirs)) from group
    except dagger.DaggerError as error:
        raise _ours(error) from error


def _first(group: BaseExceptionGroup[E]) -> E:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def _ours(error: dagger.DaggerError) -> CressetError:
    if isinstance(error, dagger.ExecError):
        output = f"{error.stdout}\n{error.stderr}".strip()
        if error.exit_code == UNFINISHED:
            return Unfinished(
                "stopped by the deadline",
                why=next(iter(re.findall(r"^compile: (stopped .*)", output, re.MULTILINE)), ""),
                next_step="run the same command again: it goes on where it stopped",
            )
        return BuildError(
            "a command failed",
            command=shlex.join(error.command),
            command_exit_code=error.exit_code,
            tail="\n".join(output.splitlines()[-TAIL_LINES:]),
            next_step=_step(output),
        )
    if isinstance(error, dagger.QueryError):
        return BuildError("the engine could not do it", why=str(error), next_step=_step(str(error)))
    return EngineError(
        "the engine cannot be reached, or went away",
        why=next(iter(str(error).strip().splitlines()), type(error).__name__),
        next_step="run the command again: an engine that ended is started anew "
        "(python -m pipeline engine logs shows what it said)",
    )


def _step(message: str) -> str:
    if "no space left on device" in message.lower():
        return "free disk space, or `python -m pipeline engine prune`, and run it again"
    return ""


async def why_unavailable(image: dagger.Container) -> str:
    """Return why an image cannot be pulled, empty if it can.

    The engine is asked, not the registry: its mirrors and its network are what counts. A registry
    that drops packets would hold it up for minutes, so it gets a deadline.
    """

    async def once() -> None:
        try:
            with anyio.fail_after(_PULL_SECONDS):
                await image.platform()
            _ = await image.sync()  # its layers too
        except dagger.QueryError as error:
            why = str(error).strip().splitlines()[-1]
            refusal = BuildError("the base cannot be pulled", why=why)
            # Where nobody is at home, there may be another place to take it from.
            if retry.stumbled(why) and "refused" not in why:
                raise retry.Lost(refusal) from error
            raise refusal from error

    try:
        await retry.acall(once)
    except TimeoutError:
        return f"no answer in {_PULL_SECONDS} s"
    except BuildError as error:
        return error.why
    return ""


async def version() -> str:
    """Return the version of the engine that this session is with."""
    return await dagger.dag.version()


async def pulled(directory: dagger.Directory) -> dagger.Directory:
    """Return a directory of an image once it is pulled, tried again where the network loses it.

    Raises:
        BuildError: it cannot be pulled.

    """

    async def once() -> dagger.Directory:
        try:
            return await directory.sync()
        except dagger.QueryError as error:
            if retry.stumbled(str(error)):
                raise retry.Lost(_ours(error)) from error
            raise

    with translated():
        return await retry.acall(once)


async def prune_local(keep: str, say: Callable[[str], None]) -> int:
    """Shrink the local engine's cache to `keep`, as ``20GB``; return the bytes freed."""
    choice = choose("local", say)
    async with session(choice, sys.stderr):
        cache = dagger.dag.engine().local_cache()
        before = await held()
        await cache.prune(max_used_space=keep, reserved_space="0", min_free_space="0")
        return before - await held()


async def held() -> int:
    """Return the bytes that the cache of this session's engine takes."""
    return await dagger.dag.engine().local_cache().entry_set().disk_space_bytes()
