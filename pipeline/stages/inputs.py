"""What a stage gets beside its spec: files of the checkout, and where packages come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dagger import Container, Directory, File, Secret, Socket, dag

from pipeline.reqs import BUILD_MKL, PIP_BUILD, PIP_CHECK, PIP_MKL, PIP_NPM

_INDEX = "PIP_INDEX_URL"


@dataclass(frozen=True)
class Access:
    """How this machine reaches repositories. Nothing of it changes what comes out of them.

    A mirror, and a password for it, are out of the layers, the logs and the cache key.
    """

    instead_of: tuple[str, str] | None = None
    """The beginning of URLs to replace, and its replacement."""
    trusted_host: str = ""
    """The one host, beside loopback, that may be spoken to without TLS."""
    ssh_agent: Socket | None = None
    known_hosts: str = ""
    """What ``~/.ssh/known_hosts`` holds: a host that is not in it is refused."""


@dataclass(frozen=True)
class Network:
    """The package indexes of this machine; None leaves pip's and uv's own default.

    An index URL may hold a password, so it travels as a secret: out of the layers, the logs and
    the cache key, which makes a mirror and the index it mirrors one and the same build.
    """

    index: Secret | None = None
    extra_index: Secret | None = None
    torch_index: Secret | None = None
    """Where the wheels of torch are, if not where everything else is."""
    torch_beside: bool = False
    """Whether that is one of the extra indexes instead, as where hashes tell what is taken."""
    npm: Secret | None = None
    """npm's registry."""
    trusted_host: str = ""
    """The host of an index without TLS, which pip refuses to use unless it is named."""
    git: Access = field(default_factory=Access)

    def for_packages(self, container: Container) -> Container:
        """Return the container with the indexes in the variables that pip and uv read."""
        if self.trusted_host:
            container = container.with_volatile_variable("PIP_TRUSTED_HOST", self.trusted_host)
        for secret, names in self._variables():
            for name in names:
                container = container.with_secret_variable(name, secret)
        return container

    def for_torch(self, container: Container) -> Container:
        """Return the container with the index of PyTorch's wheels in place of the usual one.

        `out_of` takes it out again, or everything after would be looked for there too.
        """
        ready = self.for_packages(container)
        if self.torch_index is None:
            return ready
        return ready.with_secret_variable(_INDEX, self.torch_index)

    def out_of(self, container: Container) -> Container:
        """Return the container without those variables."""
        if self.trusted_host:
            container = container.without_volatile_variable("PIP_TRUSTED_HOST")
        names = {name for _, names in self._variables() for name in names}
        if self.torch_index is not None:
            names.add(_INDEX)
        for name in sorted(names):
            container = container.without_secret_variable(name)
        return container

    def _variables(self) -> list[tuple[Secret, tuple[str, ...]]]:
        pairs = (
            (self.index, (_INDEX, "UV_DEFAULT_INDEX")),
            (self.extra_index, ("PIP_EXTRA_INDEX_URL", "UV_INDEX")),
            (self.npm, ("npm_config_registry",)),
        )
        return [(secret, names) for secret, names in pairs if secret is not None]


@dataclass(frozen=True)
class Compiling:
    """What a compile may use, none of which changes what comes out."""

    jobs: str = ""
    """``MAX_JOBS``; empty: from memory and cores, where it runs."""
    deadline: float = 0
    """When to stop in good order, in seconds since the epoch; 0: never."""
    cache: Secret | None = None
    """Where compiled objects are kept beside the engine's own volume, as ccache takes it."""

    def limits(self) -> dict[str, str]:
        """Return the variables that ``compile.py`` reads.

        All of them, always: their values are not in the engine's cache key, but their names are.
        """
        return {"MAX_JOBS": self.jobs, "CRESSET_DEADLINE": str(self.deadline or "")}


@dataclass(frozen=True)
class Inputs:
    """The requirements files, each apart so that a change in one touches only what reads it."""

    pip_train: Directory
    pip_build: File
    pip_mkl: File
    pip_check: File
    pip_npm: File
    build_mkl: File
    network: Network
    folder: Path
    """``reqs/``, of which the build tools of one torch era are read."""
    compiling: Compiling = field(default_factory=Compiling)
    untracked: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """What is not to be sent of each folder that a source is in."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Files of this machine with what a bundle has of the sources, by `SourceSpec.tarball`."""

    def build_tools(self, name: str) -> File:
        """Return the requirements file of that name, with the build tools of a torch era."""
        return dag.host().file(str(self.folder / name))


def inputs(
    folder: Path,
    pip_train: Sequence[str],
    *,
    index_url: str = "",
    extra_index_url: str = "",
    torch_index_url: str = "",
    torch_beside: bool = False,
    npm_registry: str = "",
    trusted_host: str = "",
    git: Access | None = None,
) -> Inputs:
    """Return the inputs of a build: of `folder`, the files read and nothing else are sent.

    `pip_train` names the requirements file of the image and those it includes. With `torch_beside`
    the index of torch's wheels is one of all packages.
    """
    host = dag.host()
    torch_beside = torch_beside and bool(torch_index_url)
    if torch_beside:
        extra_index_url = f"{extra_index_url} {torch_index_url}".strip()
        torch_index_url = ""
    return Inputs(
        pip_train=host.directory(str(folder), include=list(pip_train)),
        pip_build=host.file(str(folder / PIP_BUILD)),
        pip_mkl=host.file(str(folder / PIP_MKL)),
        pip_check=host.file(str(folder / PIP_CHECK)),
        pip_npm=host.file(str(folder / PIP_NPM)),
        build_mkl=host.file(str(folder / BUILD_MKL)),
        folder=folder,
        network=Network(
            index=_secret("index-url", index_url),
            extra_index=_secret("extra-index-url", extra_index_url),
            torch_index=_secret("torch-index-url", torch_index_url),
            torch_beside=torch_beside,
            npm=_secret("npm-registry", npm_registry),
            trusted_host=trusted_host,
            git=git or Access(),
        ),
    )


def finished_wheel(folder: Path, package: str) -> Directory:
    """Return the directory with the wheel of a package that lies in a folder of this machine."""
    return dag.host().directory(str(folder), include=[f"{package}-*.whl"])


def git_access(
    *, instead_of: tuple[str, str], trusted_host: str, agent: str, known_hosts: Path
) -> Access:
    """Return how the user of this machine reaches repositories; `agent` is a socket's path."""
    return Access(
        instead_of=instead_of if instead_of[1] else None,
        trusted_host=trusted_host,
        ssh_agent=dag.host().unix_socket(agent) if Path(agent).is_socket() else None,
        known_hosts=known_hosts.read_text() if known_hosts.is_file() else "",
    )


def _secret(name: str, value: str) -> Secret | None:
    # Cached by its name: a mirror, or a new password for it, rebuilds nothing.
    return dag.set_secret(f"cresset-{name}", value) if value else None
