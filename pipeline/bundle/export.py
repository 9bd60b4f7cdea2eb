"""Writing a bundle: a build in an engine that has nothing, so that it asks for all it takes.

What it was given on its way is what the bundle holds; a second build, in a network namespace with
no route, proves that nothing else is needed.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TextIO

from pipeline import lock, reqs, tags
from pipeline.bundle import supply
from pipeline.bundle.layout import NAME, Blob, Bundle, Writer, written
from pipeline.engine import local
from pipeline.engine.local import build as programs
from pipeline.engine.local import places, rootfs
from pipeline.engine.local.needs import tool
from pipeline.errors import BundleError, EngineError, PublishError, interruptible
from pipeline.fleet import child
from pipeline.host import whole
from pipeline.publish import KEY_LABEL, Archive
from pipeline.report import reporting, tail
from pipeline.settings import Settings
from pipeline.spec import ImageSpec

PROGRAMS: Final = "programs.tar.gz"
ROOT: Final = "root.tar.gz"
_IP = ("ip", "shows that the check of a bundle has no network", "iproute2")
RECIPE: Final = "dev.cresset.engine"
"""Of the engine: which of its programs and root file systems it is, by the names they go by."""


@dataclass(frozen=True)
class Exported:
    """A bundle that was written."""

    path: Path
    digest: str
    """Of its index, by which another can be told from it."""
    size: int
    parts: dict[str, int]
    """Bytes by role."""
    key: str
    variant: str
    checked: bool

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {**vars(self), "path": str(self.path)}


def export(spec: ImageSpec, settings: Settings, path: Path, *, check: bool) -> Exported:
    """Build the image in an engine of its own, and write all that this takes, and it, to `path`.

    With `check` the bundle is at `path` only once the image was built from it without a network.

    Raises:
        EngineError: there is no local engine here, whose programs go into it, or a program that
            the check takes is missing.
        BuildError: a stage failed.
        BundleError: the image cannot be built from the bundle alone.
        PublishError: it cannot be written.
        Interrupted: Ctrl-C, or SIGTERM; nothing of it runs any more.

    """
    if check and (need := tool(*_IP)):  # not after hours of compiling
        raise EngineError(
            f"the bundle cannot be checked here: {need.what} is missing",
            why=f"{need.what} {need.why}",
            next_step=f"{need.mend}; or export it with --no-check",
        )
    # Told from the root: XDG_STATE_HOME and its like are to be left alone where they are not
    # (XDG Base Directory Specification), and the check had this machine's own engine (issue 6).
    beside = path.parent.absolute()
    try:
        beside.mkdir(parents=True, exist_ok=True)
        with interruptible(), whole.scratch(beside) as folder:
            draft = folder / path.name
            digest = _write(spec, settings, draft, folder)
            if check:
                _check(spec, settings, draft)
            parts = _sizes(draft)
            draft.replace(path)
    except OSError as error:
        raise PublishError(
            f"the bundle {path} cannot be written",
            why=str(error),
            next_step=f"see that there is room in {beside}",
        ) from error
    return Exported(
        path, digest.digest, path.stat().st_size, parts, spec.key, spec.variant, checked=check
    )


def _sizes(path: Path) -> dict[str, int]:
    bundle = Bundle.opened(path)
    bundle.close()
    return {part.role: sum(it.size for it in bundle.of(part.role)) for part in bundle.parts}


def _write(spec: ImageSpec, settings: Settings, draft: Path, folder: Path) -> Blob:
    from pipeline import build, run  # noqa: PLC0415 - run imports this package

    own = settings.model_copy(update={"engine": "local", "engines": "", "bundle": ""})
    where = Archive(folder / "image", tags.repository(settings.image_name))
    torch = run.torch_index(spec, settings)
    with written(draft) as writer:
        with _own_engine("bundle"), supply.taken(own, torch, writer, folder) as taken:
            build.build(spec, own, where, taken=taken)
        with reporting("bundle", ["engine", "image", "index"]) as report:
            with report.stage("engine", in_engine=False):
                _add_engine(writer, folder, report.say)
            with report.stage("image", in_engine=False):
                name = f"{tags.repository(settings.image_name)}:{spec.variant}"
                notes = {NAME: name, KEY_LABEL: spec.key}
                writer.add_image("image", where.path(spec), notes)
                where.path(spec).unlink()
            with report.stage("index", in_engine=False):
                version = importlib.metadata.version("cresset")
                return writer.close({KEY_LABEL: spec.key, "dev.cresset.version": version})


@contextlib.contextmanager
def _own_engine(name: str) -> Iterator[Path]:
    """Let an engine be used that starts with nothing, and is gone afterwards with all it had."""

    def forget() -> None:
        local.stop(_quiet)
        shutil.rmtree(places.state(), ignore_errors=True)

    with places.apart(name) as state, _alone(state):
        forget()  # of an export that was killed
        try:
            yield state
        finally:
            forget()


@contextlib.contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Wait until no other process uses the engine of a state folder, and show that."""
    with contextlib.ExitStack() as shown:

        def waiting() -> None:
            report = shown.enter_context(reporting("bundle", ["wait"]))
            shown.enter_context(report.stage("wait", in_engine=False))
            report.note("waiting: another process exports a bundle, and this one is next")

        # Beside the folder, which goes with its engine, and a lock in it would go with both.
        with places.locked(state.with_suffix(".lock"), waiting):
            shown.close()
            yield


def _quiet(line: str) -> None:
    """Say nothing: the end of an engine that nobody else knows of is no news."""


def _add_engine(writer: Writer, folder: Path, say: Callable[[str], None]) -> None:
    made, root = programs.programs(say), rootfs.root(say)
    for name, source in ((PROGRAMS, made.home), (ROOT, root)):
        say(f"packing {source}")
        packed = folder / name
        _tar(
            "--create",
            "--use-compress-program=gzip -1",
            "--file",
            str(packed),
            "--directory",
            str(source),
            ".",
        )
        writer.add("engine", name, packed)
    notes = {"dev.dagger.version": local.VERSION, RECIPE: recipe()}
    writer.annotate("engine", notes)


def recipe() -> str:
    """Return what tells the engine that this version of Cresset wants from another's."""
    return f"{programs.fingerprint()} {rootfs.place().name}"


def _tar(*args: str) -> None:
    # Packages of the engine's root have files with capabilities, which are extended attributes.
    options = ("--numeric-owner", "--xattrs", "--xattrs-include=*")
    done = subprocess.run(["tar", *options, *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.strip().splitlines()[-1])


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a part of the engine; OSError if that fails."""
    _tar("--extract", "--gzip", "--file", str(archive), "--directory", str(folder))


# Checking


_WITHOUT_NETWORK = (
    'ip link set lo up; [ -z "$(ip route)" ]; exec "$0" -m pipeline.bundle.check "$1" "$2"'
)


def _check(spec: ImageSpec, settings: Settings, draft: Path) -> None:
    """Raise BundleError unless the image builds from the bundle alone, without a network."""
    with reporting("check", ["check"]) as report, report.stage("check", in_engine=False):
        report.say("building from the bundle in a network namespace with no route")
        with TemporaryDirectory(dir=draft.parent, prefix="check-") as folder:
            key = _without_network(settings, spec, draft, Path(folder), report.stream)
        if key != spec.key:
            raise BundleError(
                "the image cannot be built from the bundle alone",
                why=tail(report.log, 12),
                next_step="see its log for what it lacks",
            )


def _found_out(spec: ImageSpec, settings: Settings) -> dict[str, str]:
    """Return what the machine and the network have answered to the settings, as settings.

    Paths among them are told from the root, as the check stands in another folder.
    """
    found = {"CCA": " ".join(map(str, spec.arches))} if spec.arches else {}
    paths = ["BASE_ARCHIVE"]
    for wheel in spec.compiled:
        part = "TORCH" if wheel.package == "torch" else "VISION"
        sources = {part: wheel.source} | ({"MAGMA": wheel.magma.source} if wheel.magma else {})
        found |= {f"{name}_REF": it.ref for name, it in sources.items() if it.kind == "git"}
        paths += [f"{name}_URL" for name, it in sources.items() if not it.is_remote]
    for name in paths:
        value = str(getattr(settings, name.lower()))
        if value and "://" not in value:
            found[name] = str(Path(value).expanduser().absolute())
    return found


def _without_network(
    settings: Settings, spec: ImageSpec, bundle: Path, folder: Path, log: TextIO
) -> str:
    """Return the key of the image that was built from a bundle, empty if that failed.

    Its engine, its caches and its checkout are its own: nothing of this machine helps.
    """
    shutil.copytree(reqs.FOLDER, folder / "reqs")
    asked = {name.upper(): str(value) for name, value in settings.model_dump().items() if value}
    asked |= _found_out(spec, settings)
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    own = {
        "BUNDLE": str(bundle.absolute()),
        "ENGINE": "local",
        "ENGINES": "",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "SIGN_KEY": "",  # nothing is attached there, and it may be a path from here
        "XDG_CACHE_HOME": str(folder / "cache"),
        "XDG_STATE_HOME": str(folder / "state"),
    }
    held = str(lock.FILE.absolute()) if spec.lock else ""
    shell = ("sh", "-ec", _WITHOUT_NETWORK, sys.executable, spec.target, held)
    with subprocess.Popen(
        # Its group hears of no closed terminal: it is told of our end, however that comes.
        ["setpriv", "--pdeathsig", "INT", "unshare", "--net", *shell],
        cwd=folder,
        env={**kept, **asked, **own},
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        # A group of its own: a terminal's Ctrl-C comes to us, and is handed on once.
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate()
        finally:
            # It ends an engine that nobody else knows of.
            child.end(process)
    return said
