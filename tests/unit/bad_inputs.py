"""Bad inputs, and the words that a user must find in the answer to each.

``python -m tests.unit.bad_inputs`` prints them as a Markdown table, from real runs.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.unit import running
from tests.unit.running import Files, Result

APT = "reqs/apt-train.requirements.txt"
PIP = "reqs/pip-train.requirements.txt"


COMPILE = "plan --build-mode include --pytorch-version-tag v2.6.0 --cca 8.6"


@dataclass(frozen=True)
class Bad:
    """One bad input; `words` are the field, the value, and what is allowed or comes next."""

    name: str
    argv: str
    words: tuple[str, ...]
    code: int = 2
    environ: Mapping[str, str] = field(default_factory=dict)
    files: Files = field(default_factory=dict)

    def given(self) -> str:
        """Return what the user did, in a line."""
        shell = [f"{name}={value!r}" for name, value in self.environ.items()]
        files = [f"{name}: {_shown(content)}" for name, content in self.files.items()]
        return "; ".join([" ".join([*shell, "cresset", self.argv]), *files])

    def run(self, folder: Path) -> Result:
        """Return what comes of it in a new checkout."""
        with running.checkout(folder, self.files):
            return running.run(*self.argv.split(), environ=self.environ)


def _shown(content: str | bytes | None) -> str:
    return "(missing)" if content is None else repr(content)


def flag(name: str, value: str, *words: str) -> Bad:
    """Return a bad value of a setting, given as a flag to `plan`."""
    variable = name.upper().replace("-", "_")
    return Bad(f"{variable} {value}", f"plan --{name} {value}", (f"{variable}='{value}'", *words))


def file(name: str, path: str, content: str | bytes | None, *words: str, verb: str = "plan") -> Bad:
    """Return a bad file of a checkout."""
    return Bad(name, verb, words, files={path: content})


TABLE: tuple[Bad, ...] = (
    # The command line itself
    Bad("unknown verb", "frobnicate", ("frobnicate", "-h")),
    Bad("unknown flag", "plan --cuda-verison 12.6", ("--cuda-verison", "--cuda-version")),
    Bad("flag without a value", "plan --cca", ("--cca", "argument")),
    Bad("unknown target", "build nope", ("target='nope'", "train, full, devel, simple, ngc")),
    Bad("two targets", "plan train simple", ("simple", "unexpected")),
    # Choices
    flag("service", "trian", "nearest: train", "full, devel, simple"),
    flag("build-mode", "included", "nearest: include", "exclude"),
    Bad("compiling for no GPU", "plan --build-mode include",
        ("1 mistake", "CCA=''", "needs the GPUs to compile for", "8.6+PTX", "set CCA=auto")),
    Bad("nothing to compile", "wheels",
        ("BUILD_MODE='exclude'", "there is nothing to compile", "set BUILD_MODE=include")),
    Bad("a devel image of wheels", "build devel",
        ("BUILD_MODE='exclude'", "this torch is not compiled", "allowed: include")),
    flag("mkl-mode", "yes", "include, exclude"),
    flag("base-source", "docker", "auto, image, archive, bootstrap"),
    flag("image-flavor", "cudnn", "base, runtime, devel"),
    flag("ngc-year", "2025", "not two digits", "two digits such as 25"),
    *(flag("ngc-month", month, "not a month of two digits", "01 to 12") for month in ("9", "13")),
    Bad("a month of NVIDIA's that is not known", "plan ngc --ngc-year 22 --ngc-month 12",
        ("1 mistake", "NGC_MONTH='22.12'", "23.05 to", "set NGC_YEAR=23 and NGC_MONTH=05")),
    Bad("half a month of NVIDIA's", "plan ngc --ngc-year 25",
        ("1 mistake", "NGC_MONTH=''", "go together", "set both or neither")),
    flag("compression", "lz4", "gzip, zstd, uncompressed"),
    flag("engine", "podman", "auto, session, remote, docker, local"),
    flag("torch-source", "tarball", "(empty), index, git, archive, apt, path"),
    flag("vision-source", "pip", "(empty), index, git, archive, apt, path"),
    flag("magma-source", "path", "auto, archive, git, apt, off"),
    flag("cuda-source", "conda", "auto, image, apt, wheels"),
    flag("wheel-store", "s3", "auto, off"),
    Bad("choice from the shell", "plan", ("ADD_USER='no'", "from the shell", "include, exclude"),
        environ={"ADD_USER": "no"}),
    # Versions
    flag("pytorch-version-tag", "v1.11.0", "no row for torch 1.11.0", "v1.13.0, the nearest"),
    flag("pytorch-version-tag", "main", "no row for torch main", "2.15.0"),
    flag("pytorch-version", "2.99.0", "set PYTORCH_VERSION=2.15.0, the nearest"),
    flag("pytorch-version", "v2.6.0", "not a version number", "a release such as 2.6.0"),
    flag("pytorch-version-tag", "-v2", "not a git tag", "a tag such as v2.6.0"),
    Bad("torchvision of another torch",
        "plan --pytorch-version-tag v2.6.0 --torchvision-version-tag v0.20.0",
        ("TORCHVISION_VERSION_TAG='v0.20.0'", "torch 2.6.0", "TORCHVISION_VERSION_TAG=v0.21.0")),
    Bad("torchvision wheel of another torch",
        "plan --pytorch-version 2.6.0 --torchvision-version 0.20.0",
        ("TORCHVISION_VERSION='0.20.0'", "set TORCHVISION_VERSION=0.21.0")),
    flag("cuda-version", "twelve", "not a version number", "12.6 or 12.6.3"),
    flag("cuda-version", "11.8", "no wheel for CUDA 11.8", "set CUDA_VERSION=13.2"),
    flag("cuda-version", "99.1", "no row for CUDA 99.1", "the nearest"),
    flag("python-version", "3.13.1", "not a minor version", "allowed: 3.13"),
    flag("python-version", "3.8", "the pinned pip needs Python 3.10", "set PYTHON_VERSION=3.11"),
    flag("python-version", "3.10", "torch 2.15.0", "set PYTHON_VERSION=3.11"),
    Bad("a simple image of an old Python", "plan simple --python-version 3.9",
        ("PYTHON_VERSION='3.9'", "the pinned pip needs Python 3.10", "set PYTHON_VERSION=3.10")),
    *(Bad(f"a distribution whose python3 is old, {more}",
          f"plan {more} --linux-distro ubuntu --distro-version 20.04",
          ("1 mistake", "DISTRO_VERSION='20.04'", "ubuntu 20.04 is 3.8", "set DISTRO_VERSION=22.04",
           "https://pip.pypa.io/en/stable/news/"))
      for more in ("simple", "train --python-version 3.12")),
    # Compute capabilities
    flag("cca", "86", "not a compute capability", "8.6, 8.6+PTX"),
    flag("cca", "8.6,7.5", "not a compute capability", "'7.5 8.6+PTX'"),
    flag("cca", "Amper", "not a compute capability", "Ampere"),
    *(flag("cca", word, "one image for every architecture", "name the GPUs", "leave CCA empty")
      for word in ("All", "common", "Common+PTX")),
    flag("cca", "4.2", "no row for compute capability 4.2", "the nearest"),
    flag("cca", "auto", "no NVIDIA driver answers", "name the compute capability"),
    flag("cca", "6.1", "none of it runs on 6.1", "allowed: 7.5 8.0"),
    *(Bad(f"compiling for {cca}", f"plan --build-mode include --cca {cca}",
          ("1 mistake", f"CCA='{cca}'", words))
      for cca, words in (("all", "name the GPUs"), ("4.2", "the nearest"),
                         ("auto", "no NVIDIA driver answers"))),
    Bad("compiling for a GPU that CUDA does not know", f"{COMPILE} --cca 3.7",
        ("1 mistake", "CCA='3.7'", "no target for 3.7", "set CUDA_VERSION=11.8")),
    # What is compiled, and where it comes from
    *(flag(name, "ftp://host/x", "not a URL and not a path", "allowed: a URL or a path")
      for name in ("torch-url", "vision-url", "magma-url")),
    *(flag(name, "-main", "not a git tag, branch or commit", "a tag, branch or commit")
      for name in ("torch-ref", "vision-ref", "magma-ref")),
    *(flag(name, value, "not a sha256", "64 hexadecimal digits")
      for name in ("torch-sha256", "vision-sha256", "magma-sha256") for value in ("abc", "g" * 64)),
    *(Bad(f"{part}: a tarball without its hash",
          f"{COMPILE} --{part}-source archive --{part}-url /x.tar.gz",
          ("1 mistake", f"{part.upper()}_SHA256=''", "whose hash is known", "`sha256sum`"))
      for part in ("torch", "vision", "magma")),
    Bad("a tarball from nowhere", f"{COMPILE} --torch-source archive --torch-sha256 {'0' * 64}",
        ("1 mistake", "TORCH_URL=''", "a tarball", "TORCH_URL with a URL or a path")),
    Bad("a hash that is none", f"{COMPILE} --torch-source archive --torch-url /x --torch-sha256 0",
        ("1 mistake", "TORCH_SHA256='0'", "not a sha256")),
    Bad("a working tree without a folder", f"{COMPILE} --torch-source path",
        ("1 mistake", "TORCH_URL=''", "a working tree", "set TORCH_URL to the folder")),
    Bad("a working tree that is not there", f"{COMPILE} --vision-source path --vision-url no/tree",
        ("1 mistake", "VISION_URL='", "no/tree'", "no such folder", "a working tree of git")),
    Bad("a folder that is no working tree", f"{COMPILE} --torch-source path --torch-url reqs",
        ("1 mistake", "TORCH_URL='", "reqs'", "not a git repository", "a working tree of git")),
    *(Bad(f"{part}: a branch of a server that does not answer",
          f"{COMPILE} --{part}-source git --{part}-url http://me:pass@127.0.0.1:1/x --{part}-ref b",
          ("1 mistake", f"{part.upper()}_REF='b'", "http://***@127.0.0.1:1/x cannot be asked",
           "check the URL"))
      for part in ("torch", "vision", "magma")),
    Bad("a mirror that does not answer", f"{COMPILE} --torch-ref main "
        "--git-old https://github.com/ --git-new http://127.0.0.1:1/",
        ("1 mistake", "TORCH_REF='main'", "127.0.0.1 port 1", "check the URL")),
    Bad("a source package of another release", f"{COMPILE} --torch-source apt "
        "--pytorch-version-tag v2.5.1", ("1 mistake", "TORCH_SOURCE='apt'", "pytorch 2.5.1",
        "debian 13 with 2.6.0", "set PYTORCH_VERSION_TAG=v2.6.0")),
    flag("magma-release", "two", "not a version number", "2.9.0"),
    Bad("an old MAGMA", f"{COMPILE} --magma-release 2.7.2",
        ("1 mistake", "MAGMA_RELEASE='2.7.2'", "no row", "set MAGMA_RELEASE=2.9.0")),
    Bad("a MAGMA that does not go with torch", f"{COMPILE} --magma-release 2.10.0",
        ("1 mistake", "MAGMA_RELEASE='2.10.0'", "torch 2.6.0", "set MAGMA_RELEASE=2.9.0")),
    Bad("the distribution's MAGMA for another CUDA",
        "plan --build-mode include --cca 8.6 --magma-source apt",
        ("1 mistake", "MAGMA_SOURCE='apt'", "compiled with CUDA 12.4", "set MAGMA_SOURCE=archive")),
    *(Bad(f"a CUDA that {way} does not serve", f"{COMPILE} --cuda-source {way}",
          ("1 mistake", f"CUDA_SOURCE='{way}'", why, "apt: 12.4", "set CUDA_SOURCE=auto"))
      for way, why in (("image", "no images of debian 13"), ("wheels", "no nvcc"))),
    Bad("a CUDA that nothing serves", f"{COMPILE} --cuda-version 12.6",
        ("1 mistake", "CUDA_VERSION='12.6'", "debian 13 packages CUDA 12.4",
         "LINUX_DISTRO=ubuntu and DISTRO_VERSION=24.04 to keep CUDA 12.6")),
    Bad("a CUDA to compile with that is not known", f"{COMPILE} --cuda-version 99.1",
        ("1 mistake", "CUDA_VERSION='99.1'", "no row for CUDA 99.1", "the nearest")),
    *(Bad(f"flags: {flags}", f"{COMPILE} --torch-flags {flags}",
          (f"TORCH_FLAGS='{flags}'", "NAME=value words"))
      for flags in ("USE_CUDA", "use_cuda=1", "-DUSE_CUDA=1")),
    flag("max-jobs", "many", "not a number", "a number such as 8"),
    *(flag("cache-url", url, "not a cache that ccache or Cresset speaks", "redis://host:6379")
      for url in ("memcached://host", "s3://", "ccache")),
    *(Bad(f"deadline {time}", f"{verb} --deadline {time}",
          (f"--deadline='{time}'", "not a time from now", "170m, 5h or 5h30m"))
      for verb, time in (("build", "nonsense"), ("build", "5"), ("wheels", "0m"), ("wheels", "-5h"),
                         ("build", "30m5h"))),
    Bad("nothing that only follows from a source that is none",
        "plan --torch-source tarball --cuda-version 12.0 --cca 8.6",
        ("1 mistake", "TORCH_SOURCE='tarball'")),
    # The base
    flag("linux-distro", "debain", "set LINUX_DISTRO=debian, the nearest"),
    flag("distro-version", "99", "no row for debian 99", "12, 13"),
    Bad("nvidia/cuda on Debian", "plan --image-flavor base",
        ("LINUX_DISTRO='debian'", "no images of debian", "leave IMAGE_FLAVOR empty")),
    Bad("wheels on a base with CUDA", "plan --linux-distro ubuntu --image-flavor devel --cca 8.6",
        ("IMAGE_FLAVOR='devel'", "the wheels bring the CUDA libraries along", "base, or empty")),
    flag("base-image", "https://docker.io/debian", "not an image reference", "registry/name:tag"),
    flag("base-image", "Debian:13", "not an image reference", "registry/name:tag"),
    flag("base-image", "debian@sha256:abc", "not an image reference", "registry/name@sha256:"),
    Bad("archive without a path", "plan --base-source archive",
        ("BASE_ARCHIVE=''", "BASE_SOURCE=archive", "set both or neither")),
    Bad("archive that is not there", "plan --base-source archive --base-archive no.tar",
        ("BASE_ARCHIVE='no.tar'", "No such file", "an OCI archive")),
    Bad("archive that is not asked for", "plan --base-archive no.tar",
        ("BASE_ARCHIVE='no.tar'", "BASE_SOURCE=archive", "set both or neither")),
    Bad("bootstrap of Ubuntu", "plan --base-source bootstrap --linux-distro ubuntu",
        ("LINUX_DISTRO='ubuntu'", "ubuntu 24.04 is not bootstrapped", "set BASE_SOURCE=image")),
    Bad("archive beside an image",
        "plan --base-source archive --base-archive reqs/pip-train.requirements.txt "
        "--base-image debian:13",
        ("1 mistake", "BASE_IMAGE='debian:13'", "one or the other", "leave BASE_IMAGE out")),
    Bad("bootstrap beside an image", "plan --base-source bootstrap --base-image debian:13",
        ("BASE_SOURCE='bootstrap'", "BASE_IMAGE", "auto, image, archive")),
    # Time zone, paths, people
    flag("tz", "Asia/seoul", "nearest: Asia/Seoul", "tz database"),
    flag("tz", "../../etc/passwd", "not a time zone", "Asia/Seoul"),
    flag("project-root", "project", "not an absolute path", "/opt/project"),
    flag("uid", "me", "a number such as 1000"),
    flag("gid", "99999999999", "a number such as 1000"),
    flag("usr", "1me", "not a user or group name", "a letter, then"),
    # Mirrors and names
    flag("index-url", "ftp://host/simple", "not an http or https URL", "https://host/simple"),
    flag("extra-index-url", "host/simple", "not an http or https URL", "https://host/simple"),
    flag("deb-new", "http://mirror", "DEB_OLD and DEB_NEW go together", "set both or neither"),
    Bad("DEB_OLD without DEB_NEW", "plan --deb-old http://archive.example",
        ("DEB_NEW=''", "DEB_OLD and DEB_NEW go together", "set both or neither")),
    flag("git-old", "ftp://host/", "not the beginning of a git URL", "https://github.com/"),
    flag("git-new", "mirror/", "not the beginning of a git URL", "https://git.example.com/mirror/"),
    flag("git-new", "https://mirror/", "GIT_OLD and GIT_NEW go together", "set both or neither"),
    Bad("GIT_OLD without GIT_NEW", "plan --git-old https://github.com/",
        ("GIT_NEW=''", "GIT_OLD and GIT_NEW go together", "set both or neither")),
    Bad("trust in a host that speaks TLS",
        "plan --index-url https://host/simple --trusted-host host",
        ("TRUSTED_HOST='host'", "TLS checks are never turned off", "update-ca-certificates")),
    Bad("trust in part of a host's name",
        "plan --index-url http://host.evil/simple --trusted-host host",
        ("TRUSTED_HOST='host'", "no http:// index has it", "update-ca-certificates")),
    flag("registry", "https://ghcr.io/me", "it has no scheme", "ghcr.io/team"),
    flag("registry", "ghcr.io/Me", "lower case", "ghcr.io/team"),
    flag("registry", "localhost:65536", "ports end at 65535", "localhost:5000"),
    *(flag("image-name", name, "not an image name", "one or two _", "cresset:my-tag")
      for name in ("a..b", "a//b", "a.-b", "a___b", "a._b")),
    Bad("a mirror with a password", "plan --deb-old http://archive.example "
        "--deb-new http://me:p@ss@mirror", ("1 mistake", "DEB_NEW='http://***@mirror'",
        "the image's apt sources", "auth.conf", "http://host")),
    Bad("an old mirror with a token", "plan --deb-old http://token@mirror --deb-new http://mirror",
        ("1 mistake", "DEB_OLD='http://***@mirror'", "auth.conf", "http://host")),
    Bad("a mirror that speaks TLS", "plan --deb-old http://archive.example "
        "--deb-new https://mirror", ("1 mistake", "DEB_NEW='https://mirror'",
        "no CA certificates", "apt checks signatures", "allowed: http://host")),
    flag("image-name", "cresset:", "not an image name", "cresset:my-tag"),
    # .env
    file("unknown key", ".env", "PYTORCH_TAG=v2.6.0\n", "PYTORCH_TAG='***'",
         "did you mean PYTORCH_VERSION_TAG?"),
    file("unknown key like no other", ".env", "XYZZY=1\n", "XYZZY='***'", "take the line out"),
    file("no equals sign", ".env", "\nTZ=UTC\n\nCCA: 8.6\n", ".env:4='CCA***'", "NAME=value"),
    file("no value", ".env", "CCA\n", ".env:1='CCA'", "NAME=value"),
    file("open quote", ".env", "CCA='8.6\n", ".env:1='CCA=***'", "NAME=value"),
    file("not text", ".env", b"TZ=\xff\xfe\n", ".env=''", "it is not UTF-8 text", "mend it"),
    Bad("a folder", "plan", (".env=''", "Is a directory", "mend it"), files={".env/x": ""}),
    Bad("bad value of the file", "plan", ("TZ='Mars/Base'", "(from .env)", "tz database"),
        files={".env": "TZ=Mars/Base  # soon\n"}),
    # reqs/
    Bad("no reqs/", "plan", (APT, PIP, "No such file", "run from a check"), files={"reqs": None}),
    file("apt: not a name", APT, "git\nGit LFS\n", f"{APT}:2='Git LFS'", "name==version"),
    *(file(f"apt: {name}", APT, f"{name}\n", f"{APT}:1='{name}'", "remove this", "name==version")
      for name in ("git-", "git==1.0-")),
    file("apt: a range", APT, "git>=2.30\n", f"{APT}:1='git>=2.30'", "name==version"),
    file("apt: not a marker", APT, "git; python > 3\n", f"{APT}:1", "not an environment marker"),
    file("apt: a marker without sense", APT, "git; sys_platform ~= 'linux'\n", f"{APT}:1",
         "not an environment marker", "; marker"),
    file("apt: an option", APT, "-y\n", f"{APT}:1='-y'", "not an apt requirement", "name==version"),
    file("apt: not text", APT, b"\xff\xfe", APT, "not UTF-8", "create an empty"),
    file("pip: a file outside", PIP, "einops\n-r ../secrets.txt\n", f"{PIP}:2='../secrets.txt'",
         "outside reqs/", "copy it into reqs/"),
    file("pip: an absolute file", PIP, "-c/etc/pip.txt\n", f"{PIP}:1='/etc/pip.txt'",
         "outside reqs/", "copy it into reqs/"),
    file("pip: a wheel outside", PIP, "mine @ file:///tmp/mine.whl\n", f"{PIP}:1",
         "outside reqs/", "copy it into reqs/"),
    file("pip: a file that is not there", PIP, "-r more.txt\n", f"{PIP}:1='more.txt'",
         "No such file", "create it or take it out"),
    file("pip: not a requirement", PIP, "einops\nnum py\n", f"{PIP}:2='num py'",
         "not a pip requirement", "name==1.2", verb="build"),
    file("pip: another torch", PIP, "torch==2.0.0\n", f"{PIP}:1='torch==2.0.0'",
         "contradicts the torch 2.15.0", "PYTORCH_VERSION_TAG", verb="build"),
    file("pip: another torchvision", PIP, "TorchVision<0.2\n", f"{PIP}:1='TorchVision<0.2'",
         "contradicts", "TORCHVISION_VERSION_TAG", verb="build"),
    # Several at once
    Bad("mistakes in every source", "plan --uid me", ("UID='me'", "TZ='Nowhere'", "XYZZY='***'",
        "3 mistakes"), environ={"TZ": "Nowhere"}, files={".env": "XYZZY=1\n"}),
    Bad("mistakes found early and late", "plan --cca 6.1 --python-version 3.99 --uid me",
        ("XYZZY=", "UID='me'", "CCA='6.1'", "PYTHON_VERSION='3.99'", "4 mistakes"),
        files={".env": "XYZZY=1\n"}),
    Bad("nothing that only follows from a mistake", "plan --cuda-version twelve --cca 6.1 "
        "--base-source arch --base-archive no.tar --deb-old me --deb-new http://mirror "
        "--python-version 3.99", ("CUDA_VERSION=", "BASE_SOURCE=", "BASE_ARCHIVE=", "No such file",
        "DEB_OLD=", "PYTHON_VERSION=", "5 mistakes")),
    Bad("mistakes in files too", "plan --cca 99.9 --linux-distro ubuntu --python-version 3.6",
        ("CCA='99.9'", "PYTHON_VERSION='3.6'", f"{APT}:1", f"{PIP}:1", "4 mistakes"),
        files={APT: "A B\n", PIP: "-r no.txt\n"}),
)  # fmt: skip


def main() -> None:
    rows = ["| Input | Exit code | Message |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        for number, bad in enumerate(TABLE):
            result = bad.run(Path(folder, str(number)))
            cells = (bad.given(), str(result.code), _message(result.err))
            rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    sys.stdout.write("\n".join(rows) + "\n")


def _message(err: str) -> str:
    lines = (line.strip(" │╭╮╰╯─") for line in err.splitlines())
    return "<br>".join(line.replace("<", "&lt;") for line in lines if line)


if __name__ == "__main__":
    main()
