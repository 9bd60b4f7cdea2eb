"""What the user wrote: one string a variable, from a flag, the shell, ``.env`` or a default.

The model is plain pydantic over merged sources rather than pydantic-settings: each value must say
where it came from and each unknown key must be answered with the nearest known one, which leaves
nothing of pydantic-settings to use but a tenth of a second of import time on every command.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from pipeline.errors import Problem

ENV_FILE = Path(".env")


class Origin(StrEnum):
    """Where a value came from, strongest first."""

    FLAG = "flag"
    SHELL = "shell"
    FILE = ".env"
    DEFAULT = "default"


def setting(default: str, about: str, *, group: str, allowed: str = "") -> Any:  # noqa: ANN401 - as pydantic's own Field
    """Return a field with what ``--help``, ``config``, the README table and errors say of it."""
    return Field(default, description=about, json_schema_extra={"group": group, "allowed": allowed})


def _matching(pattern: str, why: str) -> AfterValidator:
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        if text and compiled.fullmatch(text) is None:
            raise ValueError(why)
        return text

    return AfterValidator(check)


def _timezone(name: str) -> str:
    # POSIX also has ":name", and ":/etc/localtime" or the like for the machine's own.
    name = name.removeprefix(":")
    if name.startswith("/"):
        name = os.path.realpath(name).partition("/zoneinfo/")[2] or "UTC"
    import zoneinfo  # noqa: PLC0415 - read only where TZ is set

    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError) as error:
        known = zoneinfo.available_timezones()
        # A host without tzdata knows no zone at all; the image has its own and decides there.
        if known:
            raise ValueError(
                "not a time zone of the tz database" + _nearest(name, known)
            ) from error
    return name


def _nearest(name: str, known: object) -> str:
    match = difflib.get_close_matches(name, list(cast("Any", known)), 1, 0.6)
    return f"; nearest: {match[0]}" if match else ""


_VERSION = _matching(r"\d+(\.\d+){1,3}", "not a version number")
_TAG = _matching(r"[A-Za-z0-9][\w./+-]*", "not a git tag, branch or commit")
_URL = _matching(r"https?://[^\s/]+(/\S*)?", "not an http or https URL")
# What is written here ends in the image, where everybody who pulls it can read it.
_NO_USERINFO = _matching(
    r"[^@]*",
    "a user or password in it would end in the image's apt sources, for all to read; the place "
    "for them is apt's own auth.conf",
)
_NO_TLS = _matching(
    r"(?!https:).*",
    "a plain base has no CA certificates yet when it first reads its sources, so its first update "
    "would fail; apt checks signatures whatever the transport",
)
_PLACE = _matching(
    r"(https|http|ssh|git)://\S+|[\w.-]+@[\w.-]+:\S+|[\w./~][^:]*", "not a URL and not a path"
)
_GIT = _matching(r"(https?|ssh|git)://\S+|[\w.-]+@[\w.-]+:\S*", "not the beginning of a git URL")
_SHA256 = _matching(r"[0-9a-f]{64}", "not a sha256")
_FLAGS = _matching(r"\s*([A-Z][A-Z0-9_]*=\S*\s*)*", "not words of the form NAME=value")
_CACHE = _matching(
    r"(redis|http|s3|gs|az)://\S+|[/~.]\S*",
    "not a cache that ccache or Cresset speaks, nor a folder's path; of those with TLS there are "
    "the buckets, for ccache knows neither rediss:// nor https://",
)
_SIZE = _matching(r"(?i:\d+[bkmg]b?)", "not a size such as 8gb")
_RUNNER_HOST = (
    r"(local|unix:///[^\s,]+|tcp://[^\s,/?@]+:\d{1,5}|(tls|ssh|kube-pod)://[\w\[][^\s,]*)"
)
_ENGINES = _matching(
    rf"[\s,]*{_RUNNER_HOST}([\s,]+{_RUNNER_HOST})*[\s,]*",
    "not runner hosts of Dagger, separated by spaces or commas",
)
_TWO_DIGITS = _matching(r"\d{2}", "not two digits")
_MONTH = _matching(r"0[1-9]|1[0-2]", "not a month of two digits")
_NUMBER = _matching(r"\d{1,10}", "not a number")
_NAME = _matching(r"[A-Za-z_][\w.-]*", "not a user or group name")
_PATH = _matching(r"/\S*", "not an absolute path")
# Docker's rule of names (distribution's reference package): words of letters and digits, between
# them one dot, one or two underscores or any number of dashes, and between parts of a path one /.
_PART = r"[a-z0-9]+((\.|_{1,2}|-+)[a-z0-9]+)*"
_REPOSITORY = rf"{_PART}(/{_PART})*"
_HOST = r"[A-Za-z0-9][A-Za-z0-9.-]*(:\d{1,5})?"
_DOCKER_TAG = r"(:[A-Za-z0-9_][\w.-]{0,127})?"
_REGISTRY = _matching(
    rf"{_HOST}(/{_REPOSITORY})?",
    "not a registry; it has no scheme and an optional path in lower case",
)
# Upper case is let in: it is made lower.
_IMAGE_NAME = _matching(
    rf"(?i:{_REPOSITORY}){_DOCKER_TAG}",
    "not an image name: between letters and digits one . or one or two _ or any number of -, "
    "between parts one /",
)
_REFERENCE = _matching(
    rf"({_HOST}/)?{_REPOSITORY}{_DOCKER_TAG}(@sha256:[0-9a-f]{{64}})?", "not an image reference"
)


def _port(address: str) -> str:
    port = re.match(r"[^/:]+:(\d+)(/|$)", address)
    if port and int(port[1]) > _LAST_PORT:
        raise ValueError(f"ports end at {_LAST_PORT}")
    return address


_LAST_PORT = 65535
_PORT = AfterValidator(_port)

IMAGE, BASE, SOURCES, COMPILE, MIRRORS, DELIVERY, ENGINE, START = (
    "Image", "Base", "Sources (BUILD_MODE=include)", "Compiling", "Mirrors", "Delivery", "Engine",
    "Container start",
)  # fmt: skip

Onoff = Literal["include", "exclude"]


class Settings(BaseModel):
    """Every variable that Cresset reads; the names are the original's where it had one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    service: Literal["train", "full", "devel", "simple", "ngc"] = setting(
        "train", "What to build; `full` is `train`.", group=IMAGE
    )
    build_mode: Onoff = setting(
        "exclude", "`include` compiles PyTorch from source, `exclude` takes wheels.", group=IMAGE
    )
    cca: str = setting(
        "",
        "Compute capabilities of the GPUs to serve, as in TORCH_CUDA_ARCH_LIST, or `auto` for this "
        "machine's. Empty with BUILD_MODE=exclude: whatever the wheels carry.",
        group=IMAGE,
        allowed="8.6, 8.6+PTX, '7.5 8.6+PTX', 9.0a, a generation such as Ampere, or auto",
    )
    pytorch_version_tag: Annotated[str, _TAG] = setting(
        "", "PyTorch's git tag. Empty: the newest release known here.", group=IMAGE,
        allowed="a tag such as v2.6.0",
    )  # fmt: skip
    torchvision_version_tag: Annotated[str, _TAG] = setting(
        "", "torchvision's git tag. Empty: the release that pairs with PyTorch's.", group=IMAGE,
        allowed="a tag such as v0.21.0",
    )  # fmt: skip
    pytorch_version: Annotated[str, _VERSION] = setting(
        "", "Version of the PyTorch wheel; goes before the tag if BUILD_MODE=exclude.",
        group=IMAGE, allowed="a release such as 2.6.0",
    )  # fmt: skip
    torchvision_version: Annotated[str, _VERSION] = setting(
        "", "Version of the torchvision wheel; goes before the tag if BUILD_MODE=exclude.",
        group=IMAGE, allowed="a release such as 0.21.0",
    )  # fmt: skip
    cuda_version: Annotated[str, _VERSION] = setting(
        "", "CUDA version. Empty: that of PyTorch's own wheel.", group=IMAGE,
        allowed="12.6 or 12.6.3",
    )  # fmt: skip
    cudnn_version: Annotated[str, _matching(r"\d+(\.\d+)*", "not a version number")] = setting(
        "", "cuDNN of an nvidia/cuda base. Empty: the one NVIDIA put beside that CUDA.",
        group=IMAGE, allowed="a major version such as 8",
    )  # fmt: skip
    python_version: Annotated[str, _matching(r"3\.\d+", "not a minor version of Python 3")] = (
        setting("", "Python version. Empty: the distribution's own.", group=IMAGE, allowed="3.13")
    )
    mkl_mode: Onoff = setting(
        "include", "`include` checks for MKL in torch and preloads Intel's OpenMP.", group=IMAGE
    )
    tz: Annotated[str, AfterValidator(_timezone)] = setting(
        "UTC", "Time zone.", group=IMAGE, allowed="a name of the tz database, as Asia/Seoul"
    )
    project_root: Annotated[str, _PATH] = setting(
        "/opt/project", "Working folder in the container.", group=IMAGE, allowed="/opt/project"
    )

    linux_distro: str = setting("debian", "Distribution of the base.", group=BASE)
    distro_version: str = setting("", "Its version. Empty: the newest known here.", group=BASE)
    image_flavor: Literal["", "base", "runtime", "devel"] = setting(
        "", "Take the nvidia/cuda image of this flavor as base instead of the plain distribution.",
        group=BASE,
    )  # fmt: skip
    ngc_year: Annotated[str, _TWO_DIGITS] = setting(
        "", "Year of NVIDIA's PyTorch image, the base of the target ngc. Empty: with NGC_MONTH the "
        "newest known here.", group=BASE, allowed="two digits such as 25",
    )  # fmt: skip
    ngc_month: Annotated[str, _MONTH] = setting(
        "", "Its month.", group=BASE, allowed="two digits, 01 to 12"
    )
    base_source: Literal["auto", "image", "archive", "bootstrap"] = setting(
        "auto", "Where the base comes from: a registry, an OCI archive, or mmdebstrap from the "
        "machine's apt mirror. `auto`: the registry if it serves it, else bootstrap.", group=BASE,
    )  # fmt: skip
    base_image: Annotated[str, _REFERENCE] = setting(
        "", "Base image reference in place of the distribution's own (a mirror, a digest).",
        group=BASE, allowed="registry/name:tag or registry/name@sha256:…",
    )  # fmt: skip
    base_archive: str = setting(
        "", "Path of the OCI archive, if BASE_SOURCE=archive.", group=BASE, allowed="a file"
    )

    torch_source: Literal["", "index", "git", "archive", "apt", "path"] = setting(
        "", "Where torch comes from: a wheel of the package index, or source from a repository, a "
        "tarball, the distribution's source package, a folder. Empty: by BUILD_MODE, `index` or "
        "`git`.", group=SOURCES,
    )  # fmt: skip
    torch_url: Annotated[str, _PLACE] = setting(
        "", "Its repository, tarball (URL or path) or folder. Empty: upstream's repository.",
        group=SOURCES, allowed="a URL or a path",
    )  # fmt: skip
    torch_ref: Annotated[str, _TAG] = setting(
        "", "Its tag, branch or commit. Empty: PYTORCH_VERSION_TAG.", group=SOURCES,
        allowed="a tag, branch or commit",
    )  # fmt: skip
    torch_sha256: Annotated[str, _SHA256] = setting(
        "", "Hash of its tarball.", group=SOURCES, allowed="64 hexadecimal digits"
    )
    vision_source: Literal["", "index", "git", "archive", "apt", "path"] = setting(
        "", "Where torchvision comes from; as TORCH_SOURCE.", group=SOURCES
    )
    vision_url: Annotated[str, _PLACE] = setting(
        "", "As TORCH_URL.", group=SOURCES, allowed="a URL or a path"
    )
    vision_ref: Annotated[str, _TAG] = setting(
        "", "As TORCH_REF.", group=SOURCES, allowed="a tag, branch or commit"
    )
    vision_sha256: Annotated[str, _SHA256] = setting(
        "", "As TORCH_SHA256.", group=SOURCES, allowed="64 hexadecimal digits"
    )
    magma_source: Literal["auto", "archive", "git", "apt", "off"] = setting(
        "auto", "Where MAGMA comes from; `auto` decides by the torch version and says why.",
        group=SOURCES,
    )  # fmt: skip
    magma_release: Annotated[str, _VERSION] = setting(
        "", "MAGMA's release. Empty: the one that suits torch and CUDA.", group=SOURCES,
        allowed="2.9.0",
    )  # fmt: skip
    magma_url: Annotated[str, _PLACE] = setting(
        "", "As TORCH_URL.", group=SOURCES, allowed="a URL or a path"
    )
    magma_ref: Annotated[str, _TAG] = setting(
        "", "As TORCH_REF.", group=SOURCES, allowed="a tag, branch or commit"
    )
    magma_sha256: Annotated[str, _SHA256] = setting(
        "", "As TORCH_SHA256.", group=SOURCES, allowed="64 hexadecimal digits"
    )
    cuda_source: Literal["auto", "image", "apt", "wheels"] = setting(
        "auto", "Where the CUDA compiler comes from: the nvidia/cuda devel image, the "
        "distribution's packages, or the package index (CUDA 13).", group=SOURCES,
    )  # fmt: skip
    torch_flags: Annotated[str, _FLAGS] = setting(
        "", "Build flags of PyTorch beside those that Cresset sets, or against them.",
        group=COMPILE, allowed="NAME=value words, as USE_DISTRIBUTED=0 USE_FLASH_ATTENTION=0",
    )  # fmt: skip
    max_jobs: Annotated[str, _NUMBER] = setting(
        "", "Compile jobs. Empty: from the memory and the cores of the machine that compiles.",
        group=COMPILE, allowed="a number such as 8",
    )  # fmt: skip
    wheel_store: Literal["auto", "off"] = setting(
        "auto", "Keep compiled wheels, in REGISTRY beside the images, else in a folder of this "
        "machine, and take them from there.", group=COMPILE,
    )  # fmt: skip
    cache_url: Annotated[str, _CACHE] = setting(
        "", "Where compiled objects are shared. Empty: a folder of this machine.", group=COMPILE,
        allowed="redis://host:6379, http://host/path, s3://bucket/prefix, or a folder",
    )  # fmt: skip
    git_old: Annotated[str, _GIT] = setting(
        "", "Beginning of git URLs to replace, those of submodules too.", group=MIRRORS,
        allowed="https://github.com/",
    )  # fmt: skip
    git_new: Annotated[str, _GIT] = setting(
        "", "What to put in its place.", group=MIRRORS, allowed="https://git.example.com/mirror/"
    )
    index_url: Annotated[str, _URL] = setting(
        "", "Python package index in place of PyPI.", group=MIRRORS,
        allowed="https://host/simple",
    )  # fmt: skip
    extra_index_url: Annotated[str, _URL] = setting(
        "", "A second Python package index.", group=MIRRORS, allowed="https://host/simple"
    )
    trusted_host: str = setting(
        "", "Host of an index that speaks plain HTTP. TLS checks are never turned off.",
        group=MIRRORS, allowed="the host of an http:// index",
    )  # fmt: skip
    pytorch_index_url: Annotated[str, _URL] = setting(
        "", "Index of PyTorch wheels for a CUDA version that PyPI does not carry. Empty: "
        "PyTorch's own.", group=MIRRORS, allowed="https://host/whl/cu126",
    )  # fmt: skip
    npm_registry: Annotated[str, _URL] = setting(
        "", "npm registry in place of npm's own, for the prompt of the shell.", group=MIRRORS,
        allowed="https://host/npm/",
    )  # fmt: skip
    deb_old: Annotated[str, _URL, _NO_USERINFO] = setting(
        "", "Text to replace in the apt sources.", group=MIRRORS, allowed="http://host"
    )
    deb_new: Annotated[str, _URL, _NO_USERINFO, _NO_TLS] = setting(
        "", "What to put in its place.", group=MIRRORS, allowed="http://host"
    )

    ca_bundle: str = setting(
        "", "CAs to trust beside the machine's own: in the local engine's builds, in containers, "
        "of registries.",
        group=MIRRORS, allowed="a PEM file",
    )  # fmt: skip
    bundle: str = setting(
        "", "Bundle to take everything from that a build fetches, in place of the network.",
        group=MIRRORS, allowed="a file that `bundle export` wrote",
    )  # fmt: skip

    registry: Annotated[str, _REGISTRY, _PORT] = setting(
        "", "Registry to publish to. Empty: into Docker if it answers, else a file in dist/.",
        group=DELIVERY, allowed="ghcr.io/team or localhost:5000",
    )  # fmt: skip
    image_name: Annotated[str, _IMAGE_NAME] = setting(
        "cresset", "Name of the image, and an extra tag after a colon; made lower case.",
        group=DELIVERY, allowed="cresset or cresset:my-tag",
    )  # fmt: skip
    compression: Literal["gzip", "zstd", "uncompressed"] = setting(
        "gzip", "Compression of the layers; zstd needs Docker 23 or newer to pull.", group=DELIVERY
    )
    attest: Literal["auto", "off"] = setting(
        "auto", "Attach SBOM and provenance to what is delivered, and a signature if there is a "
        "key or, in a workflow that may have a token, cosign.", group=DELIVERY,
    )  # fmt: skip
    sign_key: str = setting(
        "", "File of the private key to sign with; COSIGN_PASSWORD opens an encrypted one.",
        group=DELIVERY, allowed="a file in PEM, ECDSA, P-256",
    )  # fmt: skip

    engine: Literal["auto", "session", "remote", "docker", "local"] = setting(
        "auto", "Which Dagger engine builds; `auto` takes the first that answers.", group=ENGINE
    )
    engines: Annotated[str, _ENGINES] = setting(
        "", "Engines that share the cells of a matrix; one image is built by the first that "
        "answers. Empty: the one that ENGINE chooses.", group=ENGINE,
        allowed="local, unix:///path, tcp://host:port, tls://host:port?ca_path=FILE&cert_path=FILE"
        "&key_path=FILE, ssh://user@host, kube-pod://pod?namespace=NAME",
    )  # fmt: skip

    uid: Annotated[str, _NUMBER] = setting(
        "", "User id in the container.", group=START, allowed="a number such as 1000"
    )
    gid: Annotated[str, _NUMBER] = setting(
        "", "Group id in the container.", group=START, allowed="a number such as 1000"
    )
    usr: Annotated[str, _NAME] = setting(
        "", "User name in the container.", group=START, allowed="a letter, then letters and digits"
    )
    grp: Annotated[str, _NAME] = setting(
        "", "Group name in the container.", group=START, allowed="a letter, then letters and digits"
    )
    add_user: Onoff = setting("include", "`exclude` starts the container as root.", group=START)
    sudo: Onoff = setting("exclude", "`include` lets the user become root by sudo.", group=START)
    host_root: str = setting(".", "Folder of this machine mounted as PROJECT_ROOT.", group=START)
    network_mode: Literal["host", "bridge", "none"] = setting(
        "host", "Network of the container; `host` is this machine's own.", group=START
    )
    shm_size: Annotated[str, _SIZE] = setting(
        "8gb", "Shared memory where the container has its own (WSL, rootless).", group=START,
        allowed="a size such as 8gb",
    )  # fmt: skip
    ssh_port: Annotated[str, _NUMBER] = setting(
        "", "Port of loopback on which to serve ssh. Empty: none.", group=START, allowed="2222"
    )
    ssh_keys: str = setting(
        "", "File of the public keys that ssh lets in. Empty: ~/.ssh/authorized_keys.",
        group=START, allowed="a file",
    )  # fmt: skip
    jupyter_port: Annotated[str, _NUMBER] = setting(
        "", "Port of loopback on which to serve JupyterLab. Empty: none.", group=START,
        allowed="8888",
    )  # fmt: skip
    # Any text: bash's own, which a user may have exported, can be -1 or a word.
    histsize: str = setting(
        "50000", "Commands that zsh remembers.", group=START, allowed="a number"
    )
    tmux_hist_limit: Annotated[str, _NUMBER] = setting(
        "50000", "Lines that tmux keeps of each pane.", group=START, allowed="a number"
    )
    verify_key: str = setting(
        "", "File of the public key that must have signed an image and its provenance. `verify` "
        "demands it, and so do `up` and `run`, with all of `verify --shallow`, before they start a "
        "container. Empty: nobody asks.", group=START,
        allowed="a file in PEM, ECDSA, P-256",
    )  # fmt: skip
    image: Annotated[str, _REFERENCE] = setting(
        "", "Image of the services train and full; `build` writes it down. Empty: the tag of these "
        "settings.", group=START, allowed="repository:tag or repository:tag@sha256:…",
    )  # fmt: skip
    image_devel: Annotated[str, _REFERENCE] = setting(
        "", "As IMAGE, of the service devel.", group=START, allowed="as IMAGE"
    )
    image_simple: Annotated[str, _REFERENCE] = setting(
        "", "As IMAGE, of the service simple.", group=START, allowed="as IMAGE"
    )
    image_ngc: Annotated[str, _REFERENCE] = setting(
        "", "As IMAGE, of the service ngc.", group=START, allowed="as IMAGE"
    )
    project: Annotated[str, _matching(r"[a-z0-9][a-z0-9_-]*", "not a Compose project name")] = (
        setting("", "Compose project name.", group=START, allowed="lower case, digits, - and _")
    )
    command: str = setting("", "Command of an interactive shell.", group=START)


NAMES: Mapping[str, FieldInfo] = {
    name.upper(): field for name, field in Settings.model_fields.items()
}
"""Every setting by the name users know."""

ALIASES: Mapping[str, str] = {"CCC": "CCA"}
"""The original renamed CCA to CCC in 2024; both are read."""

RETIRED: Mapping[str, str] = {
    "BUILD_TEST": "tests are never compiled into an image",
    "CONDA_MANAGER": "packages come by uv, not conda",
    "CONDA_URL": "packages come by uv, not conda",
    "GIT_IMAGE": "the engine fetches git sources itself",
    "HOST_NAME": "it named the container in an early version",
    "IMAGE_NAME_FULL": "use IMAGE_NAME",
    "INTERACTIVE_MODE": "every image can be published; the user is applied at start",
    "LOCK_MODE": "conda-lock went with conda",
    "MAGMA_VERSION": "MAGMA follows CUDA and PyTorch by itself; MAGMA_RELEASE chooses another",
    "PYTORCH_FETCH_NIGHTLY": "nightly wheels are not in the compatibility tables",
    "TARGET_STAGE": "name the target instead: `python -m pipeline build simple`",
    "TORCHAUDIO_VERSION_TAG": "list torchaudio in reqs/pip-train.requirements.txt",
    "TORCHTEXT_VERSION_TAG": "list torchtext in reqs/pip-train.requirements.txt",
}
"""Variables of the original that no longer do anything, and what does it now."""

ADDRESSES = {
    "BASE_IMAGE", "CACHE_URL", "DEB_NEW", "DEB_OLD", "EXTRA_INDEX_URL", "GIT_NEW", "GIT_OLD",
    "INDEX_URL", "MAGMA_URL", "NPM_REGISTRY", "PYTORCH_INDEX_URL", "REGISTRY", "TORCH_URL",
    "TRUSTED_HOST", "VISION_URL",
}  # fmt: skip

HIDDEN = "***"
"""What stands in a message in place of something that may be a secret."""

_COMPOSE_OWN = re.compile(r"(COMPOSE|DOCKER|NVIDIA|DAGGER|_EXPERIMENTAL_DAGGER)_\w+")
"""Keys of ``.env`` that belong to the programs which read the same file."""


@dataclass(frozen=True)
class Loaded:
    """The settings, where each came from, and what the user should know of the ``.env`` file."""

    settings: Settings
    origins: Mapping[str, Origin]
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    """Mistakes; the settings hold the default in place of each wrong value."""


def load(
    flags: Mapping[str, str | None] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    env_file: Path = ENV_FILE,
) -> Loaded:
    """Return the settings by precedence flag > shell > ``.env`` > default.

    An empty value counts as not set, as in Compose's ``${NAME:-default}``. Mistakes are collected
    and not raised, so that the user hears of them together with what is only found later.
    """
    in_file, problems, notes = _read_env_file(env_file)
    layers = (
        (Origin.FLAG, {k.upper(): v for k, v in (flags or {}).items() if v}),
        (Origin.SHELL, _with_aliases(os.environ if environ is None else environ)),
        (Origin.FILE, in_file),
    )
    values: dict[str, str] = {}
    origins: dict[str, Origin] = {}
    for name in NAMES:
        origin, value = next(
            ((origin, layer[name]) for origin, layer in layers if layer.get(name)),
            (Origin.DEFAULT, ""),
        )
        origins[name] = origin
        if value:
            values[name.lower()] = value
    settings, wrong = _valid(values, origins)
    return Loaded(settings, origins, tuple(notes), (*problems, *wrong))


def _valid(
    values: Mapping[str, str], origins: Mapping[str, Origin]
) -> tuple[Settings, list[Problem]]:
    """Return the settings that are right, every other at its default, and what is wrong."""
    try:
        return Settings.model_validate(values), []
    except ValidationError as error:
        details = error.errors()
    names = {str(detail["loc"][0]) for detail in details}
    right = {name: value for name, value in values.items() if name not in names}
    return Settings.model_validate(right), [_problem(detail, origins) for detail in details]


def accepted(name: str, value: str) -> str | Problem:
    """Return a value as its setting takes it, or the problem of one that it does not take."""
    made, wrong = _valid({name.lower(): value}, {name: Origin.FILE})
    return wrong[0] if wrong else str(getattr(made, name.lower()))


def refusal(name: str, value: str) -> Problem | None:
    """Return the problem of a value that a setting would not take."""
    answer = accepted(name, value)
    return answer if isinstance(answer, Problem) else None


def _with_aliases(values: Mapping[str, str]) -> dict[str, str]:
    found = {name: values[name] for name in NAMES if name in values}
    for alias, name in ALIASES.items():
        if alias in values:
            found.setdefault(name, values[alias])
    return found


def _read_env_file(path: Path) -> tuple[dict[str, str], list[Problem], list[str]]:
    from dotenv.parser import parse_stream  # noqa: PLC0415 - only where there is a file

    if not path.exists():
        return {}, [], []
    try:
        # Some editors on Windows begin a file with a byte order mark.
        with path.open(encoding="utf-8-sig") as file:
            bindings = list(parse_stream(file))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        next_step = f"mend it, or move it away and let `env` write a new {path}"
        return {}, [Problem(str(path), "", f"cannot be read: {reason}", next_step=next_step)], []
    read: dict[str, str] = {}
    problems: list[Problem] = []
    notes: list[str] = []
    for binding in bindings:
        if binding.key is not None and binding.value is not None:
            read[binding.key] = binding.value
        elif binding.error or binding.key is not None:
            text = binding.original.string
            line = binding.original.line + text[: -len(text.lstrip())].count("\n")
            form = "NAME=value, with an optional # comment"
            where = f"{path}:{line}"
            problems.append(Problem(where, _name_only(text.strip()), "not a setting", allowed=form))
    for key in read:
        if key in NAMES or key in ALIASES or _COMPOSE_OWN.fullmatch(key):
            continue
        if key in RETIRED:
            notes.append(f"{path}: {key} is not used any more: {RETIRED[key]}")
        elif re.fullmatch(r"USE_\w+|BUILD_\w+", key):
            notes.append(f"{path}: {key} goes into TORCH_FLAGS, for where PyTorch is compiled")
        else:
            nearest = difflib.get_close_matches(key.upper(), list(NAMES), 1, 0.6)
            problems.append(
                Problem(
                    key,
                    HIDDEN,
                    f"{path} has a variable that Cresset does not know",
                    next_step=f"did you mean {nearest[0]}?" if nearest else "take the line out",
                )
            )
    return _with_aliases(read), problems, notes


def allowed_values(field: FieldInfo) -> str:
    """Return what a setting may hold, in words: its choices, or the form it takes."""
    choices = getattr(field.annotation, "__args__", None)
    if choices:
        return ", ".join(choice or "(empty)" for choice in choices)
    return str(cast("dict[str, str]", field.json_schema_extra)["allowed"])


def group_of(field: FieldInfo) -> str:
    """Return the heading under which help and documents list a setting."""
    return str(cast("dict[str, str]", field.json_schema_extra)["group"])


def shown(value: str, name: str = "") -> str:
    """Return a value as it may be printed: without the user and password that a URL can hold.

    A user alone can be a token, and a password can hold any character, so all goes up to the last
    ``@``. With the `name` of a setting that is an address this holds without a scheme too.
    """
    if name in ADDRESSES:
        # But not the name of an image before its digest.
        return re.sub(r"^(\w*://)?.*@(?!sha256:)", rf"\1{HIDDEN}@", value, flags=re.DOTALL)
    return re.sub(r"://\S*@", f"://{HIDDEN}@", value)


def _name_only(line: str) -> str:
    """Return a line of the file as it may be printed: any value in it may be a secret."""
    match = re.match(r"(?:export\s+)?['\"]?([A-Za-z_]\w*)['\"]?\s*(=?)", line)
    # Without an equals sign a word may be anything, such as the second half of a secret.
    if match is None or not (match[2] or match[1] in NAMES or match[1] in ALIASES):
        return HIDDEN
    rest = line[match.end() :].strip()
    return match[0].rstrip() + (HIDDEN if rest else "")


def _problem(detail: Any, origins: Mapping[str, Origin]) -> Problem:  # noqa: ANN401 - pydantic's ErrorDetails
    name = str(detail["loc"][0]).upper()
    value = str(detail["input"])
    why = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "literal_error":
        why = "not one of the choices" + _nearest(value, NAMES[name].annotation.__args__)  # type: ignore[union-attr]
    return Problem(
        name,
        shown(value, name),
        f"{why} (from {'the ' if origins[name] is Origin.SHELL else ''}{origins[name]})",
        allowed=allowed_values(NAMES[name]),
    )
