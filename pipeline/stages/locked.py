"""A build that is held to a lock, and how it is found out what is to be locked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from dagger import Container, Directory, dag

from pipeline import caches
from pipeline.reqs import PIP_TRAIN
from pipeline.spec import ImageSpec, Locked, Package
from pipeline.stages.base import Bottom, system
from pipeline.stages.inputs import Inputs
from pipeline.stages.packages import apt_install, installer, python, uv_binary
from pipeline.stages.shell import prompt, shell

MOMENT = "CRESSET_MOMENT"
"""A variable that nothing reads: with another value of it, the engine runs all above it again."""

_PREFERENCES = "/etc/apt/preferences.d/cresset-lock"

STRATEGY = "unsafe-best-match"
"""Of uv, where torch's index is one among others, and a hash decides what is taken from any."""

_FOLDER = "/lock"
_ASKED = "/mnt/asked"
_COMPILED = "/mnt/compiled"
_REQS = "/mnt/reqs"  # as LOCAL has it
_UV = "/mnt/uv"

# The second resolution keeps what the first has chosen, and leaves it only where it must: uv reads
# the file that it writes to.
_RESOLVE = f"""
resolve() {{
  {_UV} --system-certs --cache-dir {caches.UV} --color never pip compile --quiet --refresh \\
    --format pylock.toml --python "$python" --constraint {_ASKED}/constraints.txt $strategy \\
    --output-file {_FOLDER}/pylock.toml "$@"
}}
python=$1
strategy=${{2:+--index-strategy $2}}
mkdir {_FOLDER}
: > {_FOLDER}/torch.toml
cp {_ASKED}/torch.txt /run/torch.txt
for wheel in {_COMPILED}*/*.whl; do
  [ ! -e "$wheel" ] || echo "$wheel" >> /run/torch.txt
done
if [ -s /run/torch.txt ]; then
  resolve --only-binary :all: /run/torch.txt
  cp {_FOLDER}/pylock.toml {_FOLDER}/torch.toml
fi
resolve /run/torch.txt {_ASKED}/more.txt {_REQS}/{PIP_TRAIN}
getconf GNU_LIBC_VERSION > {_FOLDER}/glibc
"""

_OFFERED = f"""
strategy=${{2:+--index-strategy $2}}
{_UV} --system-certs --cache-dir {caches.UV} --color never pip compile --quiet --refresh \\
  --no-deps --format pylock.toml --python "$1" $strategy \\
  --output-file {_FOLDER}/pylock.toml {_ASKED}/all.txt
getconf GNU_LIBC_VERSION > {_FOLDER}/glibc
"""

LOCAL = "../mnt/reqs"
"""Where files of reqs/ lie, as seen from what `resolved` returns."""

_CANDIDATES = """
apt-get update -q -o APT::Update::Error-Mode=any $APT_OPTIONS >&2
LC_ALL=C apt-cache policy "$@"
"""

_VERSIONS = ["dpkg-query", "--show", "--showformat", "${Package} ${Version}\\n"]


def held(base: Container, lock: Locked | None) -> Container:
    """Return the base, on which apt takes each package in its locked version while it is served.

    A version that the mirror does not have any more is no preference to apt, which then takes
    another: `verify` says so.
    """
    if lock is None or not lock.apt:
        return base
    # 1000 and more downgrade, too (apt_preferences(5)).
    pins = (f"Package: {it}\nPin: version {version}\nPin-Priority: 1001\n"
            for it, version in lock.apt)  # fmt: skip
    file = dag.file("cresset-lock", "\n".join(pins))
    return base.with_mounted_file(_PREFERENCES, file)


def candidates(base: Container, spec: ImageSpec, lock: Locked, *, moment: str) -> Container:
    """Return the base, `held`, after it printed what apt now takes for each locked package."""
    return caches.with_apt(
        base.with_env_variable(MOMENT, moment), spec.base.distribution, spec.base.codename
    ).with_exec(["sh", "-ec", _CANDIDATES, "candidates", *(name for name, _ in lock.apt)])


def read_candidates(output: str) -> dict[str, str]:
    """Return what `candidates` printed, by package; without those that apt does not have."""
    found = re.findall(r"^(\S+):\n  Installed: .*\n  Candidate: (\S+)$", output, re.MULTILINE)
    return {name: version for name, version in found if version != "(none)"}


def let_go(image: Container, lock: Locked | None) -> Container:
    """Return the image without what `held` has put there."""
    return image.without_mount(_PREFERENCES) if lock is not None and lock.apt else image


def requirements(packages: Sequence[Package]) -> str:
    """Return packages as lines of a requirements file, each with its hash."""
    lines = (
        f"{it.file if it.file.startswith('./') else f'{it.name}=={it.version}'}"
        f" --hash=sha256:{it.sha256}\n"
        for it in packages
    )
    return "".join(lines)


def pip_train(inputs: Inputs, lock: Locked | None) -> Inputs:
    """Return the inputs with the locked files, and nothing they depend on, for reqs/pip-train."""
    if lock is None:
        return inputs
    # uv reads this file where it runs.
    held = inputs.pip_train.with_new_file(PIP_TRAIN, requirements(lock.pip)).with_new_file(
        "uv.toml",
        f'[pip]\nno-deps = true\nrequire-hashes = true\nindex-strategy = "{STRATEGY}"\n',
    )
    return replace(inputs, pip_train=held)


def resolved(
    below: Bottom,
    spec: ImageSpec,
    inputs: Inputs,
    compiled: Sequence[Directory],
    *,
    moment: str,
) -> Directory:
    """Return a directory with what the indexes now have for the image, as two ``pylock.toml``.

    ``torch.toml`` has what torch brings along, empty without a torch; ``pylock.toml`` that and what
    reqs/pip-train adds. At another `moment` they are asked again. `compiled` are wheels that no
    index has.
    """
    torch, own = spec.torch, {wheel.package for wheel in spec.compiled}
    pins = [pin for pin in torch.pins if pin.partition("==")[0] not in own] if torch else []
    asked = (
        dag.directory()
        .with_new_file("torch.txt", "".join(f"{pin}\n" for pin in pins))
        .with_new_file("constraints.txt", "\n".join(constraints(spec)))
        # Beside torch it comes pinned by its hash in reqs/, as Intel's OpenMP does.
        .with_new_file("more.txt", "" if torch else "pip\n")
    )
    ready = (
        _asking(below, inputs, asked, moment)
        .with_mounted_directory(_REQS, inputs.pip_train)
        # Where a relative path in these files begins.
        .with_workdir(_REQS)
    )
    for number, directory in enumerate(compiled):
        ready = ready.with_mounted_directory(f"{_COMPILED}{number}", directory)
    return _asked(ready, spec, inputs, _RESOLVE)


def offered(
    below: Bottom, spec: ImageSpec, inputs: Inputs, lock: Locked, *, moment: str
) -> Directory:  # fmt: skip
    """Return a directory with what the indexes now have of the locked versions, as `resolved`."""
    pins = "".join(
        f"{it.name}=={it.version}\n"
        for it in (*lock.torch, *lock.pip)
        if not it.file.startswith("./")
    )
    asked = dag.directory().with_new_file("all.txt", pins)
    ready = _asking(below, inputs, asked, moment).with_exec(["mkdir", _FOLDER])
    return _asked(ready, spec, inputs, _OFFERED)


def _asking(below: Bottom, inputs: Inputs, asked: Directory, moment: str) -> Container:
    return (
        below.system.with_(inputs.network.for_packages)
        .with_env_variable(MOMENT, moment)
        .with_mounted_file(_UV, uv_binary(below.installer))
        .with_mounted_cache(caches.UV, caches.uv())
        .with_mounted_directory(_ASKED, asked)
    )


def _asked(ready: Container, spec: ImageSpec, inputs: Inputs, script: str) -> Directory:
    strategy = STRATEGY if inputs.network.torch_beside else ""
    return ready.with_exec(["sh", "-ec", script, "asked", python(spec), strategy]).directory(
        _FOLDER
    )


def bottom_anew(base: Container, spec: ImageSpec, inputs: Inputs, moment: str) -> Bottom:
    """Return what an image has below torch, of the packages that apt's mirror has at a moment."""
    tools = installer(base, spec, inputs)
    files = prompt(tools, inputs)
    anew = shell(base.with_env_variable(MOMENT, moment), spec, files)
    return Bottom(tools, files, anew, system(anew, spec, uv_binary(tools), inputs))


def constraints(spec: ImageSpec) -> list[str]:
    """Return what must hold of every package of the image, as pip constraints."""
    return [*spec.torch.pins, *spec.torch.constraints] if spec.torch else []


def with_apt(below: Bottom, spec: ImageSpec) -> Container:
    """Return the container with every package of the distribution that the image has."""
    return apt_install(below.system, spec.base, spec.apt)


def versions(container: Container) -> Container:
    """Return the container after it printed each package of the distribution and its version."""
    return container.with_exec(_VERSIONS)


def read_versions(output: str) -> dict[str, str]:
    """Return what `versions` printed, by package."""
    return dict(line.split(" ", 1) for line in output.splitlines() if line)
