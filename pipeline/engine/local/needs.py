"""What a machine has to have for the local engine, and how it gets what is missing."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.engine.local import build, rootfs


@dataclass(frozen=True)
class Need:
    """Something missing: what it is, why the engine wants it, how to get it."""

    what: str
    why: str
    mend: str
    package: str = ""
    """The Debian package that mends it, where one does."""


_BOOTSTRAP = ("mmdebstrap", "makes the engine's root file system", "mmdebstrap")
_TOOLS = (
    ("unshare", "gives the engine its own mounts and processes", "util-linux"),
    ("pivot_root", "enters the engine's root file system", "util-linux"),
    ("mount", "makes the engine's root file system visible to it", "mount"),
)
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def needs() -> tuple[Need, ...]:
    """Return all that this machine lacks; nothing means that the engine can run."""
    tools = (*_TOOLS, *(() if rootfs.made() else (_BOOTSTRAP,)))
    found = (_root(), _overlay(), _go(), *(tool(*it) for it in tools), _keyring())
    return tuple(need for need in found if need)


def _root() -> Need | None:
    if os.geteuid() == 0:
        return None
    return Need("root", "mounts, networks and containers are made by root", "run it under sudo -E")


def _overlay() -> Need | None:
    # The module may be loaded on first use, so its absence here is no proof where modules exist.
    known = "overlay" in Path("/proc/filesystems").read_text().split()
    if known or Path("/lib/modules", os.uname().release).exists():
        return None
    return Need("overlayfs", "layers of images lie on it", "use a kernel with CONFIG_OVERLAY_FS")


def tool(name: str, why: str, package: str) -> Need | None:
    """Return the need for a program that a Debian package has, None where it is there."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # not on every user's PATH
    return None if shutil.which(name, path=path) else _package(name, why, package)


def _package(what: str, why: str, package: str) -> Need:
    return Need(what, why, f"apt-get install -y {package}", package)


def install(needs: Sequence[Need]) -> list[str]:
    """Return the one apt-get command for all that packages mend, empty where there is nothing."""
    packages = sorted({need.package for need in needs if need.package})
    return ["apt-get", "install", "-y", *packages] if packages else []


def mend(needs: Sequence[Need]) -> str:
    """Return in one line what to do for all of them."""
    others = [need.mend for need in needs if not need.package]
    return ", and ".join(filter(None, [shlex.join(install(needs)), *others]))


def _keyring() -> Need | None:
    if _KEYRING.exists() or rootfs.made():
        return None
    name = "debian-archive-keyring"
    return _package(name, "proves that the packages of the root file system are Debian's", name)


def _go() -> Need | None:
    if build.built():
        return None
    wanted = go_wanted((build.GO / "go.mod").read_text())
    mend = f"install Go {wanted} or newer and have `go` on PATH"
    if not shutil.which("go"):
        return Need("Go", "compiles the engine, once", mend)
    asked = subprocess.run(
        ["go", "env", "GOVERSION", "GOTOOLCHAIN"],
        cwd="/",
        env=os.environ | {"GOTOOLCHAIN": "local"},
        capture_output=True,
        text=True,
        check=False,
    )
    found = asked.stdout.split("\n")[0].removeprefix("go")
    if go_serves(found, wanted, _toolchain()):
        return None
    return Need(f"Go {wanted}", f"the engine does not compile with Go {found}", mend)


def _toolchain() -> str:
    return subprocess.run(
        ["go", "env", "GOTOOLCHAIN"], cwd="/", capture_output=True, text=True, check=False
    ).stdout.strip()


def go_wanted(module: str) -> str:
    """Return the Go version that the go.mod `module` asks for."""
    found = re.search(r"^go (\S+)$", module, re.MULTILINE)
    assert found, "every go.mod of ours has a go line"
    return found[1]


def go_serves(found: str, wanted: str, toolchain: str) -> bool:
    """Return whether Go `found` is at least `wanted`, or may fetch it: GOTOOLCHAIN `toolchain`."""
    if _numbers(found) >= _numbers(wanted):
        return True
    # Toolchains are fetched since 1.21, where the setting begins with the word auto.
    return _numbers(found) >= (1, 21) and toolchain.endswith("auto")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
