"""Run inside a build container by its own Python: makes a compiled wheel stand on its own.

Usage: graft.py FOLDER

The libraries of the distribution that the wheel links are copied into it by auditwheel. CUDA's are
not: the wheel requires the packages that hold them, and looks for them where pip puts those.
Mounted for one exec, never part of an image; keeps to the standard library.
"""

import glob
import os
import subprocess
import sys
import tempfile

# The driver's library is the host's. torchvision alone links nvJPEG, which no package that torch
# requires holds, so that one is copied, as the official wheel has it.
ELSEWHERE = (
    "libc10*", "libcaffe2*", "libcublas*", "libcuda.so*", "libcudart*", "libcudnn*", "libcufft*",
    "libcufile*", "libcupti*", "libcurand*", "libcusolver*", "libcusparse*", "libnccl*",
    "libnvJitLink*", "libnvToolsExt*", "libnvrtc*", "libnvshmem*", "libshm*", "libtorch*",
)  # fmt: skip

# Below site-packages: CUDA 12's packages have a folder each, CUDA 13's share one.
CUDA = ("nvidia/cu13/lib", "cusparselt/lib", *(
    "nvidia/%s/lib" % name
    for name in (
        "cublas", "cuda_cupti", "cuda_nvrtc", "cuda_runtime", "cudnn", "cufft", "cufile", "curand",
        "cusolver", "cusparse", "cusparselt", "nccl", "nvjitlink", "nvshmem", "nvtx",
    )
))  # fmt: skip


def main():
    folder = sys.argv[1]
    (wheel,) = glob.glob(os.path.join(folder, "*.whl"))
    with tempfile.TemporaryDirectory(dir="/var/tmp") as work:
        excludes = ["--exclude=" + pattern for pattern in ELSEWHERE]
        tool("auditwheel", "repair", "--plat=auto", "--only-plat", "-w", work, *excludes, wheel)
        (repaired,) = glob.glob(os.path.join(work, "*.whl"))
        tool("wheel", "unpack", "--dest", os.path.join(work, "tree"), repaired)
        (tree,) = glob.glob(os.path.join(work, "tree", "*"))
        for path in libraries(tree):
            set_rpath(tree, path)
        os.unlink(wheel)
        tool("wheel", "pack", "--dest-dir", folder, tree)


def tool(name, *arguments):
    subprocess.run([os.path.join(os.path.dirname(sys.executable), name), *arguments], check=True)


def libraries(tree):
    """Return the shared libraries and programs in the wheel, those copied into it too.

    MAGMA and gloo are among those, and link CUDA's libraries themselves.
    """
    found = []
    for top, _, files in os.walk(tree):
        for file in files:
            path = os.path.join(top, file)
            with open(path, "rb") as content:
                if content.read(4) == b"\x7fELF":
                    found.append(path)
    return found


def set_rpath(tree, path):
    """Let the loader look beside the library, in torch's folder and in those of CUDA's packages."""
    up = os.path.relpath(tree, os.path.dirname(path))
    elsewhere = ["$ORIGIN/%s/%s" % (up, folder) for folder in (*CUDA, "torch/lib")]
    tool("patchelf", "--add-rpath", ":".join(["$ORIGIN", *elsewhere]), path)


if __name__ == "__main__":
    main()
