"""torchvision, compiled from source into a wheel against the torch it will run with."""

from __future__ import annotations

from importlib import resources

from dagger import Container, Directory, dag

from pipeline.spec import WheelSpec
from pipeline.stages.compiled import built_wheel
from pipeline.stages.inputs import Compiling

SOURCE = "/src/vision"
_NVCC = "/run/nvcc"


def vision_wheel(
    tools: Container, source: Directory, spec: WheelSpec, compiling: Compiling
) -> Directory:
    """Return a directory with torchvision's wheel and the record of its compile.

    `tools` is the toolchain with the torch in it that torchvision will run with.
    """
    nvcc = resources.files("pipeline.stages.inside").joinpath("nvcc.sh").read_text()
    ready = (
        tools.with_mounted_directory(SOURCE, source)
        .with_workdir(SOURCE)
        .with_mounted_file(_NVCC, dag.file("nvcc", nvcc, permissions=0o755))
    )
    for name, value in variables(spec).items():
        ready = ready.with_env_variable(name, value)
    return built_wheel(ready, compiling)


def variables(spec: WheelSpec) -> dict[str, str]:
    """Return the environment of the build, which torch's cpp_extension reads as well."""
    gcc, flags = spec.toolchain.gcc, dict(spec.flags)
    return flags | {
        # One word each, or setuptools takes the compiler for a flag: these are ccache itself.
        "CC": f"/usr/lib/ccache/gcc-{gcc}",
        "CXX": f"/usr/lib/ccache/g++-{gcc}",
        "PYTORCH_NVCC": _NVCC,
        # Else nvcc gets the CC of above, and ccache would run inside of ccache.
        "NVCC_FLAGS": f"-ccbin=g++-{gcc} {flags['NVCC_FLAGS']}",
        "FORCE_CUDA": "1",  # or there is no CUDA in it, for there is no GPU here
        "TORCH_CUDA_ARCH_LIST": spec.arch_list,
        "BUILD_VERSION": spec.version,
        "PYTORCH_VERSION": spec.torch.partition("+")[0],
    }
