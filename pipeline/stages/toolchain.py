"""What compiles, in a throw-away container: CUDA, the host compiler, the build tools of the era.

Whichever way CUDA comes, it is in ``/usr/local/cuda`` afterwards, cuDNN and NCCL with it, so that
every stage above is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from dagger import Container, Directory, dag

from pipeline.spec import ToolchainSpec
from pipeline.stages.inputs import Inputs
from pipeline.stages.packages import (
    PINS,
    apt_install,
    installer,
    python,
    python_install,
    uv_binary,
)

CUDA = "/usr/local/cuda"
TOOLS = "/opt/build"

_LINK_CUDA = "/run/link_cuda.sh"
_WHEELS = "/mnt/wheels"

# Debian keeps CUDA and MAGMA out of its main component, and the base has no other. Ubuntu's images
# come with all of theirs.
_COMPONENTS = r"""
. /etc/os-release
[ "$ID" = debian ] || exit 0
find /etc/apt -name '*.list' | xargs -r sed -i -E 's/^(deb .*) main$/\1 main contrib non-free/'
find /etc/apt -name '*.sources' |
  xargs -r sed -i -E 's/^(Components:) main$/\1 main contrib non-free/'
"""

_PACKAGES = (
    "binutils", "ca-certificates", "ccache", "file", "git", "libjpeg-dev", "libnuma-dev",
    "libpng-dev", "libwebp-dev", "make", "mold", "python3-dev", "python3-venv",
)  # fmt: skip


def toolchain(base: Container, spec: ToolchainSpec, inputs: Inputs) -> Container:
    """Return a container that compiles for CUDA, with nothing in it of what is to be compiled."""
    packages = [*_PACKAGES, f"g++-{spec.gcc}"]
    if spec.cuda_source == "apt":
        packages += ["libcupti-dev", "nvidia-cuda-toolkit"]
    if spec.blas == "openblas":
        packages += ["liblapacke-dev", "libopenblas-dev"]
    installed = apt_install(with_components(base), spec.base, packages)
    if not spec.python_from_distribution:
        binary = uv_binary(installer(base, spec, inputs))
        installed = python_install(installed, spec, binary, inputs)
    return _tools(_environment(installed, spec), spec, inputs)


def with_wheels(tools: Container, wheels: Directory, pins: Sequence[str]) -> Container:
    """Return the toolchain with packages of a directory of wheels among its own."""
    install = [
        f"{TOOLS}/bin/pip", "install", "--no-cache-dir", "--no-index", "--find-links", _WHEELS,
        "--progress-bar", "off", *pins,
    ]  # fmt: skip
    return tools.with_mounted_directory(_WHEELS, wheels).with_exec(install).without_mount(_WHEELS)


def with_components(base: Container) -> Container:
    """Return the base with all components of its distribution in its apt sources."""
    return base.with_exec(["sh", "-ec", _COMPONENTS])


def _tools(container: Container, spec: ToolchainSpec, inputs: Inputs) -> Container:
    """Return the container with the pinned tools and libraries, and CUDA in its place."""
    pip = [f"{TOOLS}/bin/pip", "install", "--no-cache-dir", "--no-deps", "--progress-bar", "off"]
    ready = (
        container.with_exec([python(spec), "-m", "venv", TOOLS])
        .with_(inputs.network.for_packages)
        .with_mounted_file(PINS, inputs.build_tools(spec.tools.name))
        .with_exec([*pip, "--require-hashes", "--requirement", PINS])
    )
    if spec.blas == "mkl":
        ready = ready.with_mounted_file(PINS, inputs.build_mkl).with_exec(
            [*pip, "--require-hashes", "--requirement", PINS]
        )
    if spec.libraries:
        ready = ready.with_exec([*pip, *spec.libraries])
    script = resources.files("pipeline.stages.inside").joinpath("link_cuda.sh").read_text()
    return (
        ready.without_mount(PINS)
        .with_(inputs.network.out_of)
        .with_mounted_file(_LINK_CUDA, dag.file("link_cuda.sh", script))
        .with_exec(["bash", _LINK_CUDA, spec.cuda_source, spec.cuda])
        .without_mount(_LINK_CUDA)
    )


def _environment(container: Container, spec: ToolchainSpec) -> Container:
    """Return the container with what CMake, setuptools and torch look for."""
    compiler = {"CC": f"gcc-{spec.gcc}", "CXX": f"g++-{spec.gcc}", "CUDAHOSTCXX": f"g++-{spec.gcc}"}
    variables = compiler | {
        "CUDA_HOME": CUDA,
        "CUDACXX": f"{CUDA}/bin/nvcc",
        "LC_ALL": "C.UTF-8",
        # Links libtorch_cuda in a tenth of the time of GNU's (pytorch pull request 146750); the
        # way of naming it that every GCC knows.
        "LDFLAGS": "-B/usr/libexec/mold",
        "PATH": f"{CUDA}/bin:{TOOLS}/bin:"
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }
    if spec.cuda_source == "apt":
        # CUDA 12.4 declares sinpi and its like otherwise than glibc 2.41, which only the system's
        # headers may; torch's cpp_extension names the folder as an ordinary one.
        variables["NVCC_PREPEND_FLAGS"] = f"-isystem {CUDA}/include"
    for name, value in variables.items():
        container = container.with_env_variable(name, value)
    return container
