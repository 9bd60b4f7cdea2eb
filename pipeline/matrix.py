"""The images that CI builds: ``images.toml`` read, and made into cells, each with its spec.

The cells are every combination of the axes, less what an ``[[exclude]]`` names, and one more for
each ``[[include]]``. A combination that cannot be built is a mistake until an exclude says so.
"""

from __future__ import annotations

import contextlib
import difflib
import gc
import itertools
import json
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, TypeVar

from pipeline import lock as locks
from pipeline import reqs, tags, validate
from pipeline.errors import ConfigError, NothingSelected, Problem
from pipeline.lock import Lock
from pipeline.once import Once
from pipeline.settings import (
    COMPILE,
    DELIVERY,
    ENGINE,
    MIRRORS,
    NAMES,
    START,
    Settings,
    accepted,
    group_of,
    shown,
)
from pipeline.spec import Arch, ImageSpec
from pipeline.validate_source import Resolve, unresolved

T = TypeVar("T")

FILE: Final = Path("images.toml")

_TABLES: Final = ("settings", "axes", "exclude", "include")
_SHOWN: Final = 20
"""How many groups of refused combinations an error spells out."""

_IN_NO_KEY: Final = frozenset(
    name for name, field in NAMES.items() if group_of(field) in {COMPILE, DELIVERY, MIRRORS}
) - {"COMPRESSION", "DEB_NEW", "DEB_OLD", "TORCH_FLAGS"}
"""Settings of how an image is made and where it goes, which two cells cannot differ in alone."""

Assignment = Mapping[str, str]
"""Settings by the names users know."""


@dataclass(frozen=True)
class Reasoned:
    """An ``[[exclude]]`` or ``[[include]]``: settings, and why they are there."""

    settings: Assignment
    reason: str
    where: str
    """Which table of the file it is, for messages."""

    def names(self, chosen: Assignment) -> bool:
        """Say whether all of its settings are in those of a combination."""
        return self.settings.items() <= chosen.items()


@dataclass(frozen=True)
class Matrix:
    """What the file says; `axes` are lists of points, each the settings that are set together."""

    file: Path
    settings: Assignment
    axes: tuple[tuple[Assignment, ...], ...]
    excludes: tuple[Reasoned, ...]
    includes: tuple[Reasoned, ...]

    @property
    def names(self) -> frozenset[str]:
        """Every setting that some cell has from the file."""
        return self.differing.union(self.settings)

    @property
    def differing(self) -> frozenset[str]:
        """Those that are not the same in all cells."""
        points = itertools.chain(*self.axes, (it.settings for it in self.includes))
        return frozenset(itertools.chain.from_iterable(points))


@dataclass(frozen=True)
class Cell:
    """One image of the matrix; `settings` is what it sets on top of the user's own."""

    settings: Assignment
    spec: ImageSpec

    @property
    def variant(self) -> str:
        """The readable name, which no other cell has."""
        return self.spec.variant

    @property
    def key(self) -> str:
        """The key of the spec."""
        return self.spec.key


# The file


def read(path: Path = FILE) -> Matrix:
    """Return what a matrix file says.

    Raises:
        ConfigError: every mistake in it; what its settings mean together is left to `cells`.

    """
    content = _content(path)
    problems = [
        Problem(
            f"{path}: {name}", "", "not a table of this file",
            allowed=", ".join(_TABLES), next_step=_did_you_mean(name, _TABLES),
        )
        for name in content
        if name not in _TABLES
    ]  # fmt: skip
    settings = _assignment(f"{path}: settings", content.get("settings", {}), problems)
    axes = _axes(f"{path}: axes", content.get("axes", {}), problems)
    excludes = _reasoned(path, "exclude", content.get("exclude", []), problems)
    includes = _reasoned(path, "include", content.get("include", []), problems)
    fixed = set(settings)
    varied: set[str] = set()
    for axis in axes:
        names = set(itertools.chain(*axis))
        for name in sorted(names & (fixed | varied)):
            other = "settings" if name in fixed else "another axis"
            problems.append(
                Problem(f"{path}: axes", name, f"an axis sets it, and {other} does too",
                        next_step="leave it in one of the two")
            )  # fmt: skip
        varied |= names
    problems += [
        Problem(
            it.where, name, "no axis sets it, so there is nothing to exclude by it",
            allowed=", ".join(sorted(varied)),
            next_step=_did_you_mean(name, varied) or "take it out",
        )
        for it in excludes
        for name in sorted(set(it.settings) - varied)
    ]  # fmt: skip
    if not problems and not axes and not includes:
        problems.append(
            Problem(str(path), "", "names no image", allowed="[axes], [[include]], or both",
                    next_step='begin with [axes] and PYTHON_VERSION = ["3.12", "3.13"]')
        )  # fmt: skip
    if problems:
        raise ConfigError(problems)
    return Matrix(path, settings, axes, excludes, includes)


def _content(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        why, step = f"cannot be read: {error.strerror}", "name another one by --file"
    except UnicodeDecodeError:
        why, step = "is not UTF-8 text", "write it anew as UTF-8"
    except tomllib.TOMLDecodeError as error:
        why, step = f"is not TOML: {error}", "see https://toml.io/en/v1.0.0"
    raise ConfigError([Problem(str(path), "", why, next_step=step)])


def _axes(
    where: str, content: object, problems: list[Problem]
) -> tuple[tuple[Assignment, ...], ...]:
    if not isinstance(content, dict):
        problems.append(_wrong_form(where, content, "a table of lists"))
        return ()
    axes = []
    for name, points in content.items():
        at = f"{where}.{name}"
        if not isinstance(points, list) or not points:
            problems.append(_wrong_form(at, points, 'a list, as ["3.12", "3.13"]'))
            continue
        together = all(isinstance(it, dict) for it in points) and name not in NAMES
        found = [
            _assignment(at, point if together else {name: point}, problems) for point in points
        ]
        for point in {str(it): it for it in found if it and found.count(it) > 1}.values():
            text = ", ".join(point.values())
            problems.append(Problem(at, text, "is in the list twice", next_step="take one out"))
        axes.append(tuple(found))
    return tuple(axes)


def _reasoned(
    path: Path, table: str, content: object, problems: list[Problem]
) -> tuple[Reasoned, ...]:
    if not isinstance(content, list):
        problems.append(_wrong_form(f"{path}: {table}", content, f"tables, each below [[{table}]]"))
        return ()
    found = []
    for number, entry in enumerate(content, 1):
        where = f"{path}: {table} {number}"
        if not isinstance(entry, dict):
            problems.append(_wrong_form(where, entry, f"a table below [[{table}]]"))
            continue
        reason = entry.get("reason", "")
        settings = {name: value for name, value in entry.items() if name != "reason"}
        if not isinstance(reason, str) or not reason.strip():
            problems.append(
                Problem(f"{where}.reason", str(reason), "an image that is left out, or added, has "
                        "a reason, for whoever reads it next year",
                        next_step=f'write reason = "…" below [[{table}]]')
            )  # fmt: skip
        if not settings:
            problems.append(
                Problem(where, "", "names no setting", allowed="settings, as SERVICE and CCA")
            )
        found.append(Reasoned(_assignment(where, settings, problems), str(reason), where))
    return tuple(found)


def _assignment(where: str, content: object, problems: list[Problem]) -> dict[str, str]:
    """Return the settings of a table that are right; adds to `problems` what is not."""
    if not isinstance(content, dict):
        problems.append(_wrong_form(where, content, "a table of settings"))
        return {}
    right = {}
    for name, value in content.items():
        field = where if where.endswith(f".{name}") else f"{where}.{name}"
        taken = _setting(field, name, value)
        if isinstance(taken, Problem):
            problems.append(taken)
        else:
            right[name] = taken
    return right


def _setting(field: str, name: str, value: object) -> str | Problem:
    """Return the value of a setting, or why it is none of an image, or does not take the value."""
    if name not in NAMES:
        return Problem(
            field, str(value), "not a setting", allowed="what `python -m pipeline config` lists",
            next_step=_did_you_mean(name, NAMES),
        )  # fmt: skip
    if group_of(NAMES[name]) in {ENGINE, START}:
        return Problem(
            field, str(value), "changes no image: it says where one is built or how one is started",
            next_step="set it in .env, or take it out",
        )  # fmt: skip
    if not isinstance(value, str) or not value:
        return Problem(
            field, json.dumps(value, default=str), "settings are text",
            allowed='a string that is not empty, as "3.10" with its quotes',
            next_step="put it into quotes" if value else "take it out",
        )  # fmt: skip
    taken = accepted(name, value)
    if isinstance(taken, Problem):
        why = taken.why.partition(" (from ")[0]
        return replace(taken, field=field, why=why)
    return taken


def _wrong_form(where: str, value: object, allowed: str) -> Problem:
    return Problem(where, json.dumps(value, default=str), "not of this form", allowed=allowed)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.upper(), [it.upper() for it in known], 1, 0.6)
    exact = next((it for it in known if near and it.upper() == near[0]), "")
    return f"did you mean {exact}?" if exact else ""


# The cells


def cells(
    matrix: Matrix,
    settings: Settings,
    *,
    folder: Path = reqs.FOLDER,
    gpus: Callable[[], list[Arch]] = list,
    resolve: Resolve = unresolved,
) -> tuple[Cell, ...]:
    """Return the cells of a matrix on top of the user's settings, those of one key once.

    `gpus` and `resolve` are as for `validate.image_spec`, and asked once for all cells.

    Raises:
        ConfigError: every combination that cannot be built and is not excluded, every exclude
            that excludes nothing, every image that would be made or go elsewhere a second time,
            and every name that two images would have.

    """
    problems = _idle_excludes(matrix)
    once = Once(name.lower() for name in matrix.differing)
    made: dict[str, Cell] = {}
    again: list[tuple[str, Cell, Cell]] = []
    refused: list[tuple[Assignment, tuple[Problem, ...]]] = []
    with _all_kept():
        for where, chosen in _combinations(matrix):
            own = {**matrix.settings, **chosen}
            try:
                spec = validate.image_spec(
                    applied(settings, own), folder=folder, gpus=gpus, resolve=resolve, once=once
                )
            except ConfigError as error:
                if where:
                    problems += [replace(it, field=f"{where}.{it.field}") for it in error.problems]
                else:
                    refused.append((chosen, error.problems))
                continue
            cell = Cell(own, spec)
            first = made.setdefault(spec.key, cell)
            if first is not cell:
                again.append((where, first, cell))
    problems += _refusals(matrix, refused)
    problems += _repeats(matrix, again, settings)
    problems += _shared_names(tuple(made.values()), settings)
    if problems:
        raise ConfigError(problems)
    return tuple(made.values())


@contextlib.contextmanager
def _all_kept() -> Iterator[None]:
    """Have no garbage looked for: of ten thousand images that takes a third of the time.

    There is none. All that is made is kept, and has no cycles, so that it goes as it came.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was:
            gc.enable()


def applied(settings: Settings, chosen: Assignment) -> Settings:
    """Return the user's settings with those of a cell, which are valid each, on top."""
    return settings.model_copy(update={name.lower(): value for name, value in chosen.items()})


def select(
    found: Sequence[Cell], only: Sequence[str] = (), skip: Sequence[str] = ()
) -> tuple[Cell, ...]:
    """Return the cells whose variant fits one of the globs `only`, if any, and none of `skip`.

    Raises:
        NothingSelected: no cell is left, or there was none.

    """
    if not found:
        raise NothingSelected(
            "the matrix has no image",
            why="an [[exclude]] leaves out every combination of the axes, and there is no "
            "[[include]]",
            next_step="take an [[exclude]] out, or name an image by an [[include]]",
        )
    left = tuple(
        cell
        for cell in found
        if (not only or _fits(cell.variant, only)) and not _fits(cell.variant, skip)
    )
    if left:
        return left
    words = [f"--only {glob}" for glob in only] + [f"--skip {glob}" for glob in skip]
    names = [cell.variant for cell in found]
    near = difflib.get_close_matches(only[0], names, 1, 0) if only and names else names[:1]
    raise NothingSelected(
        f"no image of the matrix is left by {' '.join(words)}",
        why=f"the globs are matched with whole variants, such as {near[0]}" if near else "",
        next_step="`python -m pipeline matrix` lists them",
    )


def held(found: Sequence[Cell], lock: Lock) -> tuple[Cell, ...]:
    """Return the cells held to the lock.

    Raises:
        LockError: in what the lock is of something else, for all cells at once.

    """
    return tuple(
        replace(cell, spec=spec)
        for cell, spec in zip(found, _each(found, lambda it: locks.held(it, lock)), strict=True)
    )


def check_lockable(found: Sequence[Cell]) -> None:
    """Raise LockError for the cells of which no lock can be made."""
    _each(found, locks.check_lockable)


def _each(found: Sequence[Cell], function: Callable[[ImageSpec], T]) -> list[T]:
    """Return what a function says of each cell; LockError with all that it raises, each once."""
    answers = []
    problems: dict[Problem, None] = {}
    for cell in found:
        try:
            answers.append(function(cell.spec))
        except locks.LockError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        alone, all_cells = "pipeline lock", "pipeline lock --matrix"
        steps = {it: it.next_step.replace(alone, all_cells) for it in problems}
        raise locks.LockError([replace(it, next_step=step) for it, step in steps.items()])
    return answers


def _fits(variant: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(variant, glob) for glob in globs)


def _product(matrix: Matrix) -> Iterator[dict[str, str]]:
    if matrix.axes:
        for points in itertools.product(*matrix.axes):
            yield {name: value for point in points for name, value in point.items()}


def _combinations(matrix: Matrix) -> Iterator[tuple[str, Assignment]]:
    """Return what each cell sets, those of the includes with where they stand in the file."""
    for chosen in _product(matrix):
        if not any(it.names(chosen) for it in matrix.excludes):
            yield "", chosen
    for it in matrix.includes:
        yield it.where, it.settings


def _idle_excludes(matrix: Matrix) -> list[Problem]:
    idle = set(range(len(matrix.excludes)))
    for chosen in _product(matrix):
        idle -= {at for at in idle if matrix.excludes[at].names(chosen)}
        if not idle:
            break
    return [
        Problem(
            matrix.excludes[at].where, _words(matrix.excludes[at].settings),
            "no combination of the axes has these", next_step="mend it, or take it out",
        )
        for at in sorted(idle)
    ]  # fmt: skip


def _refusals(
    matrix: Matrix, refused: Sequence[tuple[Assignment, tuple[Problem, ...]]]
) -> list[Problem]:
    """Return a problem for each group of refused combinations, with the exclude that names it."""
    if not refused:
        return []
    impossible = {frozenset(chosen.items()) for chosen, _ in refused}
    possible = [
        chosen
        for where, chosen in _combinations(matrix)
        if not where and frozenset(chosen.items()) not in impossible
    ]
    found: list[Problem] = []
    waiting = list(refused)
    while waiting and len(found) < _SHOWN:
        chosen, problems = waiting[0]
        partial = _least(chosen, {problem.field for problem in problems}, possible)
        covered = [it for it in waiting if partial.items() <= it[0].items()]
        waiting = [it for it in waiting if not partial.items() <= it[0].items()]
        first = problems[0]
        count = f"{len(covered)} combinations" if len(covered) > 1 else "one combination"
        found.append(
            Problem(
                f"{matrix.file}: axes",
                _words(partial),
                f"{count} cannot be built: {first.field}={first.value!r}: {first.why}",
                first.allowed,
                first.next_step + _exclude(partial, first.why),
                first.source,
            )
        )
    if waiting:
        found.append(
            Problem(f"{matrix.file}: axes", "", f"{len(waiting)} more cannot be built",
                    next_step="mend the above first")
        )  # fmt: skip
    return found


def _least(chosen: Assignment, fields: Iterable[str], possible: Sequence[Assignment]) -> Assignment:
    """Return as few settings of a refused combination as no possible one has.

    Those that the refusal is about are the last to go.
    """
    about = set(fields)
    partial = dict(chosen)
    for name in sorted(chosen, key=lambda it: it in about):
        less = {it: value for it, value in partial.items() if it != name}
        if less and not any(less.items() <= it.items() for it in possible):
            partial = less
    return partial


def _exclude(partial: Assignment, why: str) -> str:
    lines = [*partial.items(), ("reason", why)]
    table = "\n".join(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in lines)
    return f"; or leave it out of the matrix by:\n[[exclude]]\n{table}"


def _words(chosen: Assignment) -> str:
    return " ".join(f"{name}={shown(value, name)}" for name, value in chosen.items())


def _repeats(
    matrix: Matrix, again: Sequence[tuple[str, Cell, Cell]], settings: Settings
) -> list[Problem]:
    """Return the problems of images that are asked for a second time, in another way or place.

    Those of one place in the file that differ in the same settings are one problem.
    """
    names = sorted(matrix.differing & _IN_NO_KEY)

    def values(cell: Cell) -> Assignment:
        return {it: cell.settings.get(it, getattr(settings, it.lower())) for it in names}

    groups: dict[tuple[str, tuple[str, ...]], list[tuple[Assignment, Assignment]]] = {}
    for where, first, cell in again if names else ():
        one, other = values(first), values(cell)
        if differ := tuple(it for it in names if one[it] != other[it]):
            groups.setdefault((where, differ), []).append((one, other))
    problems = []
    for (where, differ), pairs in groups.items():
        one, other = ({it: chosen[it] for it in differ} for chosen in pairs[0])
        named = " and ".join(differ)
        options = " and ".join(f"--{it.lower().replace('_', '-')}" for it in differ)
        what = "this image is" if where else f"{len(pairs)} of the images are"
        problems.append(
            Problem(
                where or f"{matrix.file}: axes", _words(other),
                f"{what} in the matrix already, with {_words(one)}: {named} makes no image another "
                "one, and a run makes and delivers each once",
                next_step=f"take {'the include' if where else named} out, and have a run for each "
                f"by {options}",
            )
        )  # fmt: skip
    return problems


def _shared_names(found: Sequence[Cell], settings: Settings) -> list[Problem]:
    """Return the problems of names that several images would have in turns."""
    problems = []
    by_name: dict[str, list[Cell]] = {}
    for cell in found:
        image_name = cell.settings.get("IMAGE_NAME", settings.image_name)
        extra = image_name.partition(":")[2]
        by_name.setdefault(cell.variant, []).append(cell)
        if extra:
            by_name.setdefault(f"{tags.repository(image_name)}:{extra}", []).append(cell)
    for name, owners in by_name.items():
        if len(owners) > 1:
            first, second = owners[:2]
            differ = {
                it
                for it in {**first.settings, **second.settings}
                if first.settings.get(it) != second.settings.get(it)
            }
            problems.append(
                Problem(
                    "IMAGE_NAME" if ":" in name else "images.toml", name,
                    f"{len(owners)} images would have this name in turns; the first two differ in "
                    + (", ".join(sorted(differ)) or "nothing that the file sets"),
                    next_step="let each have an IMAGE_NAME without a tag" if ":" in name
                    else "leave one of them out, or set what is part of the variant",
                )
            )  # fmt: skip
    return problems
