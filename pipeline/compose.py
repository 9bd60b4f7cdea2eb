"""Dev containers, by Docker Compose and the files of ``compose/``: which, and what is in them.

python-on-whales drives Compose; what hands the terminal over turns into Docker's own client.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pipeline import tags
from pipeline.errors import ComposeError, ConfigError, CressetError
from pipeline.settings import START, Settings, group_of

if TYPE_CHECKING:
    from pipeline.host.machine import Machine
    from pipeline.host.network import Network

FOLDER: Final = Path("compose")
BASE: Final = FOLDER / "compose.yaml"
ROOT: Final = Path(".compose.yaml")
OVERRIDE: Final = Path("docker-compose.override.yaml")
ENTER: Final = "/usr/local/bin/enter"
"""The entrypoint of every image, by which a running container is entered as the user too.

By its path: root should find no other program of that name on a PATH that the user writes to.
"""
FIXES: Final = "/usr/local/bin/fixes"
MISSING: Final = "missing/run-make-build"
"""Stands for the image of a service that is not wanted and that the settings don't make."""

IMAGES: Final[Mapping[str, str]] = {
    "train": "IMAGE", "devel": "IMAGE_DEVEL", "simple": "IMAGE_SIMPLE", "ngc": "IMAGE_NGC",
}  # fmt: skip
"""The setting that names the image of each service."""

_FIRST_SECONDS: Final = 0.4
"""After this a command that cannot run at all has ended."""
_CDI_GPU: Final = "nvidia.com/gpu"
_GPUS_SINCE: Final = (19, 3)
"""The first Docker that gives a container GPUs without a runtime of NVIDIA's."""


def files(
    settings: Settings,
    machine: Machine | None,
    folder: Path,
    named: str = "",
    network: Network | None = None,
) -> tuple[Path, ...]:
    """Return the Compose files, each after those that it changes; the last is the user's own.

    Those for the GPUs and the memory of a `machine` come from it, unless COMPOSE_FILE has `named`
    what to take; without either they are left out, which changes nothing for what runs already.
    So it is with that for a `network` of which a container has to be told.
    """
    if named:
        found = [Path(name) for name in named.split(os.pathsep)]
    else:
        of_machine = (_gpu(machine), *_memory(machine)) if machine else ()
        found = [ROOT, BASE, *(FOLDER / name for name in of_machine if name)]
    wanted = {"ssh.yaml": settings.ssh_port, "jupyter.yaml": settings.jupyter_port}
    if network is not None:
        wanted["network.yaml"] = "own" if network.is_own else ""
    for name, is_wanted in wanted.items():
        # COMPOSE_FILE may name it from a time when it was wanted.
        found = [file for file in found if file != FOLDER / name]
        found += [FOLDER / name] if is_wanted else []
    if (folder / OVERRIDE).is_file():
        found = [file for file in found if file != OVERRIDE] + [OVERRIDE]
    return tuple(dict.fromkeys(found))


def here() -> Path:
    """Return the folder that the user is in; CressetError if it is gone."""
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise CressetError(
            "this folder is gone: nothing can be read in it, and nothing written",
            next_step="go to a checkout, or into the folder again if there is another of its name",
        ) from error


def check_folder(folder: Path) -> None:
    """Raise ComposeError where there are no Compose files of ours."""
    if not (folder / BASE).is_file():
        raise ComposeError(
            f"there is no {BASE} in {folder}", next_step="run it in a checkout of Cresset"
        )


def named_files(environ: Mapping[str, str], env_file: Path) -> str:
    """Return COMPOSE_FILE, which goes before what we would choose; empty if nobody has set it."""
    from dotenv import dotenv_values  # noqa: PLC0415 - as in settings

    return environ.get("COMPOSE_FILE") or dotenv_values(env_file).get("COMPOSE_FILE") or ""


def _gpu(machine: Machine) -> str:
    """Return the file that gives containers this machine's GPUs, if anything here can."""
    nvidia, docker, toolkit = machine.nvidia, machine.docker, machine.toolkit
    if nvidia is None or not (nvidia.gpus or nvidia.libraries) or docker is None:
        return ""
    by_cdi = any(it.startswith(_CDI_GPU) for it in docker.cdi_devices)
    if by_cdi or (docker.podman and toolkit is not None and toolkit.specs):
        return "gpu-cdi.yaml"
    numbers = tuple(map(int, re.findall(r"\d+", docker.server)[:2]))
    if "nvidia" in docker.runtimes and numbers < _GPUS_SINCE:
        return "gpu-runtime.yaml"
    has_toolkit = toolkit is not None and bool(toolkit.version)
    return "gpu.yaml" if has_toolkit or "nvidia" in docker.runtimes else ""


def _memory(machine: Machine) -> tuple[str, ...]:
    docker = machine.docker
    if docker is not None and (docker.rootless or docker.podman):
        return ("rootless.yaml",)
    return ("wsl.yaml",) if machine.wsl else ()


def doubts(settings: Settings, machine: Machine, it: Project, made: str) -> Iterator[str]:
    """Yield what in ``.env`` may have been right once: its COMPOSE_FILE, and its IMAGE.

    `made` is the image that the settings make by themselves, empty where they make none.
    """
    gpu = _gpu(machine)
    if gpu and not any(file.name.startswith("gpu") for file in it.files):
        yield (
            f"COMPOSE_FILE has no file for the GPUs of this machine: add {FOLDER / gpu} to it, "
            "or take it out of .env"
        )
    named = it.image.partition("@")[0]
    of_ours = made.rpartition(":")[0] == named.rpartition(":")[0]
    if getattr(settings, IMAGES[it.service].lower()) and made and of_ours and made != named:
        yield (
            f"{IMAGES[it.service]} names {named}, and these settings make {made}: "
            "`make build` makes it, and writes it down"
        )


def service_of(settings: Settings) -> str:
    """Return the service that SERVICE means."""
    return settings.service.replace("full", "train")


def project_name(settings: Settings, folder: Path, user_name: str) -> str:
    """Return PROJECT, by default of the folder and the user: others have theirs beside it."""
    name = settings.project or f"{folder.name}-{user_name}"
    return re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_") or "cresset"


def image_of(settings: Settings, service: str, variant: Callable[[str], str]) -> str:
    """Return the image of a service: the setting that names it, else the tag of the settings.

    `variant` returns the variant that the settings make of a target.

    Raises:
        ConfigError: no setting names it, and the settings make no such image.

    """
    named: str = getattr(settings, IMAGES[service].lower())
    if named:
        return named
    return f"{tags.repository(settings.image_name, settings.registry)}:{variant(service)}"


def variables(
    settings: Settings, folder: Path, identity: Mapping[str, str], variant: Callable[[str], str]
) -> dict[str, str]:
    """Return what the Compose files read, by name.

    An image that the settings do not make is left out; Compose then says how to make it.
    """
    read = {
        name.upper(): str(getattr(settings, name))
        for name, field in Settings.model_fields.items()
        if group_of(field) == START or name in {"project_root", "tz"}
    }
    found = {name: value or identity.get(name, "") for name, value in read.items()}
    found["HOST_ROOT"] = str((folder / settings.host_root).resolve())
    found["PROJECT"] = project_name(settings, folder, found["USR"])
    for service, name in IMAGES.items():
        try:
            found[name] = image_of(settings, service, variant)
        except ConfigError:
            found.pop(name)
    return {name: value for name, value in found.items() if value}


@dataclass(frozen=True)
class Project:
    """The containers of one checkout."""

    service: str
    variables: Mapping[str, str]
    files: tuple[Path, ...]

    @property
    def image(self) -> str:
        """The image of its service, empty if none is named."""
        return self.variables.get(IMAGES[self.service], "")

    def docker(self, profile: str = "") -> Any:  # noqa: ANN401 - a DockerClient, imported late
        """Return Docker's client for this project; ComposeError without Docker or Compose."""
        from python_on_whales import DockerClient  # noqa: PLC0415 - half a second, and few verbs

        # The client's own subprocesses read it, as they would the shell's.
        os.environ.update({"IMAGE": MISSING, **self.variables})
        client = DockerClient(
            compose_files=list(self.files),
            compose_project_name=self.variables["PROJECT"],
            compose_profiles=[profile or self.service],
        )
        with told("Docker does not answer", "run `make doctor`"):
            client.version()
        if not client.compose.is_installed():
            raise ComposeError(
                "Docker has no Compose", next_step="run `make install-compose`; it needs no root"
            )
        return client

    def up(self, say: Callable[[str], None]) -> None:
        """Start a fresh container, from an image that is here or that its registry has.

        Raises:
            ComposeError: there is no image or no Docker, or the container does not start.
            ConfigError: VERIFY_KEY is no key.
            ProofError: nobody with that key has signed the image, or its proof fails a check.

        """
        docker = self.docker()
        self._get_image(docker, say)
        self._check_proof(docker, say)
        see_why = f"see why with `make run SERVICE={self.service}`"
        with told(f"{self.service} does not start", see_why):
            docker.compose.up(
                services=[self.service], detach=True, force_recreate=True, pull="never", quiet=True
            )
        time.sleep(_FIRST_SECONDS)
        if not self.is_running(docker):
            said = docker.compose.logs([self.service], tail="5", no_log_prefix=True).strip()
            said = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", said)
            raise ComposeError(
                f"{self.service} has started, and has ended at once", why=said, next_step=see_why
            )
        say(f"{self.service} is up, from {self.image}")

    def _get_image(self, docker: Any, say: Callable[[str], None]) -> None:  # noqa: ANN401 - as above
        tag, _, digest = self.image.partition("@")
        is_here = docker.image.exists(self.image)
        name = IMAGES[self.service]
        get_one = f"run `make build SERVICE={self.service}`, or name another by {name}"
        if digest and is_here:
            return
        if not _has_registry(tag):
            if is_here:
                return
            raise ComposeError(
                f"there is no image {self.image}",
                why="Docker has none of that name, and the name is of no registry",
                next_step=get_one,
            )
        from python_on_whales.exceptions import DockerException  # noqa: PLC0415 - as above

        try:
            # By its digest Docker takes nothing else, whatever the tag has become.
            docker.image.pull(self.image, quiet=True)
        except DockerException as error:
            why = _reason(error)
            if not is_here:
                raise ComposeError(
                    f"{self.image} is neither here nor to be had from its registry",
                    why=why,
                    next_step=get_one,
                ) from error
            say(f"its registry does not answer, so it is {tag} as it is here: {why}")

    def _check_proof(self, docker: Any, say: Callable[[str], None]) -> None:  # noqa: ANN401 - as above
        """Refuse an image that `verify` would with VERIFY_KEY, if one is named."""
        named = self.variables.get("VERIFY_KEY", "")
        if not named:
            return
        from pipeline.attest import signing, verify  # noqa: PLC0415 - few demand it

        key = signing.public_key(named)
        with told(f"Docker does not say which image {self.image} is", "run `make doctor`"):
            digests = docker.image.inspect(self.image).repo_digests
        # What Docker would start, and not what the tag has become in the registry since; of which
        # Docker has summed each layer itself when it pulled it.
        started = verify.published(self.image, digests)
        verify.verify(started, key, say, layers=False).demand()
        say(f"{self.image} is signed by the key of {named}, and so are its SBOM and provenance")

    def is_running(self, docker: Any) -> bool:  # noqa: ANN401 - as above
        """Say whether the service's container runs."""
        with told("Compose does not say what runs", "run `docker compose ls`"):
            return any(it.state.running for it in docker.compose.ps(services=[self.service]))

    def _must_run(self, docker: Any) -> None:  # noqa: ANN401 - as above
        if not self.is_running(docker):
            raise ComposeError(
                f"{self.service} is not running",
                next_step=f"start it with `make up SERVICE={self.service}`",
            )

    def start(self) -> None:
        """Start the stopped container as it was left; ComposeError if there is none."""
        with told(f"{self.service} does not start", "make a fresh one with `make up`"):
            self.docker().compose.start([self.service])

    def down(self, *, volumes: bool) -> None:
        """Stop and delete the containers, and their volumes if that is asked; or ComposeError."""
        with told("the containers cannot be taken down", "look at `docker compose ls -a`"):
            self.docker("*").compose.down(volumes=volumes, remove_orphans=True, quiet=True)

    def hand_over(self, verb: str, command: Sequence[str], say: Callable[[str], None]) -> NoReturn:
        """Become ``docker compose exec`` or ``run``: the terminal, signals and exit code are its.

        Raises:
            ComposeError: no Docker, or nothing runs that could be entered.
            ConfigError, ProofError: as `up`.

        """
        docker = self.docker()
        words = list(command) or shlex.split(self.variables.get("COMMAND", ""))
        options = [] if sys.stdin.isatty() and sys.stdout.isatty() else ["--no-TTY"]
        for name in ("TERM", "COLORTERM"):
            options += ["--env", f"{name}={os.environ[name]}"] if name in os.environ else []
        if verb == "exec":
            self._must_run(docker)
            words = [ENTER, *words]
        else:
            self._get_image(docker, say)
            self._check_proof(docker, say)
            options.append("--rm")
            # Without a command Compose would take the service's, which may be no shell.
            words = words or ["zsh"]
        _become(docker, [verb, *options, self.service, *words])

    def show(self, *, as_json: bool) -> NoReturn:
        """Become ``docker compose config``; ComposeError without Docker or Compose."""
        _become(self.docker(), ["config", *(["--format", "json"] if as_json else [])])

    def fixes(self, *, dry_run: bool) -> str:
        """Mend what keeps the running container from working, as root; return what that was.

        Raises:
            ComposeError: nothing runs, or it could not be mended.

        """
        docker = self.docker()
        self._must_run(docker)
        words = [FIXES, *(["--dry-run"] if dry_run else [])]
        with told("the container could not be mended", "make a fresh one with `make up`"):
            return str(docker.compose.execute(self.service, words, tty=False, user="root"))


def _become(docker: Any, words: Sequence[str]) -> NoReturn:  # noqa: ANN401 - as above
    argv = [*map(str, docker.client_config.docker_compose_cmd), *words]
    os.execvp(argv[0], argv)  # noqa: S606 - the point of it


def can_start() -> bool:
    """Say whether a Docker daemon answers here, and there is Compose to start containers with."""
    from pipeline import publish  # noqa: PLC0415 - few verbs ask

    return publish.Docker("", "").answers() and publish.has_compose()


def projects() -> list[dict[str, Any]]:
    """Return name, status and files of every Compose project here, or raise ComposeError."""
    from python_on_whales import DockerClient  # noqa: PLC0415 - as above

    states = ("running", "restarting", "paused", "exited", "created", "dead")
    with told("Docker does not answer", "run `make doctor`"):
        found = DockerClient().compose.ls(all=True)
    return [
        {
            "name": it.name,
            "status": ", ".join(f"{s}({n})" for s in states if (n := getattr(it, s))),
            "files": [str(file) for file in it.config_files or []],
        }
        for it in found
    ]


@contextlib.contextmanager
def told(what: str, next_step: str) -> Iterator[None]:
    """Turn an error of Docker's client into one that says what was wanted and what to do."""
    from python_on_whales import ClientNotFoundError  # noqa: PLC0415 - as above
    from python_on_whales.exceptions import DockerException  # noqa: PLC0415

    try:
        yield
    except (DockerException, ClientNotFoundError) as error:
        raise ComposeError(what, why=_reason(error), next_step=next_step) from error


def _reason(error: BaseException) -> str:
    said = getattr(error, "stderr", None) or str(error)
    lines = [line.strip() for line in said.strip().splitlines() if line.strip()]
    return " ".join(lines[-2:]) or "Docker's client says nothing"


def _has_registry(reference: str) -> bool:
    """Say whether an image may be pulled: one with an owner is Docker Hub's at the least."""
    return "/" in reference
