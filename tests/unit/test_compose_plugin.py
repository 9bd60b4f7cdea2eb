"""Which source the Compose plugin is taken from, why not from others, and that it comes whole."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from pipeline.errors import CressetError
from pipeline.host import compose_plugin as compose
from tests.unit.running import checkout, run

Answer = Callable[[list[str], Path], tuple[int, str]]


def program(version: str) -> str:
    """Return the content of a stand-in for a plugin of this version."""
    return f"plugin {version}\n"


def silent(_: list[str], __: Path) -> tuple[int, str]:
    return 0, ""


class Machine:
    """Stands in for the programs of a machine: what each answers, and what was asked of them.

    A plugin is a file that begins with the word; it gives the version that stands there.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers: dict[str, Answer] = {}

    def __call__(self, argv: list[str], **named: Any) -> subprocess.CompletedProcess[str]:
        self.asked.append(" ".join(argv))
        words = Path(argv[0]).read_text().split() if Path(argv[0]).is_file() else []
        if argv[1:] == ["docker-cli-plugin-metadata"]:
            if not os.access(argv[0], os.X_OK):
                raise PermissionError(argv[0])
            known = words[:1] == ["plugin"]
            text = json.dumps({"SchemaVersion": "0.1.0", "Version": words[1]}) if known else "?"
            return subprocess.CompletedProcess(argv, 0 if known else 1, text, "")
        options = [*argv, ""]
        verb = next(it for it in options[1:] if it.isalpha() or it in {"-x", ""})
        answer = self.answers.get(f"{argv[0]} {verb}", silent)
        code, text = answer(argv, Path(named.get("cwd") or "."))
        return subprocess.CompletedProcess(argv, code, text, text)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return a Debian 12 without network, whose user has no plugin."""
    it = Machine()
    monkeypatch.setattr(subprocess, "run", it)
    monkeypatch.setattr(shutil, "which", lambda name, **_: f"/usr/bin/{name}")
    monkeypatch.setattr(compose, "_SYSTEM", (tmp_path / "system" / "docker-compose",))
    monkeypatch.setattr(compose, "_PAUSES", (0, 0))
    monkeypatch.setattr(requests, "get", no_network)
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="x86_64"))
    release = {"ID": "debian", "VERSION_CODENAME": "bookworm"}
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: release)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    return it


def no_network(*_: object, **__: object) -> requests.Response:
    try:
        raise OSError("Name or service not known")
    except OSError as error:
        raise requests.ConnectionError(error) from error


def serves(
    monkeypatch: pytest.MonkeyPatch, *answers: tuple[int, bytes] | Exception
) -> list[dict[str, Any]]:
    """Have the network give these answers in turn; return what it is asked with."""
    left, asked = list(answers), list[dict[str, Any]]()

    def get(url: str, **named: Any) -> requests.Response:
        asked.append({"url": url, **named})
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        response = requests.Response()
        response.status_code, response.reason = answer[0], "reason"
        response.raw = io.BytesIO(answer[1])
        return response

    monkeypatch.setattr(requests, "get", get)
    return asked


def pinned(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(compose, "SHA256", {"x86_64": digest})


def packages(machine: Machine, *, known: str = "", fresh: str = "") -> None:
    """Give apt the package: by its own lists, and by lists that are fetched anew."""

    def policy(argv: list[str], _: Path) -> tuple[int, str]:
        version = fresh if "-c" in argv else known
        return 0, (
            "docker-compose-v2:\n  Installed: (none)\n  Candidate: (none)\n  Version table:\n"
            f"docker-compose:\n  Installed: (none)\n  Candidate: {version or '(none)'}\n"
            f"  Version table:\n     {version} 500\n"
        )

    def download(argv: list[str], folder: Path) -> tuple[int, str]:
        (folder / "it.deb").write_text(argv[-1].partition("=")[2])
        return 0, ""

    def unpack(_: list[str], folder: Path) -> tuple[int, str]:
        path = folder / "unpacked/usr/libexec/docker/cli-plugins/docker-compose"
        path.parent.mkdir(parents=True)
        path.write_text(program((folder / "it.deb").read_text()))
        return 0, ""

    machine.answers |= {
        "apt-cache policy": policy,
        "apt-get download": download,
        "dpkg-deb -x": unpack,
    }


def sources(machine: Machine, folder: Path) -> None:
    """Give apt a file of sources, in the form of Debian 12's own image."""
    file = folder / "debian.sources"
    file.write_text(
        "Types: deb\n# a note\nURIs: http://mirror/debian\nSuites: bookworm bookworm-updates\n"
        "Components: main\nSigned-By: /usr/share/keyrings/it.gpg\n"
    )
    machine.answers["apt-config shell"] = lambda *_: (0, f"A='{file}'\n")


def plugin(folder: Path, version: str) -> Path:
    folder.mkdir(parents=True)
    path = folder / "docker-compose"
    path.write_text(program(version))
    path.chmod(0o755)
    return path


def names(folder: Path) -> list[str]:
    return [it.name for it in folder.iterdir()]


@pytest.mark.parametrize(
    ("version", "enough"),
    [
        ("2.26.0", True),
        ("2.26.1-4", True),
        ("5:5.0.1-1~debian.12~bookworm", True),
        ("2.40.3-desktop.1", True),
        ("2.25.9", False),
        ("1.29.2-3", False),
        ("dev", False),
        ("", False),
    ],
)
def test_versions_of_programs_and_packages(version: str, *, enough: bool) -> None:
    assert compose.is_new_enough(version) is enough


def test_a_release_goes_where_docker_looks(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    content = program("5.4.0").encode()
    pinned(monkeypatch, content)
    asked = serves(monkeypatch, (200, content))
    got = compose.install("auto", print)
    assert got == compose.Installed(
        tmp_path / "docker/cli-plugins/docker-compose", "5.4.0", "release"
    )
    assert os.access(got.path, os.X_OK)
    assert names(got.path.parent) == ["docker-compose"]
    assert asked[0]["url"].startswith("https://")
    assert asked[0]["verify"] is not False
    assert not any(it.startswith(("apt", "go")) for it in machine.asked)


def test_a_release_is_asked_for_again_after_a_broken_answer(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    del machine
    content = program("5.4.0").encode()
    pinned(monkeypatch, content)
    serves(monkeypatch, (502, b""), (200, content))
    assert compose.install("release", print).version == "5.4.0"
    asked = serves(monkeypatch, requests.ConnectionError("cut off"), (404, b""))
    with pytest.raises(CressetError, match="404 reason"):
        compose.install("release", print)
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("served", "why"),
    [
        pytest.param(b"changed", "is not what was released", id="another"),
        pytest.param(b"#!/bin/sh", "does not run here", id="no plugin"),
        pytest.param(program("1.9.0").encode(), "older than 2.26", id="too old"),
    ],
)
def test_what_is_no_plugin_leaves_the_old_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, served: bytes, why: str
) -> None:
    del machine
    old = plugin(compose.place().parent, "2.30.0")
    pinned(monkeypatch, b"what was released" if served == b"changed" else served)
    serves(monkeypatch, (200, served))
    with pytest.raises(CressetError) as refused:
        compose.install("release", print)
    assert why in refused.value.why
    assert refused.value.next_step
    assert old.read_text() == program("2.30.0")
    assert names(old.parent) == ["docker-compose"]


def test_no_release_for_another_machine(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    del machine
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="mips"))
    with pytest.raises(CressetError, match="no release for mips"):
        compose.install("release", print)


def test_the_package_of_this_release_where_it_is_new_enough(machine: Machine) -> None:
    packages(machine, known="2.26.1-4")
    got = compose.install("auto", print)
    assert (got.version, got.source) == ("2.26.1-4", "apt")
    (refused,) = got.refused
    assert refused.startswith("release: https://")
    assert "Name or service not known" in refused
    assert not any("update" in it for it in machine.asked), "the machine's own lists are enough"


def test_the_package_of_the_next_release_where_this_has_version_1(
    machine: Machine, tmp_path: Path
) -> None:
    packages(machine, known="1.29.2-3", fresh="2.26.1-4")
    sources(machine, tmp_path)
    seen: list[str] = []

    def update(argv: list[str], folder: Path) -> tuple[int, str]:
        seen.append(Path(argv[2]).read_text() + next(folder.glob("sources/*")).read_text())
        return 0, ""

    machine.answers["apt-get update"] = update
    assert compose.install("apt", print).version == "2.26.1-4"
    (text,) = seen
    assert "Suites: trixie trixie-updates".lower() in text.lower()
    assert "http://mirror/debian" in text
    assert "bookworm" not in text
    for own in ("Dir::State ", "Dir::Cache ", "Dir::Etc::sourceparts "):
        assert f'{own}"/' in text
        assert f'{own}"/var' not in text
    assert all("-c" in it for it in machine.asked if it.startswith("apt-get")), "not the machine's"


def test_lists_that_lack_what_they_name_are_fetched_anew(machine: Machine, tmp_path: Path) -> None:
    packages(machine, known="2.26.1-4", fresh="2.26.1-5")
    sources(machine, tmp_path)
    download = machine.answers["apt-get download"]

    def gone(argv: list[str], folder: Path) -> tuple[int, str]:
        return download(argv, folder) if "-c" in argv else (100, "E: 404  Not Found")

    machine.answers["apt-get download"] = gone
    assert compose.install("apt", print).version == "2.26.1-5"


@pytest.mark.parametrize(
    ("known", "mirror", "why"),
    [
        ("1.29.2-3", False, "docker-compose is 1.29.2-3, and no apt source here names bookworm"),
        ("1.29.2-3", True, "docker-compose is 1.29.2-3, and trixie has none newer"),
        ("", False, "apt knows no package of it, and no apt source here names bookworm"),
    ],
)
def test_why_no_package_is_taken(
    machine: Machine, tmp_path: Path, known: str, why: str, *, mirror: bool
) -> None:
    packages(machine, known=known, fresh="1.29.2-3")
    if mirror:
        sources(machine, tmp_path)
    with pytest.raises(CressetError) as refused:
        compose.install("apt", print)
    assert refused.value.why == f"apt: {why}"


def test_a_mirror_that_does_not_answer_is_named(machine: Machine, tmp_path: Path) -> None:
    packages(machine, known="1.29.2-3")
    sources(machine, tmp_path)
    machine.answers["apt-get update"] = lambda *_: (100, "Err:1\nE: Could not resolve 'mirror'\n")
    with pytest.raises(CressetError, match="Could not resolve 'mirror'"):
        compose.install("apt", print)


def test_one_line_sources_of_one_release() -> None:
    text = (
        "# deb http://mirror/debian bookworm main\n"
        "deb-src http://mirror/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/k.gpg] https://me:pw@mirror/debian bookworm main contrib # it\n"
        "deb http://mirror/security bookworm-security main\n"
        "deb http://else/ cloud-bookworm main\n"
        "deb http://else/debian bullseye main\n"
    )
    assert compose.one_line_sources(text, "bookworm", "trixie").splitlines() == [
        "deb [arch=amd64 signed-by=/k.gpg target=Packages] https://me:pw@mirror/debian trixie main "
        "contrib",
        "deb [target=Packages] http://mirror/security trixie-security main",
    ]


def test_deb822_sources_of_one_release() -> None:
    key = "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n"
    text = (
        f"Types: deb deb-src\nURIs: http://mirror/\nSuites: bookworm bookworm-backports\n"
        f"Components: main\n{key}\n\n"
        "Types: deb-src\nURIs: http://mirror/\nSuites: bookworm\nComponents: main\n\n"
        "Types: deb\nURIs: http://else/\nSuites: nodistro\nComponents: main\n"
    )
    found = compose.deb822_sources(text, "bookworm", "trixie")
    assert [line.rstrip() for line in found.splitlines()] == [
        "types: deb",
        "uris: http://mirror/",
        "suites: trixie",
        "components: main",
        *f"signed-by:{key.partition(':')[2]}".splitlines(),
        "targets: Packages",
    ]


def test_sources_are_of_no_release_where_the_machine_has_no_name() -> None:
    line = "deb http://mirror/debian -updates main\n"
    assert compose.one_line_sources(line, "", "") == ""


def go(machine: Machine, folder: Path, *, total: str = compose.MODULE_SUM) -> None:
    """Give the machine a Go that has the module."""
    (folder / "module" / "cmd").mkdir(parents=True)

    def build(argv: list[str], _: Path) -> tuple[int, str]:
        Path(argv[argv.index("-o") + 1]).write_text(program(f"v{compose.VERSION}"))
        return 0, ""

    answer = json.dumps({"Dir": str(folder / "module"), "Sum": total})
    machine.answers |= {"go mod": lambda *_: (0, answer), "go build": build}


def test_the_module_is_compiled_where_nothing_else_works(machine: Machine, tmp_path: Path) -> None:
    go(machine, tmp_path)
    got = compose.install("auto", print)
    assert (got.version, got.source) == (compose.VERSION, "go")
    assert [it.partition(":")[0] for it in got.refused] == ["release", "apt"]


def test_another_module_of_that_version_is_refused(machine: Machine, tmp_path: Path) -> None:
    go(machine, tmp_path, total="h1:other=")
    with pytest.raises(CressetError, match="is not what was released: h1:other="):
        compose.install("go", print)
    assert not any("build" in it for it in machine.asked)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((1, '{"Error": "requires go >= 1.26.3"}'), "go: requires go >= 1.26.3"),
        ((1, "go: no such proxy\n"), "go: go: no such proxy"),
    ],
)
def test_why_go_has_no_module(machine: Machine, answer: tuple[int, str], why: str) -> None:
    machine.answers["go mod"] = lambda *_: answer
    with pytest.raises(CressetError) as refused:
        compose.install("go", print)
    assert refused.value.why == why


def test_a_compiler_that_fails_is_quoted(machine: Machine, tmp_path: Path) -> None:
    go(machine, tmp_path)
    machine.answers["go build"] = lambda *_: (1, "# it\nno space left on device\n")
    with pytest.raises(CressetError, match="no space left on device"):
        compose.install("go", print)


def test_every_reason_is_given_where_nothing_works(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    del machine
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(CressetError) as refused:
        compose.install("auto", print)
    assert "Name or service not known" in refused.value.why
    assert "apt: there is no apt-get; go: there is no Go" in refused.value.why
    assert names(compose.place().parent) == []


def test_a_folder_that_cannot_be_written_is_known_at_once(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "docker").write_text("a file\n")
    with pytest.raises(CressetError) as refused:
        compose.install("auto", print)
    assert str(tmp_path / "docker") in refused.value.why
    assert "DOCKER_CONFIG" in refused.value.next_step
    assert machine.asked == []


def test_another_users_folder_is_known_at_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "touch", denied)
    with pytest.raises(CressetError, match="Permission denied"):
        compose.install("auto", print)
    assert machine.asked == []


def test_the_plugin_of_the_system_counts_and_the_users_goes_before_it(
    machine: Machine, tmp_path: Path
) -> None:
    del machine
    assert compose.installed() is None
    system = plugin(tmp_path / "system", "2.40.0")
    assert compose.installed() == compose.Installed(system, "2.40.0")
    own = plugin(compose.place().parent, "2.20.0")
    assert compose.installed() is None, "Docker takes the user's own, which is too old"
    own.write_text(program("5.0.0"))
    assert compose.installed() == compose.Installed(own, "5.0.0")


def test_without_docker_config_it_is_the_home_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compose.place() == tmp_path / ".docker/cli-plugins/docker-compose"


@pytest.fixture
def standing(tmp_path: Path) -> Iterator[Path]:
    """Stand in a checkout."""
    with checkout(tmp_path / "checkout") as folder:
        yield folder


@pytest.mark.usefixtures("standing")
def test_the_verb_leaves_a_good_one_alone_unless_forced(machine: Machine) -> None:
    packages(machine, known="2.26.1-4")
    own = plugin(compose.place().parent, "2.30.0")
    ran = run("install-compose")
    assert (ran.code, ran.out) == (0, f"{own}\n")
    assert "2.30.0 is there already" in ran.err
    assert own.read_text() == program("2.30.0")
    forced = run("install-compose", "--force", "--from", "apt", "--json")
    assert forced.code == 0, forced.err
    wanted = {"path": str(own), "version": "2.26.1-4", "source": "apt", "refused": []}
    assert json.loads(forced.out) == wanted
    assert own.read_text() == program("2.26.1-4")


@pytest.mark.usefixtures("standing")
def test_the_verb_replaces_one_that_is_too_old_and_says_why_not_from_elsewhere(
    machine: Machine,
) -> None:
    packages(machine, known="2.26.1-4")
    plugin(compose.place().parent, "2.3.3")
    ran = run("install-compose")
    assert ran.code == 0, ran.err
    assert "2.26.1-4 (apt; not release: https://" in ran.err


@pytest.mark.usefixtures("standing")
def test_the_verb_ends_in_words_and_without_a_path(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    del machine
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    ran = run("install-compose")
    assert (ran.code, ran.out) == (1, "")
    for part in ("error: Docker Compose cannot be installed", "why: release:", "next: ", "log: "):
        assert part in ran.err
