"""Read what a lazy Dagger object would ask of an engine, without one.

The SDK keeps a chain of fields for each object; objects among a field's arguments have their own.
"""

from __future__ import annotations

import hashlib
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
    """Say whether `lower` is among what makes `upper`, as the engine sees it: the same calls."""
    return _prints(lower)[-1] in {print_ for lazy in made_of(upper) for print_ in _prints(lazy)}


def made_of(lazy: Any) -> Iterator[Any]:
    """Yield an object and all that its calls take as arguments, each once."""
    seen: set[int] = set()
    waiting = [lazy]
    while waiting:
        it = waiting.pop()
        if id(it) not in seen:
            seen.add(id(it))
            waiting += [argument for field in chain(it) for argument in objects(field)]
            yield it


_known: dict[int, tuple[Any, list[str]]] = {}


def _prints(lazy: Any) -> list[str]:
    """Return for each call of a chain what tells it, and all before it, from any other."""
    if id(lazy) in _known:
        return _known[id(lazy)][1]
    prints = [""]
    for field in chain(lazy):
        args = {
            name: _prints(value)[-1] if hasattr(value, "_ctx") else repr(value)
            for name, value in field.args.items()
        }
        call = repr((prints[-1], field.type_name, field.name, sorted(args.items())))
        prints.append(hashlib.sha256(call.encode()).hexdigest())
    # With the object itself, or another may get its number.
    _known[id(lazy)] = lazy, prints[1:]
    return prints[1:]


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
