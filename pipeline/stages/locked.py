"""A build that is held to a lock, and how it is found out what is to be locked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dagger import Container, Directory, dag

from pipeline import caches
from pipeline.reqs import PIP_TRAIN
from pipeline.spec import ImageSpec, Locked, Package
from pipeline.stages.inputs import Inputs
from pipeline.stages.packages import apt_install, python, uv_binary

_PREFERENCES = "/etc/apt/preferences.d/cresset-lock"

STRATEGY = "unsafe-best-match"
"""Of uv, where torch's index is one among others, and a hash decides what is taken from any."""

_FOLDER = "/lock"
_ASKED = "/mnt/asked"
_COMPILED = "/mnt/compiled"
_REQS = "/mnt/reqs"
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
    system: Container,
    installer: Container,
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
        system.with_(inputs.network.for_packages)
        .with_env_variable("CRESSET_MOMENT", moment)
        .with_mounted_file(_UV, uv_binary(installer))
        .with_mounted_cache(caches.UV, caches.uv())
        .with_mounted_directory(_ASKED, asked)
        .with_mounted_directory(_REQS, inputs.pip_train)
        # Where a relative path in these files begins.
        .with_workdir(_REQS)
    )
    for number, directory in enumerate(compiled):
        ready = ready.with_mounted_directory(f"{_COMPILED}{number}", directory)
    strategy = STRATEGY if inputs.network.torch_beside else ""
    return ready.with_exec(["sh", "-ec", _RESOLVE, "resolve", python(spec), strategy]).directory(
        _FOLDER
    )


def constraints(spec: ImageSpec) -> list[str]:
    """Return what must hold of every package of the image, as pip constraints."""
    return [*spec.torch.pins, *spec.torch.constraints] if spec.torch else []


def with_apt(system: Container, spec: ImageSpec) -> Container:
    """Return the container with every package of the distribution that the image has."""
    return apt_install(system, spec.base, spec.apt)


def versions(container: Container) -> Container:
    """Return the container after it printed each package of the distribution and its version."""
    return container.with_exec(_VERSIONS)


def read_versions(output: str) -> dict[str, str]:
    """Return what `versions` printed, by package."""
    return dict(line.split(" ", 1) for line in output.splitlines() if line)
