"""Making a lock: what the base, the repositories, the indexes and apt's mirror have now."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline import lock as locks
from pipeline import store as stores
from pipeline.errors import BuildError, ConfigError, Problem
from pipeline.lock import Asked, Image, Lock, LockError
from pipeline.plan import Step
from pipeline.run import Run, started
from pipeline.settings import Settings
from pipeline.spec import ImageSpec, Locked, Package, without_login

if TYPE_CHECKING:
    from dagger import Container, Directory

Commit = Callable[[str, str], str | Problem]

_STEPS = (
    Step("base", "the base, by its digest"),
    Step("python", "what the indexes have", ("base",)),
    Step("apt", "what apt's mirror has", ("base",)),
)


@dataclass(frozen=True)
class Relocked:
    """A lock with an image in it."""

    lock: Lock
    waits: bool
    """Whether the image's packages could not be asked for, as its wheels are not compiled yet."""


def relocked(asked: Asked, old: Lock, commit: Commit, *, update: bool) -> Relocked:
    """Return the lock with all that an image needs in it.

    What it has already stays as it is, unless with `update`; then all of this image is asked anew.
    No engine is asked where nothing is missing. Of an image whose wheels are not compiled yet it
    has the bases and sources, which is all that compiling them takes, and the packages that it had
    if they were resolved from the same.

    Raises:
        ConfigError: a branch or tag is not there, or a requirement cannot be locked.
        EngineError, BuildError: as a build does.

    """
    spec = asked.spec
    locks.check_lockable(spec)
    new = _with_sources(asked, Lock() if update else old, commit)
    new = old.model_copy(
        update={
            "engine": locks.engine(),
            "prompt": locks.prompt(),
            "git": {url: dict(old.git.get(url, {})) | dict(refs) for url, refs in new.git.items()}
            | {url: refs for url, refs in old.git.items() if url not in new.git},
            "archive": {**old.archive, **new.archive},
        }
    )
    entry = old.image.get(spec.variant)
    has_bases = all(
        any(name in old.base for name in locks.base_names(base)) for base in locks.bases(spec)
    )
    kept = () if update else _kept_bases(spec, old)
    ready = locks.with_sources(spec, new).model_copy(update={"lock": Locked(bases=kept)})
    # What a compiled wheel depends on is written in it.
    whole = _has_wheels(ready, asked.settings)
    resolved = entry is not None and entry.inputs == locks.inputs(spec)
    bases = dict(new.base)
    image = entry if resolved else None
    if update or not has_bases or (whole and not resolved):
        found, anew = started(_work(ready, whole=whole), ready, asked.settings, _STEPS)
        # Of two names for one base the one that is not taken any more goes.
        dropped = {name for base in locks.bases(spec) for name in locks.base_names(base)}
        bases = {name: it for name, it in bases.items() if name not in dropped} | found
        image = anew or image
    images = {name: it for name, it in new.image.items() if name != spec.variant}
    if image is not None:
        images[spec.variant] = image
    made = new.model_copy(update={"base": bases, "image": images})
    return Relocked(made, waits=not whole and (update or not resolved))


def _with_sources(asked: Asked, known: Lock, commit: Commit) -> Lock:
    """Return a lock with the commits and tarballs of a spec alone."""
    git: dict[str, dict[str, str]] = {}
    problems: list[Problem] = []
    for (url, ref), found in asked.branches.items():
        public = without_login(url)
        git.setdefault(public, {})[ref] = known.git.get(public, {}).get(ref, found)
    for url, ref in locks.tags(asked.spec):
        public = without_login(url)
        answer = known.git.get(public, {}).get(ref) or commit(url, ref)
        if isinstance(answer, Problem):
            problems.append(answer)
        else:
            git.setdefault(public, {})[ref] = answer
    if problems:
        raise ConfigError(problems)
    archive = {
        it.public_location: it.sha256 for it in locks.sources(asked.spec) if it.kind == "archive"
    }
    return Lock(git=git, archive=archive)


def _kept_bases(spec: ImageSpec, old: Lock) -> tuple[tuple[str, str], ...]:
    names = [name for base in locks.bases(spec) for name in locks.base_names(base)]
    return tuple((name, old.base[name]) for name in names if name in old.base)


def _has_wheels(spec: ImageSpec, settings: Settings) -> bool:
    """Say whether every wheel that is compiled for an image is in the wheel store."""
    store = stores.store(settings)
    return all(store is not None and store.has(wheel) for wheel in spec.compiled)


def _work(spec: ImageSpec, *, whole: bool) -> Callable[[Run], Any]:
    async def work(run: Run) -> tuple[dict[str, str], Image | None]:
        from pipeline.stages import locked  # noqa: PLC0415 - as in build

        moment = _now()
        bases = dict(
            locks.base_entry(base, origin)
            for base, origin in zip(locks.bases(spec), (run.origin, run.build_origin), strict=False)
        )
        if not whole:
            return bases, None
        below = locked.bottom_anew(run.base, spec, run.inputs, moment)
        compiled = [run.stored[wheel.key] for wheel in spec.compiled]
        with run.report.stage("python"), run.translated():
            found = locked.resolved(below, spec, run.inputs, compiled, moment=moment)
            torch = await _packages(found, "torch.toml", spec)
            everything = await _packages(found, "pylock.toml", spec)
        with run.report.stage("apt"), run.translated():
            printed = locked.versions(locked.with_apt(below, spec))
            apt = locked.read_versions(await printed.stdout())
        pip = [it for it in everything if it not in torch]
        return bases, Image(
            inputs=locks.inputs(spec),
            torch=locks.by_name(torch),
            pip=locks.by_name(pip),
            apt=apt,
        )

    return work


async def _packages(found: Directory, name: str, spec: ImageSpec) -> list[Package]:
    """Return the packages of a ``pylock.toml``, without those that are compiled."""
    from pipeline.stages.locked import LOCAL  # noqa: PLC0415 - as in build

    text = await found.file(name).contents()
    version = re.search(r"(\d+)\.(\d+)", await found.file("glibc").contents())
    glibc = (int(version[1]), int(version[2])) if version else (2, 17)
    own = {wheel.package for wheel in spec.compiled}
    listed = locks.packages(text, spec.python, glibc, LOCAL)
    return [it for it in listed if it.name not in own]


async def check(run: Run, spec: ImageSpec) -> None:
    """Raise LockError where an index or apt's mirror has moved on, or the engine is another."""
    from pipeline.engine import session  # noqa: PLC0415 - as in build
    from pipeline.stages import locked  # noqa: PLC0415
    from pipeline.stages.base import bottom  # noqa: PLC0415

    assert spec.lock is not None
    below, moment = bottom(run.base, spec, run.inputs), _now()
    with run.report.stage("lock"), run.translated():
        problems = list(locks.engine_drift(await session.version()))
        problems += await _apt_drift(run.base, spec, spec.lock, moment)
        found = locked.offered(below, spec, run.inputs, spec.lock, moment=moment)
        try:
            now = await _packages(found, "pylock.toml", spec)
        except BuildError as error:
            raise LockError([*problems, _not_offered(spec, error)]) from error
        problems += locks.packages_drift(spec.variant, spec.lock, now)
    if problems:
        raise LockError(problems)


async def _apt_drift(base: Container, spec: ImageSpec, lock: Locked, moment: str) -> list[Problem]:
    """Return in what apt's mirror has moved on, or why it cannot be asked."""
    from pipeline.engine import session  # noqa: PLC0415 - as in build
    from pipeline.stages import locked  # noqa: PLC0415

    if not lock.apt:
        return []
    try:
        with session.translated():
            printed = await locked.candidates(base, spec, lock, moment=moment).stdout()
    except BuildError as error:
        why = f"apt cannot be asked: {' '.join(error.tail.split()) or error.why}"
        step = "look at DEB_OLD and DEB_NEW; --frozen asks nobody"
        return [Problem(f"{spec.variant} apt", "", why, allowed=str(locks.FILE), next_step=step)]
    return locks.apt_drift(lock, locked.read_candidates(printed))


def _not_offered(spec: ImageSpec, error: BuildError) -> Problem:
    said = " ".join(error.tail.split())
    return Problem(
        f"{spec.variant} packages",
        "",
        f"the index does not have all of them: {said or error.why}",
        allowed=str(locks.FILE),
        next_step=f"{locks.UPDATE}, or name an index that keeps them",
    )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat()
