"""Reading a bundle into a machine: the engine's programs, compiled wheels, the image."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import platformdirs

from pipeline import publish, store
from pipeline.bundle import export
from pipeline.bundle.layout import NAME, Bundle, Part
from pipeline.engine.local import build as programs
from pipeline.engine.local import places, rootfs
from pipeline.errors import BundleError, PublishError
from pipeline.host import whole
from pipeline.report import reporting

STEPS = ("check", "engine", "wheels", "image")


@dataclass(frozen=True)
class Imported:
    """What a bundle left on this machine."""

    bundle: Path
    digest: str
    size: int
    image: str
    """In Docker, empty where there is none."""
    archive: str
    """The image's file, where there is no Docker."""
    engine: bool
    """Whether its engine is one that this version of Cresset takes."""

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {**vars(self), "bundle": str(self.bundle)}


def bring_in(path: Path, folder: Path) -> Imported:
    """Check all of a bundle, then put its engine, wheels and image where builds look for them.

    The image goes into Docker if a daemon answers, else into a file in `folder`.

    Raises:
        BundleError: it is not whole, damaged, or has no image; nothing was taken from it.
        PublishError: what is in it cannot be put in its place.

    """
    with reporting("import", STEPS) as report:
        bundle = Bundle.opened(path)
        try:
            with report.stage("check", in_engine=False):
                part = _the_image(bundle)
                size = bundle.check(report.say)
            with report.stage("engine", in_engine=False), _in_words():
                has_engine = _engine(bundle, report.say)
                if not has_engine:
                    report.note("engine: it is of another version of Cresset, and was left out")
            with report.stage("wheels", in_engine=False), _in_words():
                _wheels(bundle)
            with report.stage("image", in_engine=False), _in_words():
                image, archive = _image(bundle, part, folder, report.say)
        finally:
            bundle.close()
    return Imported(path, bundle.digest, size, image, archive, has_engine)


def put_in_place(path: Path) -> None:
    """Do the same but for the image. Raises as `bring_in` does."""
    bundle = Bundle.opened(path)
    try:
        bundle.check(lambda line: None)  # noqa: ARG005 - nobody waits for it
        with _in_words():
            _engine(bundle, lambda line: None)  # noqa: ARG005 - as above
            _wheels(bundle)
    finally:
        bundle.close()


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """Tell what the system refused as a PublishError."""
    try:
        yield
    except OSError as error:
        raise PublishError(
            "what is in the bundle cannot be put in its place",
            why=str(error),
            next_step="see that there is room, and that the folders may be written",
        ) from error


def _engine(bundle: Bundle, say: Callable[[str], None]) -> bool:
    parts = bundle.of("engine")
    if not parts or parts[0].annotations.get(export.RECIPE) != export.recipe():
        return False
    files = bundle.files("engine")
    lock = places.cache() / "lock"
    with places.locked(lock, lambda: say("waiting: another process builds the engine")):
        # Looked for by who has the lock: another process may have put it there meanwhile.
        wanted = {export.ROOT: (rootfs.place(), rootfs.made())}
        built = programs.built()
        wanted[export.PROGRAMS] = (programs.imported(), built.home if built else None)
        for name, (place, there) in wanted.items():
            if there:
                continue
            with whole.scratch(places.cache()) as folder:
                packed = folder / name
                bundle.write(files[name], packed)
                with places.under_construction(place) as draft:
                    export.unpack(packed, draft)
    return True


def _wheels(bundle: Bundle) -> None:
    """Put compiled wheels into the store of this machine."""
    wheels = platformdirs.user_cache_path("cresset") / "wheels"
    names = {title.partition("/")[0] for title in bundle.files("wheels")}
    for tag in names:
        place = wheels / tag
        if place.exists():
            continue
        wheels.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=wheels, prefix=f".{tag}.") as folder:
            draft = Path(folder) / "wheel"
            draft.mkdir(mode=0o755)
            for title, blob in bundle.files("wheels").items():
                if title.startswith(f"{tag}/"):
                    bundle.write(blob, draft / title.rpartition("/")[2])
            store.move(draft, place)


def _the_image(bundle: Bundle) -> Part:
    """Return the one image of a bundle; BundleError where that has none, or several."""
    parts = [part for part in bundle.of("image") if NAME in part.annotations]
    if len(parts) != 1:
        raise BundleError(
            f"{bundle.path} is no bundle to import",
            why=f"it has {len(parts)} images, and one is imported" if parts else "it has no image",
            next_step="take one that `bundle export` has written",
        )
    return parts[0]


def _image(bundle: Bundle, part: Part, folder: Path, say: Callable[[str], None]) -> tuple[str, str]:
    name = part.annotations[NAME]
    repository, _, variant = name.rpartition(":")
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"{repository.replace('/', '-')}-{variant}.oci.tar"
    bundle.write_image(part, archive, name)
    if not publish.Docker("", "").answers():
        return "", str(archive)
    say(f"loading {name} into Docker")
    done = subprocess.run(
        ["docker", "load", "--quiet", "--input", str(archive)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BundleError(
            f"Docker does not take {name}",
            why=done.stderr.strip(),
            next_step=f"{archive} holds it; podman and skopeo read it as well",
        )
    archive.unlink()
    return name, ""
