"""Answers that are asked for once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


class Once:
    """Calls a function once for the same arguments, as long as it lives.

    Of one planning: what the images share is read, asked for and made once for all of them, and a
    file that changes is read anew by the next.
    """

    def __init__(self, differing: Iterable[str] = ()) -> None:
        """Make one for settings that differ in no others than these, by attribute; all the same."""
        self._differing = frozenset(differing)
        self._watched: type[_Watched] | None = None
        self._answers: dict[tuple[Any, ...], Any] = {}
        self._readers: dict[tuple[Any, ...], dict[tuple[str, ...], _Reader]] = {}

    def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the function answers; its arguments are hashed, its answer is shared."""
        call = (function, *args, *kwargs.items())
        answer: T
        try:
            answer = self._answers[call]
        except KeyError:
            answer = self._answers[call] = function(*args, **kwargs)
        return answer

    def reading(
        self,
        function: Callable[Concatenate[S, P], T],
        settings: S,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Return the same, called once for all settings which differ in what it never reads.

        What it reads is seen as it does so. It may be something else where a value is another,
        but never before it has read that value; so settings which agree in all that was read of
        others have the answer of those.
        """
        answer: T
        call = (function, *args, *kwargs.items())
        readers = self._readers.get(call)
        if readers is None:
            readers = self._readers[call] = {}
        for known in readers.values():
            values = known.values(settings)
            if values in known.answers:
                answer = known.answers[values]
                return answer
        if self._watched is None:
            common = {
                it: value for it, value in vars(settings).items() if it not in self._differing
            }
            self._watched = type("_Watched", (_Watched,), common)
        watched = self._watched(settings)
        answer = function(cast("S", watched), *args, **kwargs)
        names = tuple(vars(watched))[1:]
        reader = readers.get(names)
        if reader is None:
            reader = readers[names] = _Reader(names)
        reader.answers[reader.values(settings)] = answer
        return answer


class _Watched:
    """Settings that hold what has been read of them, in the order of the reading.

    What all settings have in common, a subclass has.
    """

    def __init__(self, settings: object) -> None:
        self._settings = settings

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the settings hold
        value = self.__dict__[name] = getattr(self._settings, name)
        return value


class _Reader:
    """What a function answers by the values of those settings that it read."""

    def __init__(self, names: Iterable[str]) -> None:
        # Of fewer than two names it would be no tuple.
        self.values: Callable[[object], tuple[Any, ...]] = attrgetter(
            "__class__", "__class__", *names
        )
        self.answers: dict[tuple[Any, ...], Any] = {}
