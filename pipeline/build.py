"""One image from spec to delivery, or its wheels alone: look for it, run the plan, deliver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline import relock
from pipeline.attest import proof
from pipeline.attest.subject import Made
from pipeline.errors import VerifyError
from pipeline.host import repository
from pipeline.labels import ARCHES, labels
from pipeline.lock import apt_drift
from pipeline.plan import Step, plan, wheel_plan
from pipeline.publish import Delivered, Destination
from pipeline.run import Compiled, Run, started, to_compile
from pipeline.settings import Settings
from pipeline.spec import ImageSpec

if TYPE_CHECKING:
    from dagger import Container, Directory

    from pipeline.bundle.supply import Taken
    from pipeline.stages.inputs import Inputs

_LOCK: Final = Step("lock", "whether the indexes and apt's mirror have what is locked")


@dataclass(frozen=True)
class Outcome:
    """What a build leaves behind."""

    delivered: Delivered
    spec: ImageSpec
    seconds: dict[str, float]
    cached: list[str]
    engine: str = ""
    base: str = ""
    compiled: tuple[Compiled, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {
            "ref": self.delivered.ref,
            "digest": self.delivered.digest,
            "key": self.spec.key,
            "variant": self.spec.variant,
            "size": self.delivered.size,
            "seconds": self.seconds,
            "cached": self.cached,
            "engine": self.engine,
            "base": self.base,
            "compiled": [wheel.as_json() for wheel in self.compiled],
        }


def found(spec: ImageSpec, where: Destination) -> Outcome | None:
    """Return the outcome of a build that has nothing to do, None if there is something to do."""
    delivered = where.find(spec)
    if delivered is None:
        return None
    return Outcome(delivered, spec, seconds={}, cached=[step.name for step in plan(spec)])


def build(
    spec: ImageSpec,
    settings: Settings,
    where: Destination,
    *,
    refresh_base: bool = False,
    check_index: bool = False,
    deadline: float = 0,
    taken: Taken | None = None,
) -> Outcome:
    """Build, check and deliver the image; return where it is and what it took.

    A spec that is held to a lock is refused with `check_index` where an index has other files.
    `deadline` is when a compile stops in good order, in seconds since the epoch; 0: never. All that
    comes from the network is `taken` down for a bundle, where that is given.

    Raises:
        ConfigError: the base, the requirements or what the lock holds are not what they were.
        EngineError: no engine, or it was lost.
        BuildError: a stage failed.
        BundleError: BUNDLE is no bundle, or has not all that it takes.
        VerifyError: the image is not what the spec says; nothing was delivered.
        PublishError: it could not be delivered.
        Unfinished: the deadline came before the end of a compile.
        Interrupted: Ctrl-C.

    """
    signer = proof.signer(settings)  # a key that is none is not found after hours of compiling
    started_at = datetime.now(UTC)

    async def work(run: Run) -> Outcome:
        from pipeline.stages import targets  # noqa: PLC0415 - as in started
        from pipeline.stages.finish import with_labels  # noqa: PLC0415
        from pipeline.stages.verify import commit, gpu_code  # noqa: PLC0415

        written = labels(spec, run.origin, *repository.checkout())
        stages = targets.stages(spec, run.base, run.build_base, run.inputs, written, run.stored)
        if check_index:
            await relock.check(run, spec)
        image: Any = await run.through(stages)
        with run.report.stage("verify"), run.translated():
            facts = await _verify(image, spec, stages.get("installer"), run.inputs)
            if arches := " ".join(gpu_code(facts)):
                image = with_labels(image, {ARCHES: arches})
        with run.report.stage("deliver", in_engine=False), run.translated():
            delivered = await where.deliver(image, spec)
        if run.unkept:
            run.report.note(f"delivered: {delivered.ref}")
        if settings.attest != "off":
            made = Made(
                origin=run.origin,
                engine=run.choice.kind,
                started=started_at,
                finished=datetime.now(UTC),
                arches=arches,
                torch_commit=commit(facts),
            )
            with run.report.stage("attest", in_engine=False), run.translated():
                await proof.attest(
                    image, spec, settings, where, delivered, made, signer, run.report.note
                )
        if taken:
            with run.report.stage("sources", in_engine=False), run.translated():
                await _take_wheels(taken, spec, run.stored, stages)
                await _take_sources(taken, run)
        return Outcome(
            delivered,
            spec,
            run.report.seconds(),
            run.report.cached(),
            run.choice.kind,
            run.origin,
            tuple(run.compiled),
        )

    steps = plan(spec, attest=settings.attest != "off")
    if taken:
        steps += (Step("sources", "wheels and sources for the bundle"),)
    if check_index:
        steps = (steps[0], _LOCK, *steps[1:])
    return started(
        work, spec, settings, steps, refresh_base=refresh_base, deadline=deadline, taken=taken
    )


def check(spec: ImageSpec, settings: Settings) -> None:
    """Raise LockError where an index, apt's mirror or the engine is not what a held spec says."""

    async def work(run: Run) -> None:
        await relock.check(run, spec)

    steps = (plan(spec)[0], _LOCK)
    started(work, spec, settings, steps)


def wheels(spec: ImageSpec, settings: Settings, output: Path, *, deadline: float = 0) -> list[Path]:
    """Compile the wheels of the spec, as `build` does, and write them to `output`; return them.

    Raises as `build` does.
    """

    async def work(run: Run) -> list[Path]:
        from pipeline.stages import wheels as stage  # noqa: PLC0415 - as in started
        from pipeline.stages.base import bottom  # noqa: PLC0415

        assert spec.torch is not None
        below = bottom(run.base, spec, run.inputs)
        made = stage.wheel_stages(
            run.build_base, below.system, below.installer, spec, spec.torch, run.inputs, run.stored
        )
        for name in ("wheels", "torch"):
            made.pop(name)
        await run.through({**below.stages(), **made} if made else {})
        finished = {
            wheel.key: run.stored.get(wheel.key) or made[f"{wheel.package}-wheel"]
            for wheel in spec.compiled
        }
        with run.report.stage("export", in_engine=False), run.translated():
            files = [await _export(finished[wheel.key], output) for wheel in spec.compiled]
        if run.unkept:
            run.report.note(f"written: {', '.join(map(str, files))}")
        return files

    return started(work, spec, settings, wheel_plan(spec), image=False, deadline=deadline)


def machine(spec: ImageSpec, settings: Settings) -> tuple[int, int]:
    """Return the cores and the bytes of memory of the machine that the engine runs on.

    Raises as `build` does: an engine that says this can build on the base of the spec.
    """

    async def work(run: Run) -> tuple[int, int]:
        from pipeline.engine import machine  # noqa: PLC0415 - as in started

        with run.report.stage("machine"), run.translated():
            return await machine.ask(run.base)

    steps = (*plan(spec)[:1], Step("machine", "its cores and its memory", ("base",)))
    return started(work, spec, settings, steps)


async def _take_wheels(
    taken: Taken,
    spec: ImageSpec,
    stored: Mapping[str, Directory],
    stages: Mapping[str, Container | Directory],
) -> None:
    """Take the compiled wheels, with the records of their compiles, into a bundle."""
    from pipeline import store  # noqa: PLC0415 - as in started

    for wheel in spec.compiled:
        made = stored.get(wheel.key) or stages.get(f"{wheel.package}-wheel")
        if made is None:  # the devel image compiles with its own hands
            continue
        assert not hasattr(made, "with_exec")
        folder = taken.folder / wheel.package
        await made.export(str(folder))
        taken.add_wheel(store.tag(wheel), folder)


async def _take_sources(taken: Taken, run: Run) -> None:
    """Take the sources of all compiled wheels into a bundle, whether or not a store had the wheel.

    The toolchain of what was compiled for it was taken as it was fetched.
    """
    from anyio import to_thread  # noqa: PLC0415 - as in started

    from pipeline.stages.tarball import tarball  # noqa: PLC0415
    from pipeline.stages.wheels import wheel_source  # noqa: PLC0415

    for wheel in to_compile(run.spec, stored=()):
        for source in filter(lambda it: it.is_remote, wheel.sources):
            file = taken.folder / source.tarball
            code = wheel_source(run.build_base, wheel, source, run.inputs)
            await tarball(code, run.build_base).export(str(file))
            await to_thread.run_sync(taken.add_source, source, file)


async def _export(directory: Container | Directory, output: Path) -> Path:
    """Write the wheel of a directory to a folder under its name, once it is whole."""
    assert not hasattr(directory, "with_exec")
    (name,) = await directory.glob("*.whl")
    partial = output / f".{name}.partial"
    await directory.file(name).export(str(partial))
    return partial.rename(output / name)


async def _verify(
    image: Container,
    spec: ImageSpec,
    installer: Any,  # noqa: ANN401 - a Container, or None
    inputs: Inputs,
) -> dict[str, Any]:
    """Return what was found in the image; VerifyError if it is not what the spec says."""
    from pipeline.stages import locked, verify  # noqa: PLC0415 - as in started

    lister = verify.cuobjdump(installer, inputs) if installer and spec.compiled else None
    facts = verify.read(await verify.probe(image, spec, lister).stdout())
    problems = verify.judge(spec, facts)
    if spec.lock is not None:
        listed = locked.read_versions(await locked.versions(image).stdout())
        problems += apt_drift(spec.lock, listed)
    if problems:
        raise VerifyError(problems)
    return facts
