"""Answers that are asked for once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")


class Once:
    """Calls a function once for the same arguments, as long as it lives.

    Of one planning: what the images share is read, asked for and made once for all of them, and a
    file that changes is read anew by the next.
    """

    def __init__(self) -> None:
        self._answers: dict[tuple[Any, ...], object] = {}

    def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the function answers; its arguments are hashed, its answer is shared."""
        call = (function, *args, *kwargs.items())
        try:
            return cast("T", self._answers[call])
        except KeyError:
            answer = self._answers[call] = function(*args, **kwargs)
            return answer
