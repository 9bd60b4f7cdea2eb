"""MAGMA, compiled for the wanted architectures and for nothing else."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from dagger import Container, Directory

from pipeline.spec import Arch, MagmaSpec
from pipeline.stages.compiled import OUT, compiled
from pipeline.stages.inputs import Compiling

HOME = "/usr/local/magma"
"""Where PyTorch's FindMAGMA looks first after MAGMA_HOME."""

_SOURCE = "/src/magma"

# A repository holds templates of which `make generate` makes the four precisions; a release tarball
# holds what was generated. The date that each generated file says would make it another one on each
# machine, of which the compiler cache has nothing.
_GENERATE = """
[ -e include/magma_s.h ] && exit 0
sed -i 's/datetime.now().ctime()/"at no time"/' tools/codegen.py
printf 'BACKEND = cuda\\nFORT = false\\nGPU_TARGET = %s\\n' "$1" > make.inc
make generate
"""


# torch hides in its own code what MAGMA lacks, so MAGMA's is looked at while it is alone.
_INSTALL = r"""
out=$1; shift
wanted=$(printf '%s\n' "$@" | sort -u | xargs)
found=$({
  cuobjdump --list-elf build/lib/libmagma.a
  cuobjdump --list-ptx build/lib/libmagma.a || true
} | sed -nE 's/^ELF file.*[.](sm_[0-9]+[af]?)[.]cubin$/\1/p
             s/^PTX file.*[.]sm_([0-9]+[af]?)[.]ptx$/compute_\1/p' | sort -u | xargs)
echo "MAGMA: GPU code by cuobjdump: $found"
[ "$found" = "$wanted" ] || { echo "MAGMA was to have code for $wanted" >&2; exit 1; }
mkdir -p "$out/lib" "$out/include"
cp build/lib/libmagma.a "$out/lib/"
cp include/*.h build/include/*.h "$out/include/"
"""


def magma(
    tools: Container,
    source: Directory,
    spec: MagmaSpec,
    arches: Sequence[Arch],
    nvcc_flags: str,
    compiling: Compiling,
) -> Directory:
    """Return a directory with MAGMA's headers, its one library that PyTorch links, the record.

    The library is static, as in PyTorch's own builds: what torch uses of it ends in torch, and the
    LAPACK it calls is the one that torch brings along.
    """
    configure = [
        "cmake", "-G", "Ninja", "-S", ".", "-B", "build", "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_INSTALL_PREFIX={OUT}", "-DMAGMA_ENABLE_CUDA=ON", "-DUSE_FORTRAN=OFF",
        "-DBUILD_SHARED_LIBS=OFF", "-DLAPACK_LIBRARIES=-llapack",
        "-DCMAKE_POSITION_INDEPENDENT_CODE=ON", "-DCMAKE_POLICY_VERSION_MINIMUM=3.5",
        f"-DCMAKE_CUDA_FLAGS={nvcc_flags}",
        f"-DCMAKE_CUDA_ARCHITECTURES={cmake_architectures(arches)}",
        *(f"-DCMAKE_{language}_COMPILER_LAUNCHER=ccache" for language in ("C", "CXX", "CUDA")),
    ]  # fmt: skip
    ready = (
        tools.with_mounted_directory(_SOURCE, source)
        .with_workdir(_SOURCE)
        .with_exec(["sh", "-ec", _GENERATE, "generate", arches[0].sm])
    )
    for patch in spec.patches:
        ready = ready.with_exec(["sed", "-i", *shlex.split(patch)])
    ready = ready.with_exec(configure)
    built = compiled(ready, ["cmake", "--build", "build", "--target", "magma"], compiling)
    return built.with_exec(
        ["sh", "-ec", _INSTALL, "install", OUT, *(it for arch in arches for it in arch.code)]
    ).directory(OUT)


def cmake_architectures(arches: Sequence[Arch]) -> str:
    """Return the architectures as CMake writes them: ``86-real``, and ``86`` with PTX."""
    return ";".join(
        f"{arch.major}{arch.minor}{arch.suffix}{'' if arch.ptx else '-real'}" for arch in arches
    )
