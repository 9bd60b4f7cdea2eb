"""Whoever starts a container is its user: each row is a way of starting one, on a real image."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.docker import docker

pytestmark = pytest.mark.docker

PROBE = """
import getpass, grp, json, os, pwd, subprocess
def name(of, number):
    try:
        return of(number)[0]
    except KeyError:
        return ""
home = os.path.expanduser("~")
made = os.path.join(home, "made")
open(made, "w").close()
site = next(it for it in __import__("site").getsitepackages())
print(json.dumps({
    "uid": os.getuid(), "gid": os.getgid(), "groups": sorted(os.getgroups()),
    "name": name(pwd.getpwuid, os.getuid()), "group": name(grp.getgrgid, os.getgid()),
    "getuser": getpass.getuser(), "home": home, "owner": os.stat(made).st_uid,
    "cwd": os.getcwd(), "sudo": subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0,
    "pip": os.access(site, os.W_OK), "names": sorted(set(os.environ) & {"UID", "GID", "SUDO", "ADD_USER"}),
    "passwd": sum(line.split(":")[2] == str(os.getuid()) for line in open("/etc/passwd")),
}))
"""  # noqa: E501 - runs inside


@dataclass(frozen=True)
class Case:
    """A way of starting a container, and what its user then is."""

    about: str
    options: tuple[str, ...]
    expected: dict[str, Any] = field(default_factory=dict)


def env(**variables: str) -> tuple[str, ...]:
    return tuple(word for name, value in variables.items() for word in ("-e", f"{name}={value}"))


ANN = {"uid": 1234, "gid": 2345, "name": "ann", "group": "lab", "getuser": "ann",
       "home": "/home/ann", "sudo": False, "pip": True}  # fmt: skip
AS_ANN = env(UID="1234", GID="2345", USR="ann", GRP="lab")
READ_ONLY = ("--read-only", "--tmpfs", "/tmp")

CASES = [
    Case("nothing said", (), {"uid": 0, "name": "root", "home": "/root", "pip": True}),
    Case("a user with a group", AS_ANN, ANN),
    Case("UID 1000, which images often have taken", env(UID="1000", GID="1000", USR="ann"),
         {"uid": 1000, "gid": 1000, "name": "ann", "group": "ann", "home": "/home/ann"}),
    Case("an UID alone", env(UID="4321"),
         {"uid": 4321, "gid": 4321, "name": "user", "group": "user", "home": "/home/user"}),
    Case("a group of the image under another name",
         env(UID="501", GID="20", USR="ann", GRP="staff"),
         {"uid": 501, "gid": 20, "group": "staff"}),
    Case("a user of the image under another number", env(UID="1234", USR="games"),
         {"uid": 1234, "name": "games", "home": "/home/games"}),
    Case("a number of the image under another name", env(UID="33", GID="33", USR="ann", GRP="web"),
         {"uid": 33, "name": "ann", "group": "web", "passwd": 1}),
    Case("root's group", env(UID="1234", GID="0", USR="ann"), {"gid": 0, "group": "root"}),
    Case("the name of root", env(UID="1234", USR="root"), {"uid": 1234, "name": "user"}),
    Case("a large UID of a directory service", env(UID="1689401234", GID="1689400513", USR="ann"),
         {"uid": 1689401234, "gid": 1689400513, "name": "ann"}),
    Case("a name with dots and dashes", env(UID="1234", USR="ann-lee.b_1"),
         {"name": "ann-lee.b_1", "home": "/home/ann-lee.b_1"}),
    Case("root, asked for", env(UID="1234", ADD_USER="exclude"), {"uid": 0, "home": "/root"}),
    Case("UID 0", env(UID="0", GID="0", USR="root"), {"uid": 0, "home": "/root"}),
    Case("sudo, asked for", (*AS_ANN, *env(SUDO="include")), ANN | {"sudo": True}),
    Case("sudo, refused", (*AS_ANN, *env(SUDO="exclude")), ANN),
    Case("sudo where no privileges can be gained",
         (*AS_ANN, *env(SUDO="include"), "--security-opt", "no-new-privileges"), ANN),
    Case("a group of devices", (*AS_ANN, "--group-add", "44"), ANN | {"groups": [0, 44, 2345]}),
    Case("Docker's --user", ("--user", "12345"),
         {"uid": 12345, "gid": 0, "name": "user", "home": "/tmp/home-12345", "pip": True}),
    Case("Docker's --user with a group", ("--user", "12345:777"),
         {"uid": 12345, "gid": 777, "name": "user", "group": "user", "pip": False}),
    Case("Docker's --user with a name", ("--user", "12345", *env(USR="ann")),
         {"uid": 12345, "name": "ann", "getuser": "ann"}),
    Case("Docker's --user, who is in the image", ("--user", "games"), {"uid": 5, "name": "games"}),
    Case("Docker's --user 0", ("--user", "0", *AS_ANN), ANN),
    Case("a read-only image", (*READ_ONLY, *AS_ANN),
         ANN | {"home": "/tmp/home-1234", "pip": False}),
    Case("a read-only image with a home", (*READ_ONLY, "--tmpfs", "/home", *AS_ANN),
         ANN | {"pip": False}),
    Case("a read-only image and --user", (*READ_ONLY, "--user", "12345"),
         {"uid": 12345, "name": "user", "home": "/tmp/home-12345"}),
    Case("a read-only image and root", (*READ_ONLY, "--tmpfs", "/root"), {"uid": 0}),
    Case("no capabilities and --user", ("--user", "12345", "--cap-drop", "ALL"), {"uid": 12345}),
    Case("the threads of jemalloc, which an image of torch preloads",
         (*AS_ANN, *env(LD_PRELOAD="libjemalloc.so.2", MALLOC_CONF="background_thread:true")), ANN),
    Case("the name of a word of sudo's", env(UID="1234", USR="ALL", SUDO="exclude"),
         {"name": "ALL", "sudo": False}),
    Case("Docker's init", ("--init", *AS_ANN), ANN),
    Case("another folder", ("-w", "/tmp", *AS_ANN), ANN | {"cwd": "/tmp"}),
]  # fmt: skip


def started(host: str, image: str, *options: str, command: tuple[str, ...]) -> tuple[int, str, str]:
    done = docker(host, "run", "--rm", "--network", "none", *options, image, *command, check=False)
    return done.returncode, done.stdout, done.stderr


def probe(host: str, image: str, *options: str) -> dict[str, Any]:
    code, out, err = started(host, image, *options, command=("python", "-c", PROBE))
    assert code == 0, err
    facts: dict[str, Any] = json.loads(out)
    return facts


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.about)
def test_the_user_is_who_starts_it(docker_host: str, image: str, case: Case) -> None:
    facts = probe(docker_host, image, *case.options)
    assert {name: facts[name] for name in case.expected} == case.expected
    assert facts["owner"] == facts["uid"]
    assert facts["names"] == [], "or a shell would take them for its own"


def open_to_all(folder: Path) -> None:
    """Let others into a folder of pytest's, which lets nobody in."""
    for it in (folder, *folder.parents):
        if it.stat().st_uid == os.getuid() and not it.stat().st_mode & 0o001:
            it.chmod(0o755)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    os.chown(folder, 1234, 2345)
    open_to_all(folder)
    return folder


def test_the_owner_of_the_mounted_project_is_the_user(
    docker_host: str, image: str, project: Path
) -> None:
    mount = ("-v", f"{project}:/opt/project")
    facts = probe(docker_host, image, *mount)
    assert (facts["uid"], facts["gid"]) == (1234, 2345)
    started(docker_host, image, *mount, command=("touch", "made"))
    made = (project / "made").stat()
    assert (made.st_uid, made.st_gid) == (1234, 2345)


def test_a_rootless_engines_root_is_the_user_outside(docker_host: str, image: str) -> None:
    """A stand-in for such an engine: the map of ids that it has, which is all `enter` looks at."""
    script = "echo '0 1234 1' >/tmp/map; sed s,/proc/self/uid_map,/tmp/map, /usr/local/bin/enter"
    inside = f"{script} >/tmp/enter && exec sh /tmp/enter sh -c 'id -u; echo $HOME'"
    code, out, err = started(
        docker_host, image, *AS_ANN, "--entrypoint", "sh", command=("-c", inside)
    )
    assert code == 0, err
    assert out.split() == ["0", "/root"]


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("UID", "ann", "UID='ann' is not a number"),
        ("GID", "-1", "GID='-1' is not a number"),
        ("UID", "4294967295", "is not a number"),
        ("UID", "99999999999", "is not a number"),
        ("USR", "ann:0:0", "USR='ann:0:0' is not a user name"),
        ("USR", "ann ALL=(ALL) ALL", "is not a user name"),
        ("GRP", "a\nroot:x:0:", "is not a group name"),
    ],
)
def test_what_would_end_in_passwd_as_something_else_is_refused(
    docker_host: str, image: str, variable: str, value: str, said: str
) -> None:
    options = env(**{"UID": "1234", variable: value})
    code, out, err = started(docker_host, image, *options, command=("id",))
    assert code == 2
    assert out == ""
    assert said in err


@pytest.mark.parametrize("code", [0, 1, 42, 143])
def test_exit_codes_pass_through(docker_host: str, image: str, code: int) -> None:
    assert started(docker_host, image, *AS_ANN, command=("sh", "-c", f"exit {code}"))[0] == code


def test_a_signal_reaches_the_command(docker_host: str, image: str) -> None:
    trap = "trap 'echo ended; exit 3' TERM; echo begun; while :; do sleep 0.1; done"
    name = docker(
        docker_host, "run", "--detach", "--network", "none", *AS_ANN, image, "sh", "-c", trap
    ).stdout.strip()
    try:
        deadline = time.monotonic() + 20
        while "begun" not in docker(docker_host, "logs", name).stdout:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        docker(docker_host, "kill", "--signal", "TERM", name)
        assert docker(docker_host, "wait", name).stdout.strip() == "3"
        assert "ended" in docker(docker_host, "logs", name).stdout
    finally:
        docker(docker_host, "rm", "--force", name)


@pytest.fixture
def running(docker_host: str, image: str) -> Iterator[Callable[..., str]]:
    """Yield what starts a container that stays, and returns its name."""
    names: list[str] = []

    def start(*options: str) -> str:
        argv = ("run", "--detach", "--network", "none", *options, image, "sleep", "600")
        names.append(docker(docker_host, *argv).stdout.strip())
        deadline = time.monotonic() + 10
        while docker(
            docker_host, "exec", names[-1], "pgrep", "-x", "sleep", check=False
        ).returncode:
            assert time.monotonic() < deadline
        return names[-1]

    yield start
    for name in names:
        docker(docker_host, "rm", "--force", name)


def test_two_users_work_from_one_tag_at_once(
    docker_host: str, running: Callable[..., str], tmp_path: Path
) -> None:
    open_to_all(tmp_path)
    tmp_path.chmod(0o777)
    mount = ("-v", f"{tmp_path}:/data")
    ann = running(*AS_ANN, *mount)
    bob = running(*env(UID="5678", GID="2345", USR="bob", GRP="lab"), *mount)
    for name in (ann, bob):
        docker(docker_host, "exec", name, "enter", "sh", "-c", 'id -un > "/data/$USER"')
    owners = {it.name: (it.read_text().strip(), it.stat().st_uid) for it in tmp_path.iterdir()}
    assert owners == {"ann": ("ann", 1234), "bob": ("bob", 5678)}


def test_a_running_container_is_entered_as_its_user(
    docker_host: str, running: Callable[..., str]
) -> None:
    name = running(*AS_ANN)
    asked = docker(docker_host, "exec", name, "enter", "sh", "-c", "id -un; pwd; echo $HOME")
    assert asked.stdout.split() == ["ann", "/opt/project", "/home/ann"]
    passwd = docker(docker_host, "exec", name, "cat", "/etc/passwd").stdout
    assert [line for line in passwd.splitlines() if "1234" in line or "ann" in line] == [
        "ann:*:1234:2345::/home/ann:/usr/bin/zsh"
    ]


PLANT = """
for it in id awk stat enter setpriv; do
    printf '#!/bin/sh\\necho planted >>/tmp/as-$(/usr/bin/id -u)\\n' >/opt/venv/bin/$it
    chmod +x /opt/venv/bin/$it
done
"""


def test_root_runs_nothing_that_the_user_can_write_to(
    docker_host: str, running: Callable[..., str]
) -> None:
    name = running(*AS_ANN)
    enter = "/usr/local/bin/enter"
    docker(docker_host, "exec", name, enter, "sh", "-c", PLANT)
    docker(docker_host, "exec", name, enter, "sh", "-c", "id")
    docker(docker_host, "exec", name, "/usr/local/bin/fixes")
    assert docker(docker_host, "exec", name, "ls", "/tmp").stdout.split() == ["as-1234"]


def test_a_mount_below_the_home_leaves_the_home_the_users(
    docker_host: str, image: str, project: Path
) -> None:
    mounts = ("-v", f"{project}:/home/ann/.cache/huggingface")
    write = ("sh", "-c", "touch ~/.cache/mine ~/.cache/huggingface/mine; stat -c %u ~ ~/.cache")
    code, out, err = started(docker_host, image, *AS_ANN, *mounts, command=write)
    assert (code, err) == (0, "")
    assert out.split() == ["1234", "1234"]
    assert (project / "mine").stat().st_uid == 1234


def test_root_leaves_a_link_in_place_of_the_home_alone(
    docker_host: str, image: str, project: Path
) -> None:
    (project / "ann").symlink_to("/etc")
    mount = ("-v", f"{project}:/home")
    _, out, _ = started(docker_host, image, *AS_ANN, *mount, command=("stat", "-c", "%u", "/etc"))
    assert out.strip() == "0"


def test_what_a_fresh_container_keeps_is_the_users(docker_host: str, image: str) -> None:
    volumes = ("-v", "kept-history:/var/lib/cresset/history", "-v", "kept-ide:/var/lib/cresset/ide")
    write = 'print -s something; fc -W; mkdir ~/.vscode-server/bin; ls -ld "$HISTFILE" | cut -c1-10'
    try:
        for _ in range(2):
            code, _, err = started(
                docker_host, image, *AS_ANN, *volumes, command=("zsh", "-ic", write + " || true")
            )
            assert code == 0, err
        read = 'cat "$HISTFILE"; ls ~/.vscode-server; stat -c %u "$HISTFILE" ~/.vscode-server/bin'
        out = started(docker_host, image, *AS_ANN, *volumes, command=("zsh", "-ic", read))[1]
        assert "something" in out
        assert out.split()[-3:] == ["bin", "1234", "1234"]
    finally:
        docker(docker_host, "volume", "rm", "kept-history", "kept-ide")


def test_pip_takes_an_unquoted_extra_and_installs_for_the_user(
    docker_host: str, image: str, tmp_path: Path
) -> None:
    """Known issue 2 of the original: zsh took the brackets for a pattern."""
    from tests.engine.conftest import make_wheel  # noqa: PLC0415 - shared by both kinds of tests

    make_wheel(tmp_path, "extras")
    open_to_all(tmp_path)
    install = (
        "pip install --no-index --find-links /wheels extras[option] && python -c 'import extras'"
    )
    mount = ("-v", f"{tmp_path}:/wheels")
    code, _, err = started(docker_host, image, *AS_ANN, *mount, command=("zsh", "-ic", install))
    assert code == 0, err
    # The original's way: a zsh without our settings.
    code, _, err = started(docker_host, image, *AS_ANN, *mount, command=("zsh", "-fc", install))
    assert code != 0
    assert "no matches found" in err


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_login_shell_has_the_environment_of_the_container(
    docker_host: str, running: Callable[..., str], shell: str
) -> None:
    """Known issue 1 of the original: whatever began with an empty environment had lost it."""
    name = running(*AS_ANN, *env(SOMETHING="here and 'there'"))
    ask = ("env", "-i", "HOME=/home/ann", shell, "-lc", 'echo "$SOMETHING"; command -v python')
    said = docker(docker_host, "exec", name, "enter", *ask)
    assert said.stdout.splitlines() == ["here and 'there'", "/opt/venv/bin/python"]
    assert said.stderr == ""
