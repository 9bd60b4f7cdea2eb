"""Running what is asynchronous from a verb that is not."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from pipeline.errors import CressetError, Interrupted

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Return what the coroutine does; Ctrl-C cancels it, which stops the engine's work too."""
    import asyncio

    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        raise Interrupted(
            "stopped; what is finished stays in the engine's cache",
            next_step="run the same command again to go on",
        ) from None
    except BaseExceptionGroup as group:
        raise _innermost(group) from None


def _innermost(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error of ours that a task group wrapped, else the first of whatever it holds."""
    errors = [_innermost(e) if isinstance(e, BaseExceptionGroup) else e for e in group.exceptions]
    return next((error for error in errors if isinstance(error, CressetError)), errors[0])
