"""The Compose plugin of Docker's command line, put in place for the user, without root.

Each source makes the program in a folder of its own, or says in a few words why it cannot.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pipeline.errors import CressetError
from pipeline.host import ca

Source = Literal["auto", "release", "apt", "go"]
Say = Callable[[str], None]

OLDEST: Final = (2, 26)
"""The oldest that Cresset's Compose files are tried with: Debian 13's."""

VERSION: Final = "5.4.0"
"""Of the release and of the Go module; after 2 came 5, with the same files and commands."""

RELEASE: Final = f"https://github.com/docker/compose/releases/download/v{VERSION}"

# As docker-library/docker, from which Docker's own image is made, has them from upstream.
SHA256: Final[Mapping[str, str]] = {
    "x86_64": "837fd1d35bf6a494f41b5b5988269a7be79de337cf1a1a6ff0e45ab51bb4e9be",
    "aarch64": "fc5d1371f1ec7987e703da94ede49af3fbfb240b83f22991a98511de7bc4b93b",
}

MODULE: Final = "github.com/docker/compose/v5"
MODULE_SUM: Final = "h1:i0xFmVvWv9QILfRE2PD07GmQqJYjpYAGutafIrJLURE="
"""What Go calls the module's sum; its go.sum, which is part of it, has those of all it requires."""

# Docker's own repository, Ubuntu and Debian each call it something else.
PACKAGES: Final = ("docker-compose-plugin", "docker-compose-v2", "docker-compose")

# The releases whose own package is of version 1, and the first whose package is not.
_NEXT: Final[Mapping[str, str]] = {"bookworm": "trixie"}

_NAME: Final = "docker-compose"

# Where Docker looks beside the user's own folder.
_SYSTEM: Final = tuple(
    Path(f"/usr/{folder}/docker/cli-plugins") / _NAME
    for folder in ("local/lib", "local/libexec", "lib", "libexec")
)

_ANSWER_SECONDS: Final = 30
_SECONDS: Final = (10, 60)
"""To connect, and between two pieces of an answer."""
_PAUSES: Final = (0, 1, 3)
"""Seconds before each try."""
_CHUNK: Final = 1 << 20


@dataclass(frozen=True)
class Installed:
    """A plugin that answers, and where it came from, with the reasons against other sources."""

    path: Path
    version: str
    source: str = "there before"
    refused: tuple[str, ...] = ()


def place() -> Path:
    """Return where Docker looks for the user's own plugin first."""
    folder = os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker"
    return Path(folder, "cli-plugins", _NAME)


def version_of(program: Path) -> str:
    """Return the version that a plugin gives of itself, empty where it is no plugin that runs."""
    try:
        asked = subprocess.run(
            [str(program), "docker-cli-plugin-metadata"],
            capture_output=True, text=True, check=False, timeout=_ANSWER_SECONDS,
        )  # fmt: skip
        answer = json.loads(asked.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return ""
    version = answer.get("Version") if isinstance(answer, dict) else None
    return version.removeprefix("v") if isinstance(version, str) else ""


def is_new_enough(version: str) -> bool:
    """Return whether a version, of a program or of a Debian package, is :data:`OLDEST` or newer."""
    found = re.match(r"(?:\d+:)?(\d+)\.(\d+)", version)
    return found is not None and (int(found[1]), int(found[2])) >= OLDEST


def installed() -> Installed | None:
    """Return the plugin that Docker takes, None where that is missing, broken or too old."""
    for path in (place(), *_SYSTEM):
        if path.exists():
            version = version_of(path)
            return Installed(path, version) if is_new_enough(version) else None
    return None


def install(source: Source, say: Say) -> Installed:
    """Return the user's own plugin, put in place whole or not at all, whatever was there.

    Raises:
        CressetError: no source has it, or its folder cannot be written.

    """
    target, wanted = place(), list(_SOURCES) if source == "auto" else [source]
    reasons: list[str] = []
    with _written(target) as draft, tempfile.TemporaryDirectory(prefix="cresset-") as folder:
        # apt fetches as a user of its own, who must get at the folder.
        Path(folder).chmod(0o755)
        for kind in wanted:
            home = Path(folder, kind)
            home.mkdir()
            made = _SOURCES[kind](home, say)
            why = made if isinstance(made, str) else _unusable(made, draft)
            if not why:
                draft.replace(target)
                return Installed(target, version_of(target), kind, tuple(reasons))
            say(f"{kind}: {why}")
            reasons.append(f"{kind}: {why}")
    raise CressetError(
        "Docker Compose cannot be installed",
        why="; ".join(reasons),
        next_step="mend one of these, or install the Compose plugin as Docker's documentation "
        f"says, as {target}",
    )


@contextlib.contextmanager
def _written(target: Path) -> Iterator[Path]:
    """Yield a path beside the target, which is free again at the end; Docker passes over it."""
    draft = target.with_name(f".{_NAME}.{secrets.token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft.touch(exist_ok=False)  # refused now, and not after minutes of compiling
        yield draft
    except OSError as error:
        raise CressetError(
            "Docker Compose cannot be installed",
            why=f"{error.filename or target.parent}: {error.strerror or error}",
            next_step="make room and let it be written, or name another folder in DOCKER_CONFIG",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def _unusable(made: Path, draft: Path) -> str:
    """Copy what was made to where it is to run, and return why it may not stay, if it may not."""
    shutil.copyfile(made, draft)
    draft.chmod(0o755)
    version = version_of(draft)
    if not version:
        return "what it has does not run here"
    return "" if is_new_enough(version) else f"its {version} is older than {_oldest()}"


def _oldest() -> str:
    return ".".join(map(str, OLDEST))


# A release


def _from_release(home: Path, say: Say) -> Path | str:
    machine = os.uname().machine
    if machine not in SHA256:
        return f"no release for {machine} is known here, but for {' and '.join(SHA256)}"
    url = f"{RELEASE}/{_NAME}-linux-{machine}"
    say(f"fetching {url}")
    digest, why = _fetch(url, home / _NAME)
    if why:
        return f"{url} cannot be fetched ({why})"
    if digest != SHA256[machine]:
        return f"{url} is not what was released: its sha256 is {digest}"
    return home / _NAME


def _fetch(url: str, file: Path) -> tuple[str, str]:
    """Write what is at a URL into a file; return its sha256, or nothing and why it is not there."""
    import requests  # noqa: PLC0415 - only this source asks

    why = ""
    for pause in _PAUSES:
        time.sleep(pause)
        try:
            with requests.get(url, stream=True, timeout=_SECONDS, verify=ca.bundle()) as answer:
                if not answer.ok:
                    why = f"{answer.status_code} {answer.reason}"
                    if answer.status_code < requests.codes.server_error:
                        break
                    continue
                total = hashlib.sha256()
                with file.open("wb") as content:
                    for chunk in answer.iter_content(_CHUNK):
                        content.write(chunk)
                        total.update(chunk)
                return total.hexdigest(), ""
        except requests.RequestException as error:
            why = _innermost(error)
    return "", why


def _innermost(error: BaseException) -> str:
    while error.__context__ is not None:
        error = error.__context__
    return str(error) or type(error).__name__


# The distribution's package


def _from_apt(home: Path, say: Say) -> Path | str:
    if missing := [it for it in ("apt-get", "apt-cache", "dpkg-deb") if not shutil.which(it)]:
        return f"there is no {missing[0]}"
    known = _candidates([])
    if found := _newest(known):
        made = _unpacked(found, [], home / "known", say)
        if isinstance(made, Path):
            return made
    codename = _codename()
    release = _NEXT.get(codename, codename)
    why = "; ".join(f"{name} is {version}" for name, version in known.items())
    why = why or "apt knows no package of it"
    if not (lists := _lists(home, codename, release)):
        return f"{why}, and no apt source here names {codename or 'a release'}"
    read = ["apt-get", *lists, "-q", "update"]
    failed = _works(f"reading the package lists of {release}", read, home, say)
    if found := _newest(_candidates(lists)):
        return _unpacked(found, lists, home / "fresh", say)
    return failed or f"{why}, and {release} has none newer"


def _candidates(options: Sequence[str]) -> dict[str, str]:
    """Return what apt would install of each package, for those that it knows."""
    asked = subprocess.run(
        ["apt-cache", *options, "policy", *PACKAGES],
        env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = re.findall(r"^(\S+):\n(?: .*\n)*?  Candidate: (\d\S*)$", asked.stdout, re.MULTILINE)
    return dict(found)


def _newest(candidates: Mapping[str, str]) -> str:
    """Return the first package that is new enough as apt-get takes it, empty if there is none."""
    return next((f"{it}={v}" for it, v in candidates.items() if is_new_enough(v)), "")


def _unpacked(package: str, options: Sequence[str], home: Path, say: Say) -> Path | str:
    name = package.replace("=", " ")
    home.mkdir()
    fetch = ["apt-get", *options, "-q", "-o", "Acquire::Retries=3", "download", package]
    if why := _works(f"fetching {name}", fetch, home, say):
        return why
    (archive,) = home.glob("*.deb")
    unpack = ["dpkg-deb", "-x", archive.name, "unpacked"]
    if why := _works(f"unpacking {name}", unpack, home, say):
        return why
    found = list(home.glob(f"unpacked/**/cli-plugins/{_NAME}"))
    return found[0] if found else f"{name} has no plugin in it"


def _codename() -> str:
    try:
        return platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    except OSError:
        return ""


def _lists(home: Path, codename: str, release: str) -> list[str]:
    """Return options for package lists of our own; empty where the machine has no source for them.

    The sources are the machine's own, so its mirrors, its proxies, its logins and its keys count.
    """
    sources = home / "sources"
    sources.mkdir()
    for number, file in enumerate(_source_files()):
        convert = deb822_sources if file.suffix == ".sources" else one_line_sources
        with contextlib.suppress(OSError):  # apt would not read it for this user either
            if text := convert(file.read_text(errors="replace"), codename, release):
                ours = sources / f"{number}{file.suffix}"
                ours.touch(mode=0o600)  # a login may be in it
                ours.write_text(text)
    if not any(sources.iterdir()):
        return []
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (home / folder).mkdir(parents=True)
    configuration = home / "apt.conf"
    configuration.write_text(_APT.format(home=home))
    return ["-c", str(configuration)]


# What the machine does after its own updates, such as throwing caches away, is not for ours.
_APT: Final = """\
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "{home}/sources";
Dir::State "{home}/state";
Dir::Cache "{home}/cache";
APT::Default-Release "";
Acquire::Languages "none";
Acquire::Retries "3";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"""


def _source_files() -> list[Path]:
    """Return the files in which apt's sources are."""
    asked = subprocess.run(
        ["apt-config", "shell", "A", "Dir::Etc::sourcelist/f", "B", "Dir::Etc::sourceparts/d"],
        capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    paths = [Path(path) for path in re.findall(r"^\w+='(.*)'$", asked, re.MULTILINE)]
    files = [it for path in paths for it in (sorted(path.iterdir()) if path.is_dir() else [path])]
    return [it for it in files if it.suffix in {".list", ".sources"}]


def one_line_sources(text: str, codename: str, release: str) -> str:
    """Return the lines of a sources.list that name one release, which name another one instead."""
    lines = []
    for line in text.splitlines():
        found = re.match(r"deb\s+(?:\[(.*?)\]\s+)?(\S+)\s+(\S+)\s+([^#]+)", line.strip())
        if found and (suite := _suites(codename, release).get(found[3])):
            options = f"{found[1] or ''} target=Packages".strip()
            lines.append(f"deb [{options}] {found[2]} {suite} {found[4].strip()}\n")
    return "".join(lines)


def deb822_sources(text: str, codename: str, release: str) -> str:
    """Return the stanzas of a .sources file that name one release, which name another instead."""
    suites = _suites(codename, release)
    stanzas = []
    for stanza in re.split(r"\n\s*\n", text):
        lines = [line for line in stanza.splitlines() if not line.startswith("#")]
        fields = re.findall(r"^([\w-]+):[ \t]*(.*(?:\n[ \t].*)*)", "\n".join(lines), re.MULTILINE)
        values = {name.lower(): value for name, value in fields}
        ours = " ".join(suites[it] for it in values.get("suites", "").split() if it in suites)
        if ours and "deb" in values.get("types", "").split():
            values |= {"types": "deb", "suites": ours, "targets": "Packages"}
            stanzas.append("".join(f"{name}: {value}\n" for name, value in values.items()))
    return "\n".join(stanzas)


def _suites(codename: str, release: str) -> dict[str, str]:
    if not codename:
        return {}
    return {f"{codename}{pocket}": f"{release}{pocket}" for pocket in ("", "-updates", "-security")}


# The Go module


def _from_go(home: Path, say: Say) -> Path | str:
    if shutil.which("go") is None:
        return "there is no Go"
    # The machine's settings, less what would change what is built.
    env = os.environ | {
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=readonly -buildvcs=false",
        "GOWORK": "off",
    }
    say(f"fetching the source of Docker Compose {VERSION}")
    asked = subprocess.run(
        ["go", "mod", "download", "-json", f"{MODULE}@v{VERSION}"],
        cwd=home, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        answer = json.loads(asked.stdout)
    except ValueError:
        return _last_line(asked.stderr) or "go says nothing"
    if asked.returncode:
        return str(answer.get("Error", _last_line(asked.stderr)))
    if answer["Sum"] != MODULE_SUM:
        return f"the module proxy's {MODULE} {VERSION} is not what was released: {answer['Sum']}"
    # Go builds what a module itself is, with its own go.sum, outside of its cache alone.
    shutil.copytree(answer["Dir"], home / "source")
    flags = f"-s -w -X {MODULE}/internal.Version=v{VERSION}"
    build = ["go", "build", "-trimpath", f"-ldflags={flags}", "-o", str(home / _NAME), "./cmd"]
    what = f"compiling Docker Compose {VERSION}, for minutes"
    return _works(what, build, home / "source", say, env) or home / _NAME


def _works(
    what: str, command: Sequence[str], folder: Path, say: Say, env: Mapping[str, str] | None = None
) -> str:
    """Run a command and say what it says; return why it failed, empty where it did not."""
    say(what)
    done = subprocess.run(
        command, cwd=folder, env=env,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False,
    )  # fmt: skip
    for line in done.stdout.splitlines():
        say(line)
    return f"{what} failed: {_last_line(done.stdout)}" if done.returncode else ""


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


_SOURCES: Final[Mapping[str, Callable[[Path, Say], Path | str]]] = {
    "release": _from_release,
    "apt": _from_apt,
    "go": _from_go,
}
