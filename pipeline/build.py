"""One image from spec to delivery: look for it, choose an engine, run the plan, check, deliver."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from anyio import to_thread

from pipeline import reqs
from pipeline.errors import BuildError, ConfigError, VerifyError
from pipeline.plan import plan
from pipeline.publish import KEY_LABEL, Delivered, Destination
from pipeline.report import Report, reporting
from pipeline.settings import Settings
from pipeline.spec import BaseSpec, ImageSpec

if TYPE_CHECKING:
    from dagger import Container, Directory


@dataclass(frozen=True)
class Outcome:
    """What a build leaves behind."""

    delivered: Delivered
    spec: ImageSpec
    seconds: dict[str, float]
    cached: list[str]
    engine: str = ""
    base: str = ""

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
        }


def found(spec: ImageSpec, where: Destination) -> Outcome | None:
    """Return the outcome of a build that has nothing to do, None if there is something to do."""
    delivered = where.find(spec)
    if delivered is None:
        return None
    return Outcome(delivered, spec, seconds={}, cached=[step.name for step in plan(spec)])


async def build(
    spec: ImageSpec, settings: Settings, where: Destination, *, refresh_base: bool = False
) -> Outcome:
    """Build, check and deliver the image; return where it is and what it took.

    Raises:
        ConfigError: a requirements file cannot be right.
        EngineError: no engine, or it was lost.
        BuildError: a stage failed.
        VerifyError: the image is not what the spec says; nothing was delivered.
        PublishError: it could not be delivered.

    """
    _check_requirements(spec)
    steps = [step.name for step in plan(spec)]
    with reporting("build", ["engine", *steps]) as report:
        return await _run(spec, settings, where, report, refresh_base=refresh_base)


def _check_requirements(spec: ImageSpec) -> None:
    pinned = {"torch": spec.torch.version, "torchvision": spec.torch.vision} if spec.torch else {}
    if problems := reqs.check_pip(reqs.FOLDER, spec.pip, pinned):
        raise ConfigError(problems)


async def _run(
    spec: ImageSpec,
    settings: Settings,
    where: Destination,
    report: Report,
    *,
    refresh_base: bool,
) -> Outcome:
    # Imported here: they bring the SDK, which takes longer than a build with nothing to do.
    from pipeline.engine import select, session, telemetry  # noqa: PLC0415
    from pipeline.stages import inputs, targets, verify  # noqa: PLC0415

    with report.stage("engine", can_be_cached=False):
        choice = select.choose(settings.engine, report.say)
        report.note(f"engine: {choice.kind} ({choice.reason})")
    watcher = telemetry.Watcher(output=report.output, ran=report.ran)
    with telemetry.receiver(watcher):
        async with session.session(choice, report.stream):
            with report.stage("base"):
                base, origin = await _base(spec.base, settings, report, refresh=refresh_base)
                report.note(f"base: {origin}")
            given = inputs.inputs(
                reqs.FOLDER,
                [*(file.name for file in spec.pip), reqs.PIP_BUILD, reqs.PIP_MKL],
                index_url=settings.index_url,
                extra_index_url=settings.extra_index_url,
                torch_index_url=_torch_index(spec, settings),
            )
            image = await _force(targets.stages(spec, base, given, _labels(spec, origin)), report)
            with report.stage("verify"):
                facts = verify.read(await verify.probe(image, spec).stdout())
                if problems := verify.judge(spec, facts):
                    raise VerifyError(problems)
            with report.stage("deliver", can_be_cached=False):
                delivered = await where.deliver(image, spec)
    return Outcome(delivered, spec, report.seconds(), report.cached(), choice.kind, origin)


async def _base(
    spec: BaseSpec, settings: Settings, report: Report, *, refresh: bool
) -> tuple[Container, str]:
    """Return the base and where it came from: the one choice that is left to the machine."""
    from pipeline.engine import session  # noqa: PLC0415 - as in _run
    from pipeline.host.bootstrap import base_archive  # noqa: PLC0415
    from pipeline.stages import base as stage  # noqa: PLC0415

    def mirrored(base: Container) -> Container:
        return stage.with_apt_mirror(base, spec)

    if spec.source == "archive":
        archive = settings.base_archive
        return await mirrored(stage.base_from_archive(archive)).sync(), f"archive {archive}"
    if spec.source in {"auto", "image"}:
        why = await session.why_unavailable(stage.base_from_registry(spec.image))
        if not why:
            return await mirrored(
                stage.base_from_registry(spec.image)
            ).sync(), f"image {spec.image}"
        if spec.source == "image" or not spec.can_bootstrap:
            raise BuildError(
                f"the base {spec.image} cannot be pulled",
                why=why,
                next_step="set BASE_IMAGE to a reference that this machine can pull, or "
                "BASE_SOURCE=bootstrap with LINUX_DISTRO=debian",
            )
        report.note(f"{spec.image} cannot be pulled ({why})")
    made = await to_thread.run_sync(lambda: base_archive(spec, report.say, refresh=refresh))
    return await mirrored(stage.base_from_archive(str(made))).sync(), f"bootstrap {spec.codename}"


def _labels(spec: ImageSpec, origin: str) -> dict[str, str]:
    return {
        "org.opencontainers.image.title": "cresset",
        "org.opencontainers.image.version": spec.variant,
        "org.opencontainers.image.base.name": spec.base.image,
        KEY_LABEL: spec.key,
        "dev.cresset.base": origin,
        "dev.cresset.version": importlib.metadata.version("cresset"),
    }


def _torch_index(spec: ImageSpec, settings: Settings) -> str:
    """Return the index of torch's wheels, empty where it is that of every other package."""
    return settings.pytorch_index_url or (spec.torch.index if spec.torch else "")


async def _force(stages: Mapping[str, Container | Directory], report: Report) -> Container:
    """Run the stages one after the other and return the last, the image, as it came out."""
    made: Container | Directory | None = None
    for name, lazy in stages.items():
        with report.stage(name):
            made = await lazy.sync()
    return cast("Container", made)
