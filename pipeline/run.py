"""One run of the engine for one spec: choose it, make the base, find wheels, compile, keep.

`pipeline.build` says what is to come out of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline import lock, records, reqs, retry
from pipeline.errors import (
    BuildError,
    ConfigError,
    Problem,
    PublishError,
    VerifyError,
    interruptible,
)
from pipeline.host import room, worktree
from pipeline.plan import Step
from pipeline.records import Job, Record
from pipeline.settings import Settings
from pipeline.spec import BaseSpec, ImageSpec, Locked, WheelSpec

if TYPE_CHECKING:
    from dagger import Container, Directory

    from pipeline.bundle.supply import Given, Taken
    from pipeline.engine.select import Choice
    from pipeline.report import Report
    from pipeline.stages.inputs import Inputs
    from pipeline.store import Store

T = TypeVar("T")

# CUDA decides how long a compile takes: PyTorch's own CI took hours at 85 % of all hits and 21 % of
# CUDA's (pytorch issues 143514, 144125).
_FEW_HITS = 0.9


@dataclass(frozen=True)
class Compiled:
    """What this build compiled, and what it took."""

    key: str
    """Of the wheel that it is, or is linked into."""
    file: str
    took: Record
    cache: Mapping[str, Mapping[str, int]]
    again: bool = False
    """Whether the same source was compiled for the same on this machine before."""

    def lines(self) -> list[str]:
        """Return what a person should know of it."""
        took = self.took
        lines = [
            f"{self.file}: {took.size / 1e6:.0f} MB in {took.seconds} s, {took.steps} steps, "
            f"{took.jobs} jobs, at most {took.peak_memory / 1e9:.1f} GB of memory"
        ]
        for kind, count in self.cache.items():
            hits, misses = count.get("hits", 0), count.get("misses", 0)
            rate = hits / max(1, hits + misses)
            lines.append(f"compiler cache, {kind}: {hits} of {hits + misses} hits ({rate:.0%})")
            if self.again and kind == "cuda" and rate < _FEW_HITS:
                lines.append(
                    "warning: the same source was compiled here before, and few of its CUDA files "
                    "were found again: is the compiler cache full, or another one than then, or "
                    "did the flags or the toolchain change?"
                )
            if lost := count.get("unreached", 0):
                lines.append(
                    f"warning: the shared compiler cache did not answer {lost} of the {kind} "
                    "compiles: check the host and the password in CACHE_URL, and its log"
                )
            if other := count.get("uncacheable", 0):
                lines.append(f"compiler cache, {kind}: {other} compiles cannot be cached")
        return lines

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints of it."""
        return {"key": self.key, **dataclasses.asdict(self.took), "cache": self.cache}


@dataclass
class Run:
    """One build while it runs: what is at hand, and what has been compiled so far."""

    spec: ImageSpec
    choice: Choice
    report: Report
    base: Container
    build_base: Container
    origin: str
    build_origin: str
    """As `origin` says of `base`, what `build_base` is."""
    inputs: Inputs
    store: Store | None
    stored: dict[str, Directory]
    compiled: list[Compiled]
    unkept: list[PublishError] = field(default_factory=list)
    """Why finished wheels are not in the store; raised once they are where they were asked for.

    Standard output stays empty then, as for every error, so the work says where that is."""

    def translated(self) -> contextlib.AbstractContextManager[None]:
        """Turn what the SDK raises into errors that say what happened and what to do."""
        from pipeline.engine import session  # noqa: PLC0415 - as in started

        return session.translated()

    async def through(self, stages: Mapping[str, Container | Directory]) -> Container | Directory:
        """Run the stages in order and return the last; a wheel is checked and kept on its way."""
        made: Any = None
        for wheel in self.spec.compiled:
            if wheel.key in self.stored and self.store:
                self.report.note(f"{wheel.package}: from {self.store.name}")
        wheels: dict[str, WheelSpec] = {it.package: it for it in self.spec.compiled}
        for name, lazy in stages.items():
            package, _, part = name.rpartition("-")
            with self.report.stage(name), self.translated():
                made = await lazy.sync()
                if part == "wheel":
                    wheel = wheels[package]
                    await self._took(records.job(wheel), wheel.key, made, "*.whl")
                elif name == "magma" and (magma := records.magma_job(wheels["torch"])):
                    await self._took(magma, wheels["torch"].key, made, "lib/*.a")
                elif part == "source":
                    await self._unpatched(package, made)
                elif part == "check":
                    wheel = wheels[package]
                    await self._check(wheel, made, stages["installer"])
                    await self._keep(wheel, stages[f"{package}-wheel"])
        return made  # type: ignore[no-any-return]

    async def _unpatched(self, package: str, source: Directory) -> None:
        """Warn of a source package that came without its description, which names the patches."""
        from pipeline.stages.source import ABOUT  # noqa: PLC0415 - as in started

        about = json.loads(await source.file(ABOUT).contents())
        if about.get("patched") is False:
            self.report.note(
                f"warning: {package} {about['version']} is compiled without its distribution's "
                "patches: the mirror serves its tarball, but not its .dsc"
            )

    async def _took(self, job: Job, key: str, directory: Directory, pattern: str) -> None:
        """Say what the compile took, and record it; nothing where the engine had it already."""
        facts = json.loads(await directory.file("record.json").contents())
        (path,) = await directory.glob(pattern)
        name = path.rpartition("/")[2]
        took = records.record(job, facts, await directory.file(path).size())
        if records.known(took):
            self.report.note(f"{name}: from the engine's cache; compiling it took {took.seconds} s")
            return
        compiled = Compiled(key, name, took, facts["cache"], again=records.seen(took))
        records.keep(took)
        self.compiled.append(compiled)
        for line in compiled.lines():
            self.report.note(line)

    async def _check(self, wheel: WheelSpec, installed: Container, installer: Any) -> None:  # noqa: ANN401 - a Container
        """Raise VerifyError unless the installed wheel is what the spec says."""
        from pipeline.stages import verify  # noqa: PLC0415 - as in started

        lister = verify.cuobjdump(installer, self.inputs)
        facts = verify.read(await verify.probe_wheel(installed, wheel, lister).stdout())
        if problems := verify.judge_wheel(wheel, facts):
            raise VerifyError(problems)
        self.report.note(f"{wheel.package}: {verify.proof(wheel, facts)}")

    async def _keep(self, wheel: WheelSpec, made: Any) -> None:  # noqa: ANN401 - a Directory
        """Keep a wheel that was checked for others."""
        if self.store is None:
            return
        try:
            await self.store.put(wheel, made)
        except PublishError as error:
            self.unkept.append(error)
            self.report.note(f"warning: {wheel.package} is not kept in {self.store.name}")
        else:
            self.report.note(f"{wheel.package}: kept in {self.store.name}")


def started(
    work: Callable[[Run], Awaitable[T]],
    spec: ImageSpec,
    settings: Settings,
    steps: Sequence[Step],
    *,
    image: bool = True,
    refresh_base: bool = False,
    deadline: float = 0,
    taken: Taken | None = None,
) -> T:
    """Choose an engine, make all ready, and return what the work returns.

    All that comes from the network is `taken` down for a bundle, where that is given.
    """
    # Imported here: they bring rich and the SDK, which take longer than a build with nothing to do.
    from pipeline.bundle import supply  # noqa: PLC0415
    from pipeline.engine import select  # noqa: PLC0415
    from pipeline.report import reporting  # noqa: PLC0415

    names = ["engine", *(step.name for step in steps)]
    with interruptible(), reporting("build", names) as report, retry.told(report.note):
        # Outside the event loop, which would hold Ctrl-C back until an engine is compiled.
        with report.stage("engine", in_engine=False):
            choice = select.choose(settings.engine, report.say, select.hosts(settings.engines))
            report.note(f"engine: {choice.kind} ({choice.reason})")
            if choice.kind == "local" and (said := _evicted(_last_build(report.log))):
                report.note(f"since the last build {said}")
        from pipeline.engine import session  # noqa: PLC0415

        with supply.given(settings) as found:
            return session.run(
                _run(
                    work,
                    spec,
                    settings,
                    choice,
                    report,
                    image=image,
                    makes=any(step.name in {"deliver", "export"} for step in steps),
                    refresh_base=refresh_base,
                    deadline=deadline,
                    supplied=taken or found,
                )
            )


async def _guard(
    choice: Choice, spec: ImageSpec, compiled: Sequence[str], *, image: bool
) -> list[str]:
    """Return what to say of room that may not do, where the engine is on this machine.

    `compiled` names what is to be compiled: wheels, and the MAGMA of a devel image; `image` says
    whether an image is made, and not wheels alone. Of another machine nothing is known.

    Raises:
        BuildError: it cannot do.

    """
    from anyio import to_thread  # noqa: PLC0415 - as in started

    from pipeline.engine import local, select, session  # noqa: PLC0415
    from pipeline.host import machine  # noqa: PLC0415

    folder: Path | None = None
    if choice.kind == "local":
        folder = local.log_path().parent
    elif choice.kind == "docker":
        folder = await to_thread.run_sync(select.docker_folder)
    if folder is None:
        return []
    large = image and (spec.torch is not None or spec.target == "ngc")
    kind: room.Kind = "compile" if compiled else "wheels" if large else "simple"
    free, held = shutil.disk_usage(folder).free, 0
    if room.disk(kind, free) != "fits":
        # Counted only now: it takes seconds.
        held = local.held() if choice.kind == "local" else await session.held()
    said = [_disk(choice, folder, kind, free, held)]
    if compiled:
        said.append(_memory(sum(machine.memory_bytes()), torch="torch" in compiled))
    return [line for line in said if line]


def _disk(choice: Choice, folder: Path, kind: room.Kind, free: int, held: int) -> str:
    """Return the warning of a disk that may not do, empty if it does; BuildError if it cannot."""
    verdict = room.disk(kind, free, held)
    if verdict == "fits":
        return ""
    need = room.DISK[kind]
    has = f"{free / room.GB:.1f} GB are free beside the engine's {held / room.GB:.1f} GB"
    mine = choice.kind == "local"
    if verdict == "full":
        other = "name a larger disk in XDG_STATE_HOME" if mine else "give Docker a larger data-root"
        raise BuildError(
            f"there is no room on the disk of {folder}",
            why=f"{has}, and this takes {need.least / room.GB:.0f} GB at the very least",
            next_step=f"free disk space, or {other}",
        )
    step = "`python -m pipeline engine prune` makes some" if mine else "see `docker system df`"
    return (
        f"disk: {has}, and a first build takes up to {need.usual / room.GB:.0f} GB; "
        f"if it ends for want of room, {step}"
    )


def _memory(has: int, *, torch: bool) -> str:
    """Return the warning of memory that may not do, empty if it does; BuildError if it cannot."""
    verdict = room.memory(has, torch=torch)
    if verdict == "fits":
        return ""
    total = f"{has / room.GB:.1f} GB of memory, swap included"
    if verdict == "full":
        least = room.COMPILER if torch else room.COMPILER_LEAST
        raise BuildError(
            "there is no memory to compile with",
            why=f"there are {total}, and one compiler takes up to {least / room.GB:.1f} GB",
            next_step="add swap (python -m pipeline doctor shows how), or compile elsewhere",
        )
    return f"memory: {total}, so files are compiled one by one"


def _evicted(since: float) -> str:
    """Return what the local engine threw away by itself since then, empty if nothing."""
    from pipeline.engine import local  # noqa: PLC0415 - as in started

    gone = local.evicted(since)
    if not gone.results:
        return ""
    return f"the engine threw away {gone}, to stay within its limits: it will be made again"


def _last_build(log: Path) -> float:
    """Return when the build before this one ended, by its log; now if there is none."""
    others = [it for it in log.parent.glob("*-build.log") if it != log]
    with contextlib.suppress(FileNotFoundError):  # another build has just thrown it away
        return max((it.stat().st_mtime for it in others), default=time.time())
    return time.time()


async def _run(
    work: Callable[[Run], Awaitable[T]],
    spec: ImageSpec,
    settings: Settings,
    choice: Choice,
    report: Report,
    *,
    image: bool,
    makes: bool,
    refresh_base: bool,
    deadline: float,
    supplied: Given | Taken | None,
) -> T:
    from anyio import to_thread  # noqa: PLC0415 - as in started

    from pipeline import caches  # noqa: PLC0415
    from pipeline import store as stores  # noqa: PLC0415
    from pipeline.engine import session, telemetry  # noqa: PLC0415
    from pipeline.stages import base as bottom  # noqa: PLC0415
    from pipeline.stages import inputs, locked  # noqa: PLC0415

    watcher = telemetry.Watcher(output=report.output, ran=report.ran)
    with telemetry.receiver(watcher) as report.watched:
        async with session.session(choice, report.stream), _served(supplied, report):
            given = inputs.inputs(
                reqs.FOLDER,
                [file.name for file in spec.pip],
                **_indexes(spec, settings, supplied),
                torch_beside=spec.lock is not None and (image or bool(spec.lock.torch)),
                git=inputs.git_access(
                    instead_of=(settings.git_old, settings.git_new),
                    trusted_host=settings.trusted_host,
                    agent=os.environ.get("SSH_AUTH_SOCK", ""),
                    known_hosts=Path.home() / ".ssh" / "known_hosts",
                ),
            )
            folders = _source_folders(spec)
            given = dataclasses.replace(
                given, untracked={str(path): worktree.untracked(path) for path in folders}
            )
            store = stores.store(settings)
            stored = await _stored(spec, store, report) if store else {}
            # The devel image compiles MAGMA, whether or not torch's wheel is there.
            compiled = [it.package for it in to_compile(spec, stored)]
            compiling = ["magma"] if spec.target == "devel" else compiled
            compiling = compiling if makes else []
            if makes:
                for line in await _guard(choice, spec, compiling, image=image):
                    report.note(line)
            base = build_base = bottom.nothing()
            origin = build_origin = ""
            if image or len(stored) < len(spec.compiled):
                with report.stage("base"), session.translated():
                    given = await _sent(given, spec)
                    base, origin = await _base(
                        spec.base, settings, report, spec.lock, supplied, refresh=refresh_base
                    )
                    await _check_release(base, spec.base)
                    report.note(f"base: {origin}")
                    build_base, build_origin = base, origin
                    if (other := _other_base(spec)) is not None:
                        build_base, build_origin = await _base(
                            other, settings, report, spec.lock, supplied
                        )
                    base = locked.held(base, spec.lock)
                    if makes:
                        found = functools.partial(_sources, spec, settings, stored, supplied)
                        given = dataclasses.replace(given, sources=await to_thread.run_sync(found))
            shared = caches.objects(settings.cache_url, report.note)
            async with shared if compiling else contextlib.nullcontext() as cache:
                limits = inputs.Compiling(settings.max_jobs, deadline, cache)
                given = dataclasses.replace(given, compiling=limits)
                run = Run(
                    spec, choice, report, base, build_base, origin, build_origin, given, store,
                    stored, [],
                )  # fmt: skip
                begun = time.time()
                try:
                    done = await work(run)
                finally:
                    if choice.kind == "local" and (said := _evicted(begun)):
                        report.note(said)
                if run.unkept:
                    raise run.unkept[0]
                return done


async def _stored(spec: ImageSpec, store: Store, report: Report) -> dict[str, Directory]:
    """Return the wheels that the store has, pulled, by their keys."""
    from pipeline import publish  # noqa: PLC0415 - as in started
    from pipeline.engine import session  # noqa: PLC0415

    found = {}
    # The devel image compiles with its own hands.
    for wheel in spec.compiled if spec.target != "devel" else ():
        if await publish.read_back(functools.partial(store.has, wheel)):
            report.note(f"{wheel.package}: taken from {store.name}")
            found[wheel.key] = await session.pulled(store.wheel(wheel))
    return found


def _other_base(spec: ImageSpec) -> BaseSpec | None:
    """Return what is compiled on, if it is another base than the image's: one that brings CUDA."""
    wanted = next((it.toolchain.base for it in spec.compiled), spec.base)
    return None if wanted == spec.base else wanted


@contextlib.asynccontextmanager
async def _served(supplied: Given | Taken | None, report: Report) -> AsyncIterator[None]:
    """Let the builds of the session reach what a bundle has, or is to have."""
    if supplied is None:
        yield
        return
    from pipeline import caches  # noqa: PLC0415 - as in started
    from pipeline.bundle import packages  # noqa: PLC0415

    with packages.serving(supplied.packages) as served:
        try:
            async with caches.reached(served.port, packages.HOST, packages.PORT):
                yield
        finally:
            if served.broken:
                report.note(f"packages: {served.broken}")


def _indexes(spec: ImageSpec, settings: Settings, supplied: Given | Taken | None) -> dict[str, str]:
    """Return where packages come from, by the names that the inputs have for it."""
    torch = torch_index(spec, settings)
    if supplied is None:
        return {
            "index_url": settings.index_url,
            "extra_index_url": settings.extra_index_url,
            "torch_index_url": torch,
            "npm_registry": settings.npm_registry,
            "trusted_host": settings.trusted_host,
        }
    from pipeline.bundle import packages  # noqa: PLC0415 - as in started

    extra = packages.EXTRA in supplied.packages.indexes
    return {
        "index_url": f"{packages.URL}/{packages.INDEX}",
        "extra_index_url": f"{packages.URL}/{packages.EXTRA}" if extra else "",
        "torch_index_url": f"{packages.URL}/{packages.TORCH}" if torch else "",
        "npm_registry": f"{packages.URL}/npm/",
        "trusted_host": packages.HOST,
    }


def to_compile(spec: ImageSpec, stored: Collection[str]) -> list[WheelSpec]:
    """Return the wheels of which a build takes the sources; `stored` are keys of finished ones."""
    if spec.target == "devel":  # torch's is all of it, for its user to compile
        return [it for it in spec.compiled if it.package == "torch"]
    return [it for it in spec.compiled if it.key not in stored]


def _sources(
    spec: ImageSpec, settings: Settings, stored: Collection[str], supplied: Given | Taken | None
) -> dict[str, str]:
    """Return where a bundle's sources are that a build from it compiles."""
    from pipeline import store as stores  # noqa: PLC0415 - as in started
    from pipeline.bundle.supply import Given  # noqa: PLC0415

    if not isinstance(supplied, Given):
        return {}
    wheels = to_compile(spec, stored)
    if spec.target != "devel" and stores.store(settings):
        supplied.check_imported([stores.tag(it) for it in wheels])
    sources = [source for wheel in wheels for source in wheel.sources if source.is_remote]
    return {it.tarball: str(supplied.source(it)) for it in sources}


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
    spec: BaseSpec,
    settings: Settings,
    report: Report,
    held: Locked | None,
    supplied: Given | Taken | None,
    *,
    refresh: bool = False,
) -> tuple[Container, str]:
    """Return the base, ready to be built on, and what it is, by digest."""
    from pipeline.stages import base as stage  # noqa: PLC0415 - as in _run

    if supplied is None:
        base, origin = await _found_base(spec, settings, report, held, refresh=refresh)
        return await stage.with_apt_mirror(base, spec).sync(), origin
    from pipeline.bundle import packages  # noqa: PLC0415 - as in started
    from pipeline.bundle.supply import Given  # noqa: PLC0415

    if isinstance(supplied, Given):
        archive, origin = supplied.base(spec)
        if held:
            lock.check_origin(spec, held, origin)
        base = stage.base_from_archive(str(archive))
    else:
        base, origin = await _found_base(spec, settings, report, held, refresh=refresh)
        archive = supplied.folder / "base.oci.tar"
        await base.export(str(archive))
        supplied.add_base(spec, archive, origin)
    ready = stage.by_proxy(stage.with_apt_mirror(base, spec), packages.URL)
    return await ready.sync(), origin


async def _found_base(
    spec: BaseSpec, settings: Settings, report: Report, held: Locked | None, *, refresh: bool
) -> tuple[Container, str]:
    """Return the base and what it is, by digest: the one choice that is left to the machine.

    A lock leaves none.
    """
    from anyio import to_thread  # noqa: PLC0415 - as in _run

    from pipeline.compat import toolkit  # noqa: PLC0415
    from pipeline.engine import session  # noqa: PLC0415
    from pipeline.host.bootstrap import base_archive  # noqa: PLC0415
    from pipeline.stages import base as stage  # noqa: PLC0415

    digests = {it: held.digest(it) for it in lock.base_names(spec)} if held else {}
    pinned = digests.get(spec.image, "")
    if spec.source in {"auto", "image"} and (pinned or not any(digests.values())):
        pulled = stage.base_from_registry(lock.pinned(spec.image, pinned))
        why = await session.why_unavailable(pulled)
        if not why:
            return pulled, f"image {await pulled.image_ref()}"
        if pinned or spec.source == "image" or not spec.can_bootstrap:
            # A BASE_IMAGE is the user's own choice, even of such an image.
            ours = spec.image != settings.base_image
            other = toolkit.instead_of_image(spec.image) if ours else ""
            raise BuildError(
                f"the base {lock.pinned(spec.image, pinned)} cannot be pulled",
                why=why,
                next_step=other
                or "set BASE_IMAGE to a reference that this machine can pull, or "
                "BASE_SOURCE=bootstrap with LINUX_DISTRO=debian",
            )
        report.note(f"{spec.image} cannot be pulled ({why})")
    archive = Path(settings.base_archive)
    if spec.source != "archive":
        archive = await to_thread.run_sync(lambda: base_archive(spec, report.say, refresh=refresh))
    made_by = "archive" if spec.source == "archive" else "bootstrap"
    # A BASE_ARCHIVE was hashed for the key already.
    digest = f"sha256:{spec.archive_sha256 or _sha256(archive)}"
    lock.check_base(spec, digests, digest)
    return stage.base_from_archive(str(archive)), f"{made_by} {archive.name}@{digest}"


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


def _source_folders(spec: ImageSpec) -> list[Path]:
    wheels = spec.compiled
    sources = [wheel.source for wheel in wheels]
    return [Path(source.location) for source in sources if source.kind == "path"]


def torch_index(spec: ImageSpec, settings: Settings) -> str:
    """Return the index of torch's wheels, empty where it is that of every other package."""
    if spec.torch is None or spec.torch.torch_wheel:
        return ""
    return settings.pytorch_index_url or spec.torch.index


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
