"""What the tests of whole builds share: a checkout, the command line as users run it, registries.

Builds run in the machine's own local engine, whose cache makes all but the first of them quick.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine import local
from pipeline.settings import ALIASES, NAMES
from tests import services

ROOT = Path(__file__).parents[2]
BUILD_SECONDS = 1800
ENV = shutil.which("env") or "env"


@dataclass(frozen=True)
class Ran:
    """A command that has ended."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def json(self) -> dict[str, Any]:
        """What ``--json`` printed."""
        content: dict[str, Any] = json.loads(self.out)
        return content

    @property
    def log(self) -> str:
        """What is in the log file that standard error names first."""
        return Path(self.err.partition("log: ")[2].splitlines()[0]).read_text()


class Running:
    """A command that runs, in a process group of its own as a terminal's."""

    def __init__(self, args: tuple[str, ...], folder: Path, env: Mapping[str, str]) -> None:
        self._begun = time.monotonic()
        # A shell starts what it puts into the background, these tests perhaps, deaf to SIGINT.
        self.process = subprocess.Popen(
            (ENV, "--default-signal=INT", *args),
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all of it, as a terminal does."""
        os.killpg(self.process.pid, number)

    def end(self, timeout: float = BUILD_SECONDS) -> Ran:
        """Wait for it; one that takes too long is killed, and the test fails."""
        try:
            out, err = self.process.communicate(timeout=timeout)
        finally:
            if self.process.poll() is None:
                self.signal(signal.SIGKILL)
        return Ran(self.process.returncode, out, err, time.monotonic() - self._begun)


@dataclass(frozen=True)
class Checkout:
    """A folder to build in, with small requirements, and the command line run in it."""

    path: Path
    environment: Mapping[str, str]
    wrapper: tuple[str, ...] = ()
    """A command line that runs the command line."""

    @property
    def reqs(self) -> Path:
        return self.path / "reqs"

    @property
    def pip_train(self) -> Path:
        return self.reqs / "pip-train.requirements.txt"

    def start(self, *args: str, **env: str) -> Running:
        """Start ``cresset`` with `env` set."""
        argv = (*self.wrapper, sys.executable, "-m", "pipeline", *args)
        return Running(argv, self.path, {**self.environment, **env})

    def cresset(self, *args: str, **env: str) -> Ran:
        """Run ``cresset`` to its end."""
        return self.start(*args, **env).end()

    def require(self, line: str) -> None:
        """Add a line to pip-train."""
        with self.pip_train.open("a") as file:
            file.write(f"{line}\n")

    def require_something_new(self) -> str:
        """Add a package to pip-train that no engine has seen; return its name."""
        wheel = make_wheel(self.reqs, new_name())
        self.require(f"./{wheel.name}")
        return wheel.name.partition("-")[0]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """Return a checkout whose image is small, in an environment without this machine's settings."""
    return small_checkout(tmp_path)


def small_checkout(tmp_path: Path) -> Checkout:
    """Return such a checkout, below a folder that is its own."""
    path = tmp_path / "checkout"
    shutil.copytree(ROOT / "reqs", path / "reqs")
    (path / "reqs/apt-train.requirements.txt").write_text("less\n")
    (path / "reqs/pip-train.requirements.txt").write_text("")
    logins = tmp_path / "docker"
    logins.mkdir()
    ours = {*NAMES, *ALIASES, "NO_COLOR", "FORCE_COLOR"} - {"TZ"}
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ours and not name.startswith(("DAGGER_", "_EXPERIMENTAL_DAGGER", "OTEL_"))
    }
    nobody = {"DOCKER_HOST": f"unix://{tmp_path}/no-docker", "DOCKER_CONFIG": str(logins)}
    return Checkout(path, {**kept, **nobody, "ENGINE": "local", "TZ": "UTC"})


@pytest.fixture
def figure(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Return what prints a measured figure among the results, for a document or a closing note."""

    def show(text: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n    {text}\n")

    return show


def new_name() -> str:
    """Return a package name that nobody has used."""
    return f"cresset_test_{uuid.uuid4().hex[:12]}"


def make_wheel(folder: Path, name: str, files: Mapping[str, str] | None = None) -> Path:
    """Write a wheel of one module, and of more `files`, into `folder`."""
    info = f"{name}-1.0.dist-info"
    content = {
        f"{name}.py": "here = True\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        **(files or {}),
    }
    content[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*content, f"{info}/RECORD"])
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in content.items():
            wheel.writestr(file, text)
    return path


@pytest.fixture(scope="session")
def registry_folder() -> Iterator[Path]:
    """Yield where the registry keeps what is pushed to it; it goes at the end."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def registry(registry_folder: Path) -> Iterator[str]:
    """Yield a registry that anybody may push to."""
    with services.registry(registry_folder) as host:
        yield host


@pytest.fixture(scope="session")
def private_registry() -> Iterator[str]:
    """Yield a registry that knows ``somebody`` by the password ``right``."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        htpasswd = Path(folder, "htpasswd")
        # "right" by bcrypt, the only form that the registry takes.
        htpasswd.write_text(
            "somebody:$2y$05$zICwPCYKJe.QfKj7bKHQrOov7IoOEksI28kAUyHFPTWDKZ88KTkF6\n"
        )
        with services.registry(Path(folder), htpasswd=htpasswd) as host:
            yield host


@pytest.fixture
def repository(registry: str) -> str:
    """Return a folder of the registry, for REGISTRY, in which nothing is."""
    return f"{registry}/{new_name()}"


def tags(registry: str) -> list[str]:
    """Return the tags of the image that was delivered to `registry`, none if none was."""
    host, _, path = registry.partition("/")
    try:
        found: list[str] = json.loads(_get(host, f"{path}/cresset/tags/list"))["tags"]
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        return []
    return found


@dataclass(frozen=True)
class Pulled:
    """An image as a registry serves it, read without Dagger and without Docker."""

    host: str
    name: str
    digest: str
    manifest: dict[str, Any]
    about: dict[str, Any]
    login: str = ""

    @classmethod
    def of(cls, ref: str, login: str = "") -> Pulled:
        """Pull ``host/name:tag@digest``, as a ``user:password`` where one is named."""
        host, _, rest = ref.partition("/")
        name, _, digest = rest.partition("@")
        name = name.partition(":")[0]
        manifest = json.loads(_get(host, f"{name}/manifests/{digest}", login))
        about = json.loads(_get(host, f"{name}/blobs/{manifest['config']['digest']}", login))
        return cls(host, name, digest, manifest, about, login)

    @staticmethod
    def tags(repository: str, login: str = "") -> list[str]:
        """Return the tags of a repository."""
        host, _, path = repository.partition("/")
        found: list[str] = json.loads(_get(host, f"{path}/tags/list", login))["tags"]
        return found

    @property
    def config(self) -> dict[str, Any]:
        """What a container of it starts with."""
        config: dict[str, Any] = self.about["config"]
        return config

    @property
    def env(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.config["Env"])

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Yield path and content of each file of each layer."""
        for layer in self.manifest["layers"]:
            blob = _get(self.host, f"{self.name}/blobs/{layer['digest']}", self.login)
            if layer["mediaType"].endswith("gzip"):
                blob = gzip.decompress(blob)
            with tarfile.open(fileobj=io.BytesIO(blob)) as tar:
                for member in tar:
                    if content := tar.extractfile(member) if member.isfile() else None:
                        yield member.name, content.read()


def _get(host: str, path: str, login: str = "") -> bytes:
    headers = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    if login:
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    request = urllib.request.Request(f"http://{host}/v2/{path}", headers=headers)
    with urllib.request.urlopen(request) as response:  # noqa: S310 - as above
        content: bytes = response.read()
        return content


_VISION_SOURCE = """
import asyncio, sys
import dagger
from dagger import dag
from pathlib import Path
from pipeline.host.bootstrap import base_archive
from pipeline.settings import load
from pipeline.spec import SourceSpec
from pipeline.stages.base import base_from_archive
from pipeline.stages.source import source, source_tools
from pipeline.validate import image_spec

async def main():
    spec = image_spec(load({}, environ={}).settings, "simple")
    async with dagger.connection(dagger.Config(log_output=sys.stderr, retry=None)):
        base = base_from_archive(str(base_archive(spec.base, print)))
        tools = source_tools(base, spec.base)
        package = SourceSpec(kind="apt", location="pytorch-vision")
        await source(package, tools, spec.base).export(sys.argv[1])

asyncio.run(main())
"""


def vision_source(folder: Path) -> Path:
    """Write the source of torchvision, as Debian has it, to a folder, and return that."""
    endpoint = local.ensure(print)
    dagger = {
        "_EXPERIMENTAL_DAGGER_RUNNER_HOST": endpoint.runner_host,
        "_EXPERIMENTAL_DAGGER_CLI_BIN": str(endpoint.session_bin),
    }
    argv = [sys.executable, "-c", _VISION_SOURCE, str(folder)]
    subprocess.run(argv, env={**os.environ, **dagger}, check=True)
    return folder
