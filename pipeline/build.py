"""One image from spec to delivery: look for it, choose an engine, run the plan, check, deliver."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import reqs
from pipeline.errors import BuildError, ConfigError, Problem, VerifyError, interruptible
from pipeline.plan import plan
from pipeline.publish import KEY_LABEL, Delivered, Destination
from pipeline.settings import Settings
from pipeline.spec import BaseSpec, ImageSpec

if TYPE_CHECKING:
    from dagger import Container

    from pipeline.engine.select import Choice
    from pipeline.report import Report
    from pipeline.stages.inputs import Inputs


# What a first build took, by `du` of the engine's state and dist/ after it (README, Figures).
_TORCH_BYTES = 14_000_000_000
_SIMPLE_BYTES = 2_000_000_000


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


def build(
    spec: ImageSpec, settings: Settings, where: Destination, *, refresh_base: bool = False
) -> Outcome:
    """Build, check and deliver the image; return where it is and what it took.

    Raises:
        ConfigError: the base or the requirements are not what the settings say.
        EngineError: no engine, or it was lost.
        BuildError: a stage failed.
        VerifyError: the image is not what the spec says; nothing was delivered.
        PublishError: it could not be delivered.
        Interrupted: Ctrl-C.

    """
    # Imported here: they bring rich and the SDK, which take longer than a build with nothing to do.
    from pipeline.engine import select  # noqa: PLC0415
    from pipeline.report import reporting  # noqa: PLC0415

    steps = [step.name for step in plan(spec)]
    with interruptible(), reporting("build", ["engine", *steps]) as report:
        # Outside the event loop, which would hold Ctrl-C back until an engine is compiled.
        with report.stage("engine", in_engine=False):
            choice = select.choose(settings.engine, report.say)
            report.note(f"engine: {choice.kind} ({choice.reason})")
            if choice.kind == "local" and (warning := _warning_of_disk(spec)):
                report.note(warning)
        from pipeline.engine import session  # noqa: PLC0415

        return session.run(_run(spec, settings, where, choice, report, refresh_base=refresh_base))


def _warning_of_disk(spec: ImageSpec) -> str:
    """Return what to say where a first build may not fit beside the local engine's state."""
    from pipeline.engine import local  # noqa: PLC0415 - as in build

    free = shutil.disk_usage(local.log_path().parent).free
    wanted = _TORCH_BYTES if spec.torch else _SIMPLE_BYTES
    if free >= wanted:
        return ""
    return (
        f"disk: {free / 1e9:.1f} GB are free, and a first build takes about {wanted / 1e9:.0f} GB; "
        "if it ends for want of room, `python -m pipeline engine prune` makes some"
    )


async def _run(
    spec: ImageSpec,
    settings: Settings,
    where: Destination,
    choice: Choice,
    report: Report,
    *,
    refresh_base: bool,
) -> Outcome:
    from pipeline.engine import session, telemetry  # noqa: PLC0415 - as in build
    from pipeline.stages import inputs, targets, verify  # noqa: PLC0415

    watcher = telemetry.Watcher(output=report.output, ran=report.ran)
    with telemetry.receiver(watcher) as report.watched:
        async with session.session(choice, report.stream):
            given = inputs.inputs(
                reqs.FOLDER,
                [file.name for file in spec.pip],
                index_url=settings.index_url,
                extra_index_url=settings.extra_index_url,
                torch_index_url=_torch_index(spec, settings),
                trusted_host=settings.trusted_host,
            )
            with report.stage("base"), session.translated():
                given = await _sent(given, spec)
                base, origin = await _base(spec.base, settings, report, refresh=refresh_base)
                await _check_release(base, spec.base)
                report.note(f"base: {origin}")
            made: Any = base
            for name, lazy in targets.stages(spec, base, given, _labels(spec, origin)).items():
                with report.stage(name), session.translated():
                    made = await lazy.sync()
            image: Container = made
            with report.stage("verify"), session.translated():
                facts = verify.read(await verify.probe(image, spec).stdout())
                if problems := verify.judge(spec, facts):
                    raise VerifyError(problems)
            with report.stage("deliver", in_engine=False), session.translated():
                delivered = await where.deliver(image, spec)
    return Outcome(delivered, spec, report.seconds(), report.cached(), choice.kind, origin)


async def _sent(given: Inputs, spec: ImageSpec) -> Inputs:
    """Send the requirements now, and refuse what was edited since the key was made of them."""
    sent = dataclasses.replace(given, pip_train=await given.pip_train.sync())
    now, _ = reqs.pip_files(reqs.FOLDER, reqs.PIP_TRAIN)
    if tuple(now) != spec.pip:
        raise ConfigError(
            [
                Problem(
                    str(reqs.FOLDER / reqs.PIP_TRAIN),
                    "",
                    "it, or a file it includes, was edited while the build began",
                    next_step="run the same command again",
                )
            ]
        )
    return sent


async def _base(
    spec: BaseSpec, settings: Settings, report: Report, *, refresh: bool
) -> tuple[Container, str]:
    """Return the base and what it is, by digest: the one choice that is left to the machine."""
    from anyio import to_thread  # noqa: PLC0415 - as in _run

    from pipeline.engine import session  # noqa: PLC0415
    from pipeline.host.bootstrap import base_archive  # noqa: PLC0415
    from pipeline.stages import base as stage  # noqa: PLC0415

    if spec.source in {"auto", "image"}:
        pulled = stage.base_from_registry(spec.image)
        why = await session.why_unavailable(pulled)
        if not why:
            origin = f"image {await pulled.image_ref()}"
            return await stage.with_apt_mirror(pulled, spec).sync(), origin
        if spec.source == "image" or not spec.can_bootstrap:
            raise BuildError(
                f"the base {spec.image} cannot be pulled",
                why=why,
                next_step="set BASE_IMAGE to a reference that this machine can pull, or "
                "BASE_SOURCE=bootstrap with LINUX_DISTRO=debian",
            )
        report.note(f"{spec.image} cannot be pulled ({why})")
    archive = Path(settings.base_archive)
    if spec.source != "archive":
        archive = await to_thread.run_sync(lambda: base_archive(spec, report.say, refresh=refresh))
    made_by = "archive" if spec.source == "archive" else "bootstrap"
    # A BASE_ARCHIVE was hashed for the key already.
    origin = f"{made_by} {archive.name}@sha256:{spec.archive_sha256 or _sha256(archive)}"
    return await stage.with_apt_mirror(stage.base_from_archive(str(archive)), spec).sync(), origin


async def _check_release(base: Container, spec: BaseSpec) -> None:
    """Refuse a base of another release than the one all else was chosen for."""
    release = await base.file("/etc/os-release").contents()
    if f"VERSION_CODENAME={spec.codename}" in release.replace('"', ""):
        return
    name = next((line for line in release.splitlines() if line.startswith("PRETTY_NAME")), "")
    raise ConfigError(
        [
            Problem(
                "BASE_IMAGE",
                spec.image,
                f"holds {name.partition('=')[2] or 'no known distribution'}",
                allowed=f"{spec.distribution} {spec.version} ({spec.codename})",
                next_step="set LINUX_DISTRO and DISTRO_VERSION to what it holds",
            )
        ]
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


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
