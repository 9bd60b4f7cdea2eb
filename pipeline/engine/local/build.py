"""The engine's programs: built once from the Go modules in ``go/``, kept in the cache folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipeline.engine.local import places
from pipeline.errors import EngineError

if TYPE_CHECKING:
    from pipeline.engine.local.places import Say

VERSION: Final = "0.21.8"
"""Of Dagger: the engine here, dagger-io in pyproject.toml and the module in go/go.mod."""

GO = Path(__file__).with_name("go")

_DAGGER = "github.com/dagger/dagger"
_PACKAGES = (
    f"{_DAGGER}/cmd/engine",
    f"{_DAGGER}/cmd/init",
    f"{_DAGGER}/cmd/dnsname",
    "./session",
)
_LDFLAGS = f"-s -w -X {_DAGGER}/engine.Version=v{VERSION} -X {_DAGGER}/engine.Tag=v{VERSION}"
_PLACES = {
    "engine": "layer/usr/local/bin/dagger-engine",
    "init": "layer/usr/local/bin/dagger-init",
    "dnsname": "layer/usr/lib/cni/dnsname",
    "session": "session",
}


@dataclass(frozen=True)
class Programs:
    """What was built: a layer over the engine's root file system, and what the SDK starts."""

    home: Path

    @property
    def layer(self) -> Path:
        """The folder to lay over the root file system."""
        return self.home / "layer"

    @property
    def session(self) -> Path:
        """The program that the SDK starts to open a session."""
        return self.home / "session"


def fingerprint(folder: Path = GO) -> str:
    """Return 12 hex digits that change with any file below `folder` and with how we build."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return places.digest(
        repr((_PACKAGES, _LDFLAGS, _PLACES)).encode(),
        *(
            part
            for file in files
            for part in (str(file.relative_to(folder)).encode(), file.read_bytes())
        ),
    )


def go_version() -> str:
    """Return Go's version for our modules, as ``go1.26.8``, or nothing where there is no Go.

    Go itself may fetch the toolchain that go.mod asks for, if the machine allows that.
    """
    if not shutil.which("go"):
        return ""
    found = subprocess.run(
        ["go", "env", "GOVERSION"], cwd=GO, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() if found.returncode == 0 else ""


def built() -> Programs | None:
    """Return the programs if this source is built, by this machine's Go where it has one."""
    source, go = fingerprint(), go_version()
    folders = sorted(places.cache().glob(f"programs-{source}-{go or '*'}"))
    folders = folders or [it for it in (imported(),) if it.exists()]
    return Programs(folders[-1]) if folders else None


def imported() -> Path:
    """Return where the programs of a bundle go, which no Go of this machine has compiled."""
    return places.cache() / f"programs-{fingerprint()}-imported"


def programs(say: Say) -> Programs:
    """Return the programs, built first if need be: minutes and 4 GB the first time.

    EngineError where Go cannot build them; the log is named in it.
    """
    if found := built():
        return found
    cache = places.cache()
    with places.locked(cache / "lock", lambda: say("waiting: another process builds the engine")):
        if found := built():
            return found
        home = cache / f"programs-{fingerprint()}-{go_version()}"
        with places.under_construction(home) as draft:
            _build(draft, say)
        return Programs(home)


def _build(draft: Path, say: Say) -> None:
    source = draft / "go"
    shutil.copytree(GO, source)
    _copy_dagger(source, say)
    env = _environment()
    count = _count_packages(source, env)
    places.work(
        f"compiling the engine (Dagger {VERSION}, {count} packages at most)",
        ["go", "build", "-v", "-trimpath", f"-ldflags={_LDFLAGS}", "-o", "../out/", *_PACKAGES],
        say,
        cwd=source,
        env=env,
        progress=lambda log: f"{_compiled(log)} packages done",
    )
    for name, place in _PLACES.items():
        target = draft / place
        target.parent.mkdir(parents=True, exist_ok=True)
        (draft / "out" / name).rename(target)
    shutil.rmtree(source)
    (draft / "out").rmdir()


def _copy_dagger(source: Path, say: Say) -> None:
    """Put Dagger's module beside our own, with the packages of ``swap/`` in it."""
    say(f"fetching the source of Dagger {VERSION}")
    fetched = subprocess.run(
        ["go", "mod", "download", "-json", _DAGGER],
        cwd=source,
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if fetched.returncode:
        # With -json the reason is in the answer; without an answer it is on standard error.
        answer = json.loads(fetched.stdout) if fetched.stdout else {}
        raise EngineError(
            f"Dagger {VERSION} could not be fetched as a Go module",
            why=answer.get("Error", fetched.stderr.strip()),
            next_step="see that `go env GOPROXY` names a module proxy that answers",
        )
    copy = source / "dagger"
    shutil.copytree(json.loads(fetched.stdout)["Dir"], copy)
    for file in (source / "swap").rglob("*.go"):
        package = copy / file.parent.relative_to(source / "swap")
        shutil.rmtree(package)
        shutil.copytree(file.parent, package)
    subprocess.run(
        ["go", "mod", "edit", f"-replace={_DAGGER}=./dagger"],
        cwd=source,
        env=_environment(),
        check=True,
    )


def _environment() -> dict[str, str]:
    """Return the machine's environment, less what would change what is built."""
    return os.environ | {
        "CGO_ENABLED": "0",  # init runs inside any container: it must be static
        "GOFLAGS": "-mod=readonly -buildvcs=false",
        "GOWORK": "off",
    }


def _count_packages(source: Path, env: dict[str, str]) -> int:
    listed = subprocess.run(
        ["go", "list", "-deps", *_PACKAGES],
        cwd=source,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    return len(listed.stdout.splitlines())


def _compiled(log: str) -> int:
    """Return how many packages `go build -v` has named; its own remarks begin with ``go:``."""
    return sum(1 for line in log.splitlines() if line and not line.startswith(("go: ", "#", "\t")))
