"""One image from spec to delivery, or its wheels alone: look for it, run the plan, deliver."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import VerifyError
from pipeline.plan import plan, wheel_plan
from pipeline.publish import KEY_LABEL, Delivered, Destination
from pipeline.run import Compiled, Run, started
from pipeline.settings import Settings
from pipeline.spec import ImageSpec

if TYPE_CHECKING:
    from dagger import Container, Directory

    from pipeline.bundle.supply import Taken
    from pipeline.stages.inputs import Inputs


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
    deadline: float = 0,
    taken: Taken | None = None,
) -> Outcome:
    """Build, check and deliver the image; return where it is and what it took.

    `deadline` is when a compile stops in good order, in seconds since the epoch; 0: never. All that
    comes from the network is `taken` down for a bundle, where that is given.

    Raises:
        ConfigError: the base or the requirements are not what the settings say.
        EngineError: no engine, or it was lost.
        BuildError: a stage failed.
        BundleError: BUNDLE is no bundle, or has not all that it takes.
        VerifyError: the image is not what the spec says; nothing was delivered.
        PublishError: it could not be delivered.
        Unfinished: the deadline came before the end of a compile.
        Interrupted: Ctrl-C.

    """

    async def work(run: Run) -> Outcome:
        from pipeline.stages import targets  # noqa: PLC0415 - as in started

        stages = targets.stages(
            spec, run.base, run.build_base, run.inputs, labels(spec, run.origin), run.stored
        )
        image: Any = await run.through(stages)
        with run.report.stage("verify"), run.translated():
            await _verify(image, spec, stages.get("installer"), run.inputs)
        with run.report.stage("deliver", in_engine=False), run.translated():
            delivered = await where.deliver(image, spec)
        if run.unkept:
            run.report.note(f"delivered: {delivered.ref}")
        if taken:
            with run.translated():
                await _take_wheels(taken, spec, run.stored, stages)
        return Outcome(
            delivered,
            spec,
            run.report.seconds(),
            run.report.cached(),
            run.choice.kind,
            run.origin,
            tuple(run.compiled),
        )

    return started(
        work, spec, settings, plan(spec), refresh_base=refresh_base, deadline=deadline, taken=taken
    )


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


async def _take_wheels(
    taken: Taken,
    spec: ImageSpec,
    stored: Mapping[str, Directory],
    stages: Mapping[str, Container | Directory],
) -> None:
    """Take the compiled wheels, with the records of their compiles, into a bundle."""
    from pipeline import store  # noqa: PLC0415 - as in started

    for wheel in spec.compiled:
        made = stored.get(wheel.key) or stages[f"{wheel.package}-wheel"]
        assert not hasattr(made, "with_exec")
        folder = taken.folder / wheel.package
        await made.export(str(folder.absolute()))
        taken.add_wheel(store.tag(wheel), folder)


async def _export(directory: Container | Directory, output: Path) -> Path:
    """Write the wheel of a directory to a folder under its name, once it is whole."""
    assert not hasattr(directory, "with_exec")
    (name,) = await directory.glob("*.whl")
    partial = output / f".{name}.partial"
    await directory.file(name).export(str(partial))
    return partial.rename(output / name)


async def _verify(image: Container, spec: ImageSpec, installer: Any, inputs: Inputs) -> None:  # noqa: ANN401 - a Container, or None
    from pipeline.stages import verify  # noqa: PLC0415 - as in started

    lister = verify.cuobjdump(installer, inputs) if installer and spec.compiled else None
    facts = verify.read(await verify.probe(image, spec, lister).stdout())
    if problems := verify.judge(spec, facts):
        raise VerifyError(problems)


def labels(spec: ImageSpec, origin: str) -> dict[str, str]:
    """Return what is written on an image; `origin` is where its base came from."""
    return {
        "org.opencontainers.image.title": "cresset",
        "org.opencontainers.image.version": spec.variant,
        "org.opencontainers.image.base.name": spec.base.image,
        KEY_LABEL: spec.key,
        "dev.cresset.base": origin,
        "dev.cresset.version": importlib.metadata.version("cresset"),
    }
