"""Requirements of the original, conda's too, as apt and pip have them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pipeline import reqs
from pipeline.adopt.original import read_yaml
from pipeline.adopt.report import Fate, Item
from pipeline.settings import shown

_APT: Final = f"reqs/{reqs.APT_TRAIN}"
_PIP: Final = f"reqs/{reqs.PIP_TRAIN}"

_IN_THE_IMAGE: Final = {
    "jemalloc": "every image has it, and preloads it where torch is",
    "libjpeg-turbo": "torchvision's wheel brings it, and a compiled one is linked to it",
    "libpng": "torchvision's wheel brings it, and a compiled one is linked to it",
    "mkl": "MKL_MODE: torch brings MKL, and the image Intel's OpenMP",
    "openssh": "the shell of every image has it",
    "openssl": "every image has it",
    "pip": "the environment of every image has it",
    "tzdata": "every image has it",
}
_ITS_OWN: Final = {
    "conda-lock": "it locks conda's packages, and there is no conda",
    "cudatoolkit": "CUDA_VERSION: torch brings CUDA",
    "intel-openmp": "MKL_MODE brings it",
    "lazygit": "only some distributions have it: put it into reqs/apt-train.requirements.txt there",
    "mamba": "there is no conda",
    "pytorch": "PYTORCH_VERSION_TAG chooses torch",
    "pytorch-cuda": "CUDA_VERSION chooses it",
    "torch": "PYTORCH_VERSION_TAG chooses it",
    "torchvision": "TORCHVISION_VERSION_TAG chooses it",
}
# Programs, which conda has and PyPI has not.
_BY_APT: Final = {
    "ffmpeg": "ffmpeg", "gcc": "gcc", "git-lfs": "git-lfs", "graphviz": "graphviz", "gxx": "g++",
    "make": "make", "nodejs": "nodejs", "numactl": "numactl",
    "parallel": "parallel", "rsync": "rsync", "tree": "tree", "unzip": "unzip", "wget": "wget",
    "zip": "zip",
}  # fmt: skip
_BY_PIP: Final = {
    "matplotlib-base": "matplotlib", "msgpack-python": "msgpack", "opencv": "opencv-python",
    "py-opencv": "opencv-python",
}  # fmt: skip
_OWNER = re.compile(r"train|full|simple|ngc|deploy|hub")


@dataclass
class Found:
    """What the files come to, in the order found."""

    apt: list[str] = field(default_factory=list)
    pip: list[str] = field(default_factory=list)
    python: str = ""
    items: list[Item] = field(default_factory=list)


def packages(files: Mapping[str, str], service: str, shell: Sequence[str]) -> Found:
    """Return what the files of ``reqs/`` come to, for the service in use.

    `shell` are the packages that every image has.

    Raises:
        CressetError: a file of conda's is not YAML.

    """
    found = Found()
    for name, text in files.items():
        place = f"reqs/{name}"
        owner = match[0].replace("full", "train") if (match := _OWNER.search(name)) else "train"
        if word := _unread(name, owner, service):
            found.items.append(Item(place, "file", name, Fate.LEFT, word))
        elif "apt" in name:
            _apt_file(place, text, shell, found)
        elif name.endswith((".yaml", ".yml")):
            _conda_file(place, text, shell, found)
        elif "conda" in name:
            for line in _lines(text):
                _conda(place, line, shell, found)
        elif name.endswith((".txt", ".in")):
            _pip_file(place, text, found)
    return found


def _unread(name: str, owner: str, service: str) -> str:
    if name.endswith(".md"):
        return "not a list of packages"
    if "uninstall" in name:
        return "it took packages out of NVIDIA's image; nothing is in an image here unasked"
    if "build" in name:
        return "what compiles each release of torch is pinned in reqs/build-*.requirements.txt"
    if "lock" in name:
        return "conda-lock went with conda; what every image needs is pinned by hash"
    if owner not in {"train", service}:
        return (
            f"the packages of {owner}, and the service in use is {service}; one list serves all "
            f"images: copy what you need into {_APT} and {_PIP}"
        )
    return ""


def _lines(text: str) -> list[str]:
    stripped = (re.split(r"(?:^|\s)#", line)[0].strip() for line in text.splitlines())
    return [line for line in stripped if line]


def _apt_file(place: str, text: str, shell: Sequence[str], found: Found) -> None:
    for word in " ".join(_lines(text)).split():
        _apt(place, word, shell, found)


def _apt(place: str, word: str, shell: Sequence[str], found: Found, *, by: str = "") -> None:
    kept, problems = reqs.apt_packages(word, python="3.13", file=place)
    name = by or word
    if word in shell or word in {"ca-certificates", "tzdata"}:
        fate, why = Fate.CARRIED, "the shell of every image has it"
    elif word in _IN_THE_IMAGE:
        fate, why = Fate.CARRIED, _IN_THE_IMAGE[word]
    elif problems:
        fate, why = Fate.REFUSED, problems[0].why
    else:
        found.apt += [it for it in kept if it not in found.apt]
        fate, why = (Fate.MAPPED if by else Fate.CARRIED), f"{_APT}: {kept[0]}"
    found.items.append(Item(place, "package", name, fate, why))


def _pip_file(place: str, text: str, found: Found) -> None:
    for line in _lines(text):
        _pip(place, line, found)


def _pip(place: str, line: str, found: Found, *, by: str = "") -> None:
    name = re.split(r"[\s=<>!~;\[@]", line, maxsplit=1)[0].lower().replace("_", "-")
    shown_name = by or shown(line)
    if name in _ITS_OWN:
        found.items.append(Item(place, "package", shown_name, Fate.LEFT, _ITS_OWN[name]))
        return
    if re.match(r"-[rce]|--(requirement|constraint|editable|index|extra|trusted|find)", line):
        why = (
            "it names an index or a place of the old checkout: INDEX_URL and EXTRA_INDEX_URL name "
            "indexes; a file is copied into reqs/ and named there"
        )
        found.items.append(Item(place, "package", shown_name, Fate.LEFT, why))
        return
    if line not in found.pip:
        found.pip.append(line)
    fate = Fate.MAPPED if by else Fate.CARRIED
    found.items.append(Item(place, "package", shown_name, fate, f"{_PIP}: {shown(line)}"))


def _conda_file(place: str, text: str, shell: Sequence[str], found: Found) -> None:
    read = read_yaml(text, place)
    channels = read.get("channels") or []
    if channels:
        why = "packages come from PyPI and apt; INDEX_URL names a mirror"
        found.items.append(Item(place, "channels", ", ".join(map(str, channels)), Fate.LEFT, why))
    for it in read.get("dependencies") or []:
        if isinstance(it, dict):
            for line in it.get("pip") or []:
                _pip(place, str(line), found)
        else:
            _conda(place, str(it), shell, found)


def _conda(place: str, written: str, shell: Sequence[str], found: Found) -> None:
    """Put a dependency of conda's where it belongs; it is as ``channel::name=1.2=build``."""
    match = re.fullmatch(r"([\w.-]+::)?(?P<name>[\w.-]+)\s*(?P<version>.*)", written.strip())
    if match is None:
        found.items.append(Item(place, "package", written, Fate.LEFT, "not a package of conda's"))
        return
    name = match["name"].lower()
    plain = name.replace("_", "-")
    version = re.sub(r"^(={1,2}[^=]+)=[^=]+$", r"\1", match["version"].replace(" ", ""))
    if name == "python":
        number = re.search(r"3\.\d+", version)
        found.python = found.python or (number[0] if number else "")
        word = f"PYTHON_VERSION={found.python}" if number else "PYTHON_VERSION chooses it"
        found.items.append(Item(place, "package", written, Fate.MAPPED, word))
    elif plain in _IN_THE_IMAGE:
        found.items.append(Item(place, "package", written, Fate.CARRIED, _IN_THE_IMAGE[plain]))
    elif plain in shell:
        found.items.append(
            Item(place, "package", written, Fate.CARRIED, "the shell of every image has it")
        )
    elif word := _ITS_OWN.get(plain, ""):
        found.items.append(Item(place, "package", written, Fate.LEFT, word))
    elif plain in _BY_APT or plain.removesuffix("-linux-64") in _BY_APT:
        # Its version was of conda's, and the distribution has one.
        _apt(place, _BY_APT[plain.removesuffix("-linux-64")], shell, found, by=written)
    else:
        _pip(place, f"{_BY_PIP.get(name, name)}{_pip_version(version)}", found, by=written)


def _pip_version(version: str) -> str:
    """Return a version of conda's as pip writes it: ``=1.2`` is any 1.2 there."""
    if match := re.fullmatch(r"=([\d.]+[a-z0-9]*)(\.?\*)?", version):
        return f"=={match[1].rstrip('.')}.*"
    if re.fullmatch(r"[\d.]+(\*)?", version):
        return f"=={version}"
    return version
