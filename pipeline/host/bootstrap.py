"""Base images without any image registry: mmdebstrap from the machine's own apt mirror."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, Final

from platformdirs import user_cache_path

from pipeline.errors import BuildError
from pipeline.spec import BaseSpec

NEEDS: Final = "mmdebstrap"

# Files newer than this are dated back to it, so that the same packages give the same digest.
# Not 1970: zip archives, wheels among them, refuse files from before 1980.
_EPOCH: Final = "1767225600"

# What the registry's slim images leave out too.
_SLIM = ("/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/man/*")
_KEEP = ("/usr/share/doc/*/copyright", "/usr/share/locale/locale.alias")


# mmdebstrap copies the first two from this machine; dpkg and debconf keep the others as backups.
_LEFT_OVER = (
    "/etc/hostname", "/etc/resolv.conf", "/var/lib/dpkg/*-old", "/var/cache/debconf/*-old",
)  # fmt: skip


def base_archive(base: BaseSpec, say: Callable[[str], None], *, refresh: bool = False) -> Path:
    """Return an OCI archive of the distribution, made once and kept in the user's cache folder.

    Raises:
        BuildError: mmdebstrap is missing, is not run by root, or fails, or the folder is full or
            cannot be written.

    """
    folder = user_cache_path("cresset") / "bases"
    release = f"{base.distribution}-{base.codename}"
    path = folder / f"{release}-{_recipe()}.oci.tar"
    try:
        before = _made_at(path)
        if before and not refresh:
            return path
        _check_possible(base)
        folder.mkdir(parents=True, exist_ok=True)
        with _only_one(folder / f"{release}.lock", say):
            # Another build may have made it while this one waited.
            if _made_at(path) in {0, before}:
                _make(base, path, say)
                _delete_older(path, release)
    except OSError as error:
        raise BuildError(
            f"the base {base.distribution} {base.version} cannot be made",
            why=f"{error.filename or folder}: {error.strerror or error}",
            next_step=f"make room in {folder} and let it be written, or set XDG_CACHE_HOME to "
            "another folder",
        ) from error
    return path


def _recipe() -> str:
    """Return what the name of an archive says of how it was made: a new way makes a new one."""
    source = (resources.files("pipeline.host") / "bootstrap.py").read_bytes()
    return hashlib.sha256(source).hexdigest()[:8]


def _made_at(path: Path) -> int:
    """Return when a file was written, 0 where there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


@contextlib.contextmanager
def _only_one(lock: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other process holds the lock, and hold it."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another build to make {lock.stem}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(base: BaseSpec, path: Path, say: Callable[[str], None]) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        rootfs, archive = Path(folder, "rootfs.tar"), Path(folder, "oci.tar")
        _mmdebstrap(base, rootfs, say)
        _write_oci_archive(rootfs, archive)
        archive.replace(path)


def _delete_older(path: Path, release: str) -> None:
    """Delete the release's archives of other recipes; the first had no recipe in their names."""
    for old in path.parent.glob(f"{release}*.oci.tar"):
        if old != path:
            old.unlink(missing_ok=True)


def _check_possible(base: BaseSpec) -> None:
    if shutil.which(NEEDS) is None:
        raise BuildError(
            f"the base {base.distribution} {base.version} cannot be made",
            why="no registry serves it, and mmdebstrap is not installed",
            next_step="apt-get install -y mmdebstrap",
        )
    if os.geteuid() != 0:
        raise BuildError(
            f"the base {base.distribution} {base.version} cannot be made",
            why="no registry serves it, and mmdebstrap needs root to make one",
            next_step="run as root, or set BASE_IMAGE to a reference that can be pulled",
        )


def _mmdebstrap(base: BaseSpec, rootfs: Path, say: Callable[[str], None]) -> None:
    sources = _machine_sources(base)
    command = [
        NEEDS,
        "--variant=minbase",
        *(f"--dpkgopt=path-exclude={path}" for path in _SLIM),
        *(f"--dpkgopt=path-include={path}" for path in _KEEP),
        "--customize-hook=rm -f " + " ".join(f'"$1"{path}' for path in _LEFT_OVER),
        base.codename,
        str(rootfs),
        *(["-"] if sources else []),
    ]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": _EPOCH},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        # If it ended early its own last lines say why, and not that nobody reads.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(sources)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        lines = []
        for line in process.stdout:
            lines.append(line)
            say(line.rstrip())
    if process.returncode != 0:
        raise BuildError(
            f"the base {base.distribution} {base.version} cannot be made",
            command=" ".join(command),
            command_exit_code=process.returncode,
            tail="".join(lines[-40:]),
            next_step="see its last lines; the same command by hand says more with --verbose",
        )


def _machine_sources(base: BaseSpec) -> str:
    """Return the sources of `base` on the mirror this machine uses, empty if it names none.

    Asked of apt itself, so every form of its configuration counts. mmdebstrap falls back on the
    distribution's own mirror.
    """
    if shutil.which("apt-get") is None:
        return ""
    targets = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)",
         "Created-By: Packages"],
        capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    mirrors: dict[str, str] = {}
    for line in targets.splitlines():
        origin, label, component, uri = line.split("|", 3)
        # The image's own sources name the mirror, and a password in it would be for all to read.
        if "@" in uri:
            continue
        if origin.lower() == base.distribution and component == "main":
            mirrors.setdefault(label.lower(), uri)
    main, security = mirrors.get("debian"), mirrors.get("debian-security")
    if main is None or security is None:
        return ""
    return (
        f"deb {main} {base.codename} main\n"
        f"deb {main} {base.codename}-updates main\n"
        f"deb {security} {base.codename}-security main\n"
    )


def _write_oci_archive(rootfs: Path, archive: Path) -> None:
    """Write `rootfs`, a tar, as an OCI image layout of one layer (image-spec 1.1)."""
    with rootfs.open("rb") as file:
        layer = hashlib.file_digest(file, "sha256").hexdigest()
    config = _blob(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Cmd": ["bash"],
            },
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer}"]},
        }
    )
    kind = "application/vnd.oci.image"
    manifest = _blob(
        {
            "schemaVersion": 2,
            "mediaType": f"{kind}.manifest.v1+json",
            "config": _descriptor(f"{kind}.config.v1+json", config),
            "layers": [
                {
                    "mediaType": f"{kind}.layer.v1.tar",
                    "digest": f"sha256:{layer}",
                    "size": rootfs.stat().st_size,
                }
            ],
        }
    )
    index = _blob(
        {"schemaVersion": 2, "manifests": [_descriptor(f"{kind}.manifest.v1+json", manifest)]}
    )
    with tarfile.open(archive, "w") as tar:
        _add(tar, "oci-layout", _blob({"imageLayoutVersion": "1.0.0"}))
        _add(tar, "index.json", index)
        for blob in (config, manifest):
            _add(tar, f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}", blob)
        tar.add(rootfs, f"blobs/sha256/{layer}", filter=_undated)


def _blob(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def _descriptor(media_type: str, blob: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(blob).hexdigest()
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(blob)}


def _add(tar: tarfile.TarFile, name: str, blob: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(blob)
    tar.addfile(member, io.BytesIO(blob))


def _undated(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime = 0
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
