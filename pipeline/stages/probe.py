"""Run inside a built image by its own Python: prints what is really in it, as JSON.

Mounted for one exec and never part of the image. It states facts and judges nothing, and it
keeps to the standard library, whatever the version of Python.
"""

import glob
import json
import os
import shutil
import stat
import sys

CACHES = ("~/.cache/pip", "~/.cache/uv")
COMPILERS = ("cc", "gcc", "g++", "c++", "clang", "nvcc", "cicc", "ptxas")


def main():
    facts = {
        "python": "%d.%d" % sys.version_info[:2],
        "prefix": sys.prefix,
        "compilers": [path for name in COMPILERS for path in [shutil.which(name)] if path],
        "apt_lists": left_over("/var/lib/apt/lists/*Packages*"),
        "apt_archives": left_over("/var/cache/apt/archives/*.deb"),
        "caches": [path for path in map(os.path.expanduser, CACHES) if os.path.exists(path)],
        "homes": [home(path) for path in glob.glob("/home/*")],
        "build_leftovers": left_over("/mnt/*") + left_over("/tmp/*"),
        "cuda_libraries": cuda_libraries(),
        "preload": os.environ.get("LD_PRELOAD", ""),
        "preload_errors": preload_errors(),
        "timezone_known": os.path.exists("/etc/localtime"),
        "timezone": os.readlink("/etc/localtime").partition("/zoneinfo/")[2],
        "torch": None,
    }
    if "--torch" in sys.argv:
        facts["torch"] = torch_facts()
    print(json.dumps(facts))


def left_over(pattern):
    return sorted(glob.glob(pattern))


def home(path):
    status = os.stat(path)
    return {
        "path": path,
        "uid": status.st_uid,
        "world_writable": bool(status.st_mode & stat.S_IWOTH),
    }


def cuda_libraries():
    """Map the file name of each CUDA library to every folder that has it.

    Triton's own copies of CUPTI do not count: it asks for two generations of it side by side.
    """
    found = {}
    for top in ("/usr", "/opt"):
        for folder, _, files in os.walk(top):
            if "/triton/backends/" in folder:
                continue
            for file in files:
                if file.startswith(("libcu", "libnv", "libnccl")) and ".so" in file:
                    path = os.path.join(folder, file)
                    if not os.path.islink(path):
                        found.setdefault(file, []).append(folder)
    return found


def preload_errors():
    import subprocess

    # The loader only warns of a preload that it cannot find, on every program it starts.
    shown = subprocess.run([sys.executable, "-c", ""], stderr=subprocess.PIPE, check=False).stderr
    return [line for line in shown.decode().splitlines() if "LD_PRELOAD" in line]


def torch_facts():
    try:
        import torch
        import torchvision
    except Exception as error:  # whatever a broken image raises is the fact
        return {"import_error": "%s: %s" % (type(error).__name__, error)}
    return {
        "version": torch.__version__,
        "vision": torchvision.__version__,
        "cuda": torch.version.cuda,
        # get_arch_list() answers with nothing where there is no GPU; the flags are compiled in.
        "arches": torch._C._cuda_getArchFlags().split() if torch.version.cuda else [],
        "mkl": torch.backends.mkl.is_available(),
        "config": torch.__config__.show(),
        "tensor_op": check(lambda: tensor_op(torch)),
        "vision_op": check(lambda: vision_op(torch, torchvision)),
    }


def check(operation):
    try:
        return operation()
    except Exception as error:  # as above
        return "%s: %s" % (type(error).__name__, error)


def tensor_op(torch):
    left = torch.arange(12, dtype=torch.float64).reshape(3, 4)
    product = (left @ left.T).sum().item()
    return "ok" if product == 1134.0 else "3x4 matrix product sums to %r, not 1134" % product


def vision_op(torch, torchvision):
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
    return "ok" if kept == [0, 2] else "nms kept %r, not [0, 2]" % kept


if __name__ == "__main__":
    main()
