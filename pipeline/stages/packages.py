"""Installing packages: apt's in one exec, Python's by uv, which is mounted and never shipped."""

from __future__ import annotations

from collections.abc import Sequence

from dagger import Container, File, dag

from pipeline import caches
from pipeline.reqs import PIP_TRAIN
from pipeline.spec import BaseSpec, ImageSpec, ToolchainSpec
from pipeline.stages.inputs import Inputs

VENV = "/opt/venv"
OPENMP = "/usr/local/lib/libiomp5.so"
"""Intel's, for every process, so where no user can put another in its place."""
INSTALLER = "/opt/installer"
_PYTHON_DIR = "/opt/python"

# Mount points, gone when the exec ends.
PINS = "/mnt/pins.txt"
_REQS = "/mnt/reqs"
_UV = "/mnt/uv"
_CONSTRAINTS = "/mnt/constraints.txt"

# Update and install are one exec: a cached update would leave install with the lists of the day
# it ran, or with none where the cache volume has been pruned since. Without the error mode, apt-get
# update succeeds though a mirror fails, and install goes on with whatever lists the cache volume
# holds. $APT_OPTIONS is set where packages come from a bundle (base.py). The logs hold nothing but
# the date of the build, and a host key for ssh that everybody has is no key.
_APT_INSTALL = """
apt-get update -q -o APT::Update::Error-Mode=any $APT_OPTIONS
apt-get install -q -y --no-install-recommends "$@"
rm -rf /var/log/apt/* /var/log/dpkg.log /var/log/alternatives.log /var/cache/ldconfig/aux-cache
rm -f /etc/ssh/ssh_host_*
"""


_DEB_SRC = r"""
find /etc/apt -name '*.sources' | xargs -r sed -i 's/^Types: deb$/Types: deb deb-src/'
find /etc/apt -name '*.list' | xargs -r sed -i -E 's/^deb (.*)$/&\ndeb-src \1/'
"""

# The group is root's, which a user has whom `enter` or an orchestrator makes up.
_OPEN_TO_THE_GROUP = f"""
find {VENV} -type d ! -perm -g+w -exec chmod g+w {{}} +
[ ! -e {VENV}/lib/libiomp5.so ] || install -m 644 {VENV}/lib/libiomp5.so {OPENMP}
"""

_APT_UNPACK = """
apt-get update -q -o APT::Update::Error-Mode=any $APT_OPTIONS
cd "$(mktemp -d)"
apt-get download "$1"
dpkg-deb -x ./*.deb /
rm -r "$PWD"
"""

_APT_BUILD_DEP = """
apt-get update -q -o APT::Update::Error-Mode=any $APT_OPTIONS
apt-get build-dep -q -y --no-install-recommends "$1"
rm -rf /var/log/apt/* /var/log/dpkg.log /var/log/alternatives.log /var/cache/ldconfig/aux-cache
"""


def apt_install(container: Container, base: BaseSpec, packages: Sequence[str]) -> Container:
    """Return the container with apt packages installed, in one layer without lists or archives."""
    if not packages:
        return container
    return (
        caches.with_apt(container, base.distribution, base.codename)
        .with_env_variable("DEBIAN_FRONTEND", "noninteractive")
        .with_exec(["sh", "-ec", _APT_INSTALL, "apt-install", *packages])
        .without_env_variable("DEBIAN_FRONTEND")
        .with_(caches.without_apt)
    )


def with_deb_src(container: Container) -> Container:
    """Return the container with the source packages of each of its apt sources."""
    return container.with_exec(["sh", "-ec", _DEB_SRC])


def apt_unpack(container: Container, base: BaseSpec, package: str) -> Container:
    """Return the container with a package's files in place, but none of what it depends on."""
    return (
        caches.with_apt(container, base.distribution, base.codename)
        .with_exec(["sh", "-ec", _APT_UNPACK, "apt-unpack", package])
        .with_(caches.without_apt)
    )


def apt_build_dep(container: Container, base: BaseSpec, package: str) -> Container:
    """Return the container with what the distribution builds a source package with."""
    return (
        caches.with_apt(with_deb_src(container), base.distribution, base.codename)
        .with_env_variable("DEBIAN_FRONTEND", "noninteractive")
        .with_exec(["sh", "-ec", _APT_BUILD_DEP, "apt-build-dep", package])
        .without_env_variable("DEBIAN_FRONTEND")
        .with_(caches.without_apt)
    )


def installer(base: Container, spec: ImageSpec | ToolchainSpec, inputs: Inputs) -> Container:
    """Return a throw-away container with the pinned pip and uv in `INSTALLER`."""
    return (
        apt_install(base, spec.base, ["ca-certificates", "python3-venv"])
        .with_(inputs.network.for_packages)
        .with_mounted_file(PINS, inputs.pip_build)
        .with_exec(["python3", "-m", "venv", INSTALLER])
        .with_exec(
            [f"{INSTALLER}/bin/pip", "install", "--quiet", "--no-cache-dir", "--require-hashes",
             "--requirement", PINS]
        )
    )  # fmt: skip


def uv_binary(installer: Container) -> File:
    """Return the uv of the installer, which runs alone in any container."""
    return installer.file(f"{INSTALLER}/bin/uv")


def uv(container: Container, binary: File, inputs: Inputs, args: Sequence[str]) -> Container:
    """Return the container after one run of uv, of which nothing but its work is left in it."""
    return (
        container.with_(inputs.network.for_packages)
        .with_mounted_file(_UV, binary)
        .with_mounted_cache(caches.UV, caches.uv())
        # uv trusts only the certificates it brings along until it is told otherwise, which a
        # mirror behind a private CA needs.
        .with_exec([_UV, "--system-certs", "--cache-dir", caches.UV, "--color", "never", *args])
        .without_mount(_UV)
        .without_mount(caches.UV)
        .with_(inputs.network.out_of)
    )


def python_install(
    container: Container, spec: ImageSpec | ToolchainSpec, binary: File, inputs: Inputs
) -> Container:
    """Return the container with the image's Python: apt's, or uv's where apt has another."""
    if spec.python_from_distribution:
        return apt_install(container, spec.base, ["python3"])
    args = ["python", "install", "--install-dir", _PYTHON_DIR, "--no-bin", spec.python]
    return uv(container, binary, inputs, args)


def python(spec: ImageSpec | ToolchainSpec) -> str:
    """Return the path of the image's interpreter."""
    if spec.python_from_distribution:
        return f"/usr/bin/python{spec.python}"
    # uv links each minor version's newest patch release under this name.
    return f"{_PYTHON_DIR}/cpython-{spec.python}-linux-x86_64-gnu/bin/python{spec.python}"


def pip_install(container: Container, spec: ImageSpec, binary: File, inputs: Inputs) -> Container:
    """Return the container with reqs/pip-train in its virtual environment, in one layer."""
    pins = [*spec.torch.pins, *spec.torch.constraints] if spec.torch else []
    args = [
        "pip", "install", "--python", f"{VENV}/bin/python", "--compile-bytecode",
        "--link-mode", "copy", "--constraint", _CONSTRAINTS,
        "--requirement", f"{_REQS}/{PIP_TRAIN}",
    ]  # fmt: skip
    return (
        container.with_mounted_directory(_REQS, inputs.pip_train)
        .with_mounted_file(_CONSTRAINTS, dag.file("constraints.txt", "\n".join(pins)))
        # uv takes a relative path in any of these files from the folder that it runs in.
        .with_workdir(_REQS)
        .with_(lambda ready: uv(ready, binary, inputs, args))
        .without_workdir()
        .without_mount(_REQS)
        .without_mount(_CONSTRAINTS)
        # Whoever the user is, pip may install. The folders are enough, and none of their files is
        # copied into this layer: `chown -R` has doubled many an image.
        .with_exec(["sh", "-ec", _OPEN_TO_THE_GROUP])
    )
