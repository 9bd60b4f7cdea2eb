"""Run inside a built image by its own Python: prints what is really in it, as JSON.

Mounted for one exec and never part of the image. It states facts and judges nothing, and it
keeps to the standard library, whatever the version of Python.
"""

import base64
import contextlib
import glob
import importlib.util
import json
import os
import shutil
import stat
import sys

CACHES = ("~/.cache/pip", "~/.cache/uv")
# One pixel.
WEBP = b"UklGRiQAAABXRUJQVlA4IBgAAAAwAQCdASoBAAEAAwA0JaQAA3AA/vuUAAA="
COMPILERS = ("cc", "gcc", "g++", "c++", "clang", "nvcc", "cicc", "ptxas")


def main():
    facts = {
        "python": "%d.%d" % sys.version_info[:2],
        "codename": codename(),
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
        "timezone": timezone(),
        "torch": None,
        "own_torch": None,
    }
    if "--torch" in sys.argv:
        facts["torch"] = torch_facts()
    if "--own-torch" in sys.argv:
        facts["own_torch"] = own_torch()
    print(json.dumps(facts))


def timezone():
    link = "/etc/localtime"
    return os.readlink(link).partition("/zoneinfo/")[2] if os.path.islink(link) else ""


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


def codename():
    """Return the name of the distribution's release, empty where it tells none."""
    with open("/etc/os-release") as release:
        for line in release:
            name, _, value = line.strip().partition("=")
            if name == "VERSION_CODENAME":
                return value.strip("\"'")
    return ""


def preload_errors():
    import subprocess

    # The loader only warns of a preload that it cannot find, on every program it starts.
    shown = subprocess.run([sys.executable, "-c", ""], stderr=subprocess.PIPE, check=False).stderr
    return [line for line in shown.decode().splitlines() if "LD_PRELOAD" in line]


def own_torch():
    """Return which torch the base has and where it lies, None if it has none."""
    if importlib.util.find_spec("torch") is None:
        return None
    try:
        import torch
    except Exception as error:  # as below
        return {"import_error": "%s: %s" % (type(error).__name__, error)}
    return {"version": torch.__version__, "file": torch.__file__}


def torch_facts():
    torchvision = None
    try:
        import torch

        if "--no-vision" not in sys.argv:
            import torchvision
    except Exception as error:  # whatever a broken image raises is the fact
        return {"import_error": "%s: %s" % (type(error).__name__, error)}
    folder = os.path.dirname(os.path.dirname(torch.__file__))
    facts = {
        "version": torch.__version__,
        "git": torch.version.git_version,
        "cuda": torch.version.cuda,
        # get_arch_list() answers with nothing where there is no GPU; the flags are compiled in.
        "arches": torch._C._cuda_getArchFlags().split() if torch.version.cuda else [],
        "mkl": torch.backends.mkl.is_available(),
        "magma": torch.cuda.has_magma,
        "lapack": torch._C.has_lapack,
        "nccl": distributed(torch, "nccl"),
        "gloo": distributed(torch, "gloo"),
        "cudnn": torch.backends.cudnn.version() if torch.version.cuda else None,
        "config": torch.__config__.show(),
        "features": features(torch),
        "tensor_op": check(lambda: tensor_op(torch)),
        "gpu": check(lambda: gpu(torch, torchvision)) if torch.cuda.is_available() else "none",
        "code": {},
        "missing": {},
    }
    if torchvision:
        facts["vision"] = torchvision.__version__
        facts["nvjpeg"] = links(torchvision, "image", "libnvjpeg")
        facts["vision_op"] = check(lambda: vision_op(torch, torchvision))
        facts["image_codecs"] = check(lambda: image_codecs(torch, torchvision))
    tools = [it.partition("=")[2] for it in sys.argv if it.startswith("--code=")]
    if tools:
        binaries = own_binaries(folder)
        facts["code"] = device_code(tools[0], folder, binaries)
        facts["missing"] = missing_libraries(binaries)
    return facts


def features(torch):
    """Map flags of torch's build to whether this torch says it has what they switch on.

    Left out is what this version of torch has no word for.
    """
    import importlib

    def module(name):
        return importlib.import_module("torch." + name)

    told = {
        "USE_CUSPARSELT": lambda: module("backends.cusparselt").is_available(),
        # Its engine is not supported by a CPU without AVX2.
        "USE_FBGEMM": lambda: "-DUSE_FBGEMM" in torch.__config__.show(),
        "USE_FLASH_ATTENTION": lambda: torch._C._is_flash_attention_available() is True,
        "USE_KINETO": lambda: torch.autograd.kineto_available() is True,
        "USE_MKLDNN": lambda: module("backends.mkldnn").is_available(),
        "USE_NUMPY": lambda: has_numpy(torch),
        "USE_OPENMP": lambda: module("backends.openmp").is_available(),
        "USE_PYTORCH_QNNPACK": lambda: "qnnpack" in torch.backends.quantized.supported_engines,
        "USE_TENSORPIPE": lambda: has_tensorpipe(torch),
        "USE_XNNPACK": lambda: module("backends.xnnpack").enabled,
    }
    found = {}
    for flag, ask in told.items():
        with contextlib.suppress(AttributeError, ImportError):
            found[flag] = bool(ask())
    return found


def has_tensorpipe(torch):
    # torch.distributed.rpc is there without it, from about 2.8 on.
    rpc = getattr(torch._C, "_distributed_rpc", None)
    return hasattr(rpc, "_TensorPipeRpcBackendOptionsBase")


def has_numpy(torch):
    try:
        torch.ones(1).numpy()
    except RuntimeError as error:
        # Without a NumPy beside it, it says that it is not available.
        return "compiled" not in str(error)
    return True


def links(package, name, library):
    """Say whether a package's extension links a library."""
    (path,) = glob.glob(os.path.join(os.path.dirname(package.__file__), name + "*.so"))
    return library in run("ldd", path)


def distributed(torch, backend):
    """Say whether torch was built with a backend of torch.distributed."""
    there = torch.distributed.is_available()
    return there and getattr(torch.distributed, "is_%s_available" % backend, lambda: False)()


def own_binaries(folder):
    """Return every shared library and program of torch and torchvision, with what they bring."""
    found = []
    for name in ("torch", "torch.libs", "torchvision", "torchvision.libs"):
        for top, _, files in os.walk(os.path.join(folder, name)):
            for file in files:
                path = os.path.join(top, file)
                if os.path.islink(path):
                    continue
                with open(path, "rb") as content:
                    if content.read(4) == b"\x7fELF":
                        found.append(path)
    return sorted(found)


def device_code(tool, folder, binaries):
    """Map each binary with GPU code to its architectures, as cuobjdump lists them."""
    if shutil.which(tool) is None:
        return None
    code = {}
    for path in binaries:
        listed = run(tool, "--list-elf", path) + run(tool, "--list-ptx", path)
        names = set()
        for line in listed.splitlines():
            kind, _, name = line.partition(" file ")
            words = name.split(".")
            if kind in ("ELF", "PTX") and len(words) > 2:
                names.add(("sm_" if kind == "ELF" else "compute_") + words[-2].partition("_")[2])
        if names:
            code[os.path.relpath(path, folder)] = sorted(names)
    return code


def missing_libraries(binaries):
    """Map each binary to the libraries that the loader does not find for it.

    Not the driver's, which comes with the host.
    """
    missing = {}
    for path in binaries:
        lines = run("ldd", path).splitlines()
        names = [line.split()[0] for line in lines if "not found" in line]
        names = [name for name in names if name != "libcuda.so.1"]
        if names:
            missing[path] = names
    return missing


def run(*command):
    import subprocess

    # Neither is a library to be preloaded into.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, env=environment
    )
    return done.stdout.decode(errors="replace")


def image_codecs(torch, torchvision):
    picture = (torch.arange(3 * 8 * 8) % 251).to(torch.uint8).reshape(3, 8, 8)
    io = torchvision.io
    if not torch.equal(io.decode_png(io.encode_png(picture)), picture):
        return "a PNG is not what it was before it was encoded"
    shape = tuple(io.decode_jpeg(io.encode_jpeg(picture)).shape)
    if shape != (3, 8, 8):
        return "a JPEG of 3x8x8 is decoded as %r" % (shape,)
    if hasattr(io, "decode_webp"):  # torchvision 0.20 and newer
        dot = torch.tensor(list(base64.b64decode(WEBP)), dtype=torch.uint8)
        shape = tuple(io.decode_webp(dot).shape)
        if shape != (3, 1, 1):
            return "a WebP of 3x1x1 is decoded as %r" % (shape,)
    return "ok"


def gpu(torch, torchvision):
    """Run a kernel, a solve (by MAGMA where torch uses it) and torchvision's nms on the GPU."""
    if torch.cuda.has_magma:
        torch.backends.cuda.preferred_linalg_library("magma")
    left = torch.eye(64, device="cuda", dtype=torch.float64) * 2
    solved = torch.linalg.solve(left, torch.ones(64, 1, device="cuda", dtype=torch.float64))
    if not torch.allclose(solved, torch.full_like(solved, 0.5)):
        return "2 x = 1 has the solution %r" % solved[0].item()
    if torchvision is None:
        return "ok"
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]], device="cuda")
    scores = torch.tensor([0.9, 0.8, 0.7], device="cuda")
    kept = torchvision.ops.nms(boxes, scores, 0.5).tolist()
    return "ok" if kept == [0, 2] else "nms kept %r, not [0, 2]" % kept


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
