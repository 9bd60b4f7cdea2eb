"""What a stage gets beside its spec: files of the checkout, and where packages come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dagger import Container, Directory, File, Secret, dag

from pipeline.reqs import PIP_BUILD, PIP_MKL

_INDEX = "PIP_INDEX_URL"


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
    trusted_host: str = ""
    """The host of an index without TLS, which pip refuses to use unless it is named."""

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

    def _variables(self) -> list[tuple[Secret, tuple[str, str]]]:
        pairs = (
            (self.index, (_INDEX, "UV_DEFAULT_INDEX")),
            (self.extra_index, ("PIP_EXTRA_INDEX_URL", "UV_INDEX")),
        )
        return [(secret, names) for secret, names in pairs if secret is not None]


@dataclass(frozen=True)
class Inputs:
    """The requirements files, each apart so that a change in one touches only what reads it."""

    pip_train: Directory
    pip_build: File
    pip_mkl: File
    network: Network


def inputs(
    folder: Path,
    pip_train: Sequence[str],
    *,
    index_url: str = "",
    extra_index_url: str = "",
    torch_index_url: str = "",
    trusted_host: str = "",
) -> Inputs:
    """Return the inputs of a build: of `folder`, the files read and nothing else are sent.

    `pip_train` names the requirements file of the image and those it includes.
    """
    host = dag.host()
    return Inputs(
        pip_train=host.directory(str(folder), include=list(pip_train)),
        pip_build=host.file(str(folder / PIP_BUILD)),
        pip_mkl=host.file(str(folder / PIP_MKL)),
        network=Network(
            index=_secret("index-url", index_url),
            extra_index=_secret("extra-index-url", extra_index_url),
            torch_index=_secret("torch-index-url", torch_index_url),
            trusted_host=trusted_host,
        ),
    )


def _secret(name: str, value: str) -> Secret | None:
    # Cached by its name: a mirror, or a new password for it, rebuilds nothing.
    return dag.set_secret(f"cresset-{name}", value) if value else None
