"""Read what a lazy Dagger object would ask of an engine, without one.

The SDK keeps a chain of fields for each object; objects among a field's arguments have their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dagger.client._core import Field


def chain(lazy: Any) -> list[Field]:
    """Return the calls that make an object, first to last."""
    return list(lazy._ctx.selections)


def everything(*lazies: Any) -> Iterator[Field]:
    """Yield the calls that make these objects and all they are made from, each once."""
    seen: set[int] = set()
    waiting = list(lazies)
    while waiting:
        for field in chain(waiting.pop()):
            if id(field) not in seen:
                seen.add(id(field))
                waiting += objects(field)
                yield field


def objects(field: Field) -> list[Any]:
    """Return the objects among a call's arguments."""
    return [value for value in field.args.values() if hasattr(value, "_ctx")]


def stands_on(upper: Any, lower: Any) -> bool:
    """Say whether the last call of `lower` is among those that make `upper`."""
    last = chain(lower)[-1]
    return any(field is last for field in everything(upper))


def calls(lazy: Any, *names: str) -> list[dict[str, Any]]:
    """Return the arguments of an object's own calls of these names."""
    return [field.args for field in chain(lazy) if field.name in names]


def execs(lazy: Any) -> list[list[str]]:
    """Return the commands that an object's own chain runs, in order."""
    return [args["args"] for args in calls(lazy, "withExec")]


def left_over(lazy: Any, *, add: tuple[str, ...], take: tuple[str, ...], key: str) -> set[str]:
    """Return what some calls put in and no later call takes out: mounts, secrets, variables."""
    there: set[str] = set()
    for field in chain(lazy):
        if field.name in add:
            there.add(field.args[key])
        elif field.name in take:
            there.remove(field.args[key])
    return there
