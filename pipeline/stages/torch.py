"""PyTorch, compiled from source into a wheel."""

from __future__ import annotations

from dagger import Container, Directory

from pipeline.spec import WheelSpec
from pipeline.stages.compiled import built_wheel
from pipeline.stages.inputs import Compiling
from pipeline.stages.magma import HOME as MAGMA
from pipeline.stages.packages import apt_build_dep, apt_install, apt_unpack
from pipeline.stages.toolchain import CUDA, TOOLS

SOURCE = "/src/torch"

_FOUND_BY = {
    "CMAKE_C_COMPILER_LAUNCHER": "ccache",
    "CMAKE_CXX_COMPILER_LAUNCHER": "ccache",
    "CMAKE_CUDA_COMPILER_LAUNCHER": "ccache",
    "USE_CCACHE": "0",  # it would put the launchers before themselves
    "CUDNN_ROOT": CUDA,
    "CUDNN_INCLUDE_DIR": f"{CUDA}/include",
    "CUDNN_LIBRARY": f"{CUDA}/lib64/libcudnn.so",
    "NCCL_ROOT": CUDA,
    "NCCL_INCLUDE_DIR": f"{CUDA}/include",
    "NCCL_LIB_DIR": f"{CUDA}/lib64",
    "MAGMA_HOME": MAGMA,
    "CUSPARSELT_ROOT": CUDA,
    "CUSPARSELT_INCLUDE_PATH": f"{CUDA}/include",
    "CUSPARSELT_LIBRARY_PATH": f"{CUDA}/lib64/libcusparseLt.so",
}
_MKL_FOUND_BY = {
    "INTEL_MKL_DIR": TOOLS,
    "MKLROOT": TOOLS,
    "CMAKE_LIBRARY_PATH": f"{TOOLS}/lib",
    "CMAKE_INCLUDE_PATH": f"{TOOLS}/include",
}

# What Debian changes in PyTorch for packages of its own and a wheel must not have: its version,
# libraries with a version in their names, which a wheel would hold three times for want of
# symbolic links, and no search path beside themselves. Then what its debian/rules prepares:
# googletest beside the source, and the serialization schema by the flatbuffers it compiles with.
# Last, headers of other packages that torch's own include: without them no extension compiles
# (torchvision was the first that did not), nor what torch.compile writes for a CPU.
_FROM_DEBIAN = r"""
patch -R -p1 < debian/patches/2000-version.patch
sed -i '/^option(HAVE_SOVERSION/s/ON)/OFF)/' CMakeLists.txt
sed -i 's/^set(CMAKE_INSTALL_RPATH "")/set(CMAKE_INSTALL_RPATH "$ORIGIN")/' cmake/Dependencies.cmake
sed 's/a0$//' -i version.txt
[ -d third_party/googletest ] || cp -r /usr/src/googletest third_party/
mkdir -p torch/include
cp -r /usr/include/pybind11 /usr/include/*/sleef.h torch/include/
cd torch/csrc/jit/serialization
flatc --cpp --gen-mutable --scoped-enums mobile_bytecode.fbs
"""


# A checkout without its .git is of a commit that torch's own build cannot find out.
_COMMIT = r"""
commit=$(sed -n 's/.*"commit": "\([0-9a-f]*\)".*/\1/p' .cresset-source.json)
sed -i "s/^UNKNOWN = .*/UNKNOWN = \"$commit\"/" tools/generate_torch_version.py
"""


def torch_tools(tools: Container, spec: WheelSpec, magma: Directory | None = None) -> Container:
    """Return the toolchain with what this torch needs beside it: MAGMA, and its own libraries."""
    base = spec.toolchain.base
    if spec.source.kind == "apt":
        # The libraries that are taken out of the source package; of two, the twin for CUDA. Its
        # CUTLASS is what the matrix products of FP8 and of mixed types are made of.
        tools = apt_build_dep(tools, base, spec.source.location)
        more = ["libcutlass-dev", "libgloo-cuda-dev", "libtensorpipe-cuda-dev"]
        tools = apt_install(tools, base, more)
        # It depends on a package that fetches cuDNN from NVIDIA while it is installed.
        tools = apt_unpack(tools, base, "libcudnn-frontend-dev")
    if spec.magma and not spec.magma.is_compiled:
        tools = apt_install(tools, base, [spec.magma.source.location])
    if magma is not None:
        tools = tools.with_directory(MAGMA, magma)
    return tools


def torch_wheel(
    tools: Container, source: Directory, spec: WheelSpec, compiling: Compiling
) -> Directory:
    """Return a directory with torch's wheel and the record of its compile.

    `tools` is what `torch_tools` returns.
    """
    return built_wheel(torch_source(tools.with_mounted_directory(SOURCE, source), spec), compiling)


def torch_source(tools: Container, spec: WheelSpec) -> Container:
    """Return the container, which has the source, with one command left to do: to build."""
    ready = tools.with_workdir(SOURCE)
    if spec.source.kind == "apt":
        ready = ready.with_exec(["sh", "-ec", _FROM_DEBIAN])
    elif spec.source.kind == "git":
        ready = ready.with_exec(["sh", "-ec", _COMMIT])
    for name, value in variables(spec).items():
        ready = ready.with_env_variable(name, value)
    return ready


def variables(spec: WheelSpec) -> dict[str, str]:
    """Return the environment of the build: what is wanted, and where it is found."""
    wanted = dict(spec.flags) | {
        "TORCH_CUDA_ARCH_LIST": spec.arch_list,
        "PYTORCH_BUILD_VERSION": spec.version,
        "PYTORCH_BUILD_NUMBER": "1",
        "PYTORCH_EXTRA_INSTALL_REQUIREMENTS": " | ".join(spec.requires),
    }
    return _FOUND_BY | (_MKL_FOUND_BY if spec.toolchain.blas == "mkl" else {}) | wanted
