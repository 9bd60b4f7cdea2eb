"""Which engine builds: the first that answers, and the reasons why the ones before it did not."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from platformdirs import user_cache_path

from pipeline.engine import local
from pipeline.errors import EngineError
from pipeline.host import ca

Kind = Literal["session", "remote", "docker", "local"]

RUNNER_HOST: Final = "_EXPERIMENTAL_DAGGER_RUNNER_HOST"
CLI_BIN: Final = "_EXPERIMENTAL_DAGGER_CLI_BIN"
IMAGE_STORE: Final = "_EXPERIMENTAL_DAGGER_RUNNER_IMAGESTORE"
CLIENT: Final = f"https://dl.dagger.io/dagger/releases/{local.VERSION}/checksums.txt"
"""What the SDK downloads first of the client that starts an engine in Docker."""

ENGINE_IMAGE: Final = f"registry.dagger.io/engine:v{local.VERSION}"

# Falling through takes no longer than this, a pull that works excepted.
_TRIAL_SECONDS: Final = 9.0
_ANSWER_SECONDS: Final = 2.0
_CONNECT_SECONDS: Final = 5
"""How long ssh and kubectl try to reach a machine before they say why not, and Docker to answer."""
_LOGIN_SECONDS: Final = 30.0
"""What a login may take where names are looked up, or users in a directory."""
_SSH_FAILED: Final = 255

LOCAL: Final = "local"
"""What stands for the local engine among the runner hosts of ENGINES."""

_TLS_PORT: Final = 443

SESSION: Final = ("DAGGER_SESSION_PORT", "DAGGER_SESSION_TOKEN")


@dataclass(frozen=True)
class Choice:
    """The engine to use, why, and the environment by which Dagger's SDK finds it."""

    kind: Kind
    reason: str
    environment: Mapping[str, str | None] = field(default_factory=dict)
    """Variables to set, and with None to unset, or the SDK would take another engine first."""


def hosts(setting: str) -> tuple[str, ...]:
    """Return the runner hosts that ENGINES names, each once, in the order they stand in.

    Dagger's client reads them (v0.21.8, engine/client/drivers). ``tcp`` is plain. ``tls`` checks
    the engine's certificate against this machine's authorities, or those in the file ``ca_path``;
    an engine with ``--tlscacert`` asks for the certificate and key in ``cert_path`` and
    ``key_path``; its port is 443 unless it is named. ``ssh`` runs ``buildctl dial-stdio`` there by
    this machine's own ssh, ``kube-pod`` in the pod by kubectl.
    """
    return tuple(dict.fromkeys(setting.replace(",", " ").split()))


def choose(setting: str, say: Callable[[str], None], named: Sequence[str] = ()) -> Choice:
    """Return the first of the engines `named` that answers, or without them the one of ENGINE.

    Of ENGINE, ``auto`` takes the first of the four that answers.

    Raises:
        EngineError: the one named, or every one, cannot be used; with the reason of each.

    """
    if named:
        return _first_of(named, say)
    tries: dict[str, Callable[[], Choice | str]] = {
        "session": _session,
        "remote": _remote,
        "docker": lambda: _docker(say),
        "local": lambda: _local(say),
    }
    wanted = list(tries) if setting == "auto" else [setting]
    reasons: list[str] = []
    for kind in wanted:
        answer = tries[kind]()
        if isinstance(answer, Choice):
            said = "; ".join([answer.reason, *(f"not {r}" for r in reasons)])
            return Choice(answer.kind, said, answer.environment)
        reasons.append(f"{kind}: {answer}")
    step = local.mend(local.needs()) if "local" in wanted else ""
    raise EngineError(
        "no Dagger engine can be used",
        why="; ".join(reasons),
        next_step=step or "start Docker, or leave ENGINE at auto",
    )


def _first_of(named: Sequence[str], say: Callable[[str], None]) -> Choice:
    reasons: list[str] = []
    for host in named:
        answer = _local(say) if host == LOCAL else _at(host, "ENGINES")
        if isinstance(answer, Choice):
            said = "; ".join([answer.reason, *(f"not {reason}" for reason in reasons)])
            return Choice(answer.kind, said, answer.environment)
        reasons.append(f"{host}: {answer}")
    raise EngineError(
        "none of ENGINES can be used",
        why="; ".join(reasons),
        next_step="start them, or leave ENGINES empty for the one that ENGINE chooses",
    )


def _session() -> Choice | str:
    if os.environ.keys() >= set(SESSION):
        return Choice("session", "this runs inside a Dagger session")
    return f"{SESSION[0]} is not set"


def _remote() -> Choice | str:
    host = os.environ.get(RUNNER_HOST)
    if not host:
        return f"{RUNNER_HOST} is not set"
    return _at(host, RUNNER_HOST)


def _at(host: str, variable: str) -> Choice | str:
    """Return the engine at a runner host that a variable names, or why there is none."""
    if (why := no_answer(host)) is not None:
        return f"{host} does not answer ({why})"
    client: dict[str, str | None] = {RUNNER_HOST: host}
    if not os.environ.get(CLI_BIN) and (program := local.session_program()) is not None:
        client[CLI_BIN] = str(program)
    if not os.environ.get(IMAGE_STORE):
        client[IMAGE_STORE] = "docker-image"  # as of the local one
    return Choice("remote", f"{variable}={host}", _no_session() | client)


def _no_session() -> dict[str, str | None]:
    return dict.fromkeys(SESSION)


def no_answer(host: str) -> str | None:
    """Return why nothing answers at a runner host; of containers only Dagger knows.

    As Dagger's client would, it goes there by itself, by this machine's ssh, or by its kubectl.
    """
    ask = {"unix": _socket, "tcp": _port, "tls": _port, "ssh": _ssh, "kube-pod": _pod}
    scheme = host.partition("://")[0]
    try:
        return ask[scheme](host) if scheme in ask else None
    except (OSError, ValueError) as error:  # of TLS too, and of what is no port
        return str(error)


def _socket(host: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_ANSWER_SECONDS)
        client.connect(host.partition("://")[2])


def _port(host: str) -> None:
    url = urlsplit(host)
    address = (url.hostname or "", url.port or _TLS_PORT)
    with socket.create_connection(address, _ANSWER_SECONDS) as client:
        if url.scheme == "tls":
            _shake_hands(client, address[0], dict(parse_qsl(url.query)))


def _ssh(host: str) -> str | None:
    """Return why the ssh of this machine gets no answer."""
    url = urlsplit(host)
    # As it is written, for ssh tells aliases apart by case; urlsplit has it in lower case alone.
    name = re.sub(r":\d+$", "", url.netloc.rpartition("@")[2]).strip("[]")
    user = ["-l", unquote(url.username)] if url.username else []
    port = ["-p", str(url.port)] if url.port else []
    # A client of Dagger's has no terminal either. A master would stay behind in the background.
    options = ("BatchMode=yes", f"ConnectTimeout={_CONNECT_SECONDS}", "ControlMaster=no")
    flags = [word for option in options for word in ("-o", option)]
    asked = _ended(["ssh", *flags, *user, *port, "--", name, "true"], _LOGIN_SECONDS)
    if isinstance(asked, str):
        return asked
    # Any other code is that of the command: somebody was there to run it.
    return _refused(_last(asked)) if asked.returncode == _SSH_FAILED else None


def _refused(said: str) -> str:
    """Return in words what ssh says of a login that it could not make."""
    ways = re.search(r"Permission denied \((.*)\)", said)
    if ways is None:
        return said
    asks = "password" in ways[1] or "keyboard-interactive" in ways[1]
    why = "asks for a password, which nobody types in a build" if asks else "takes no key of ours"
    step = "let it take a key that has no passphrase or is in ssh-agent (ssh-copy-id)"
    return f"its ssh {why}; {step}: {said}"


def _pod(host: str) -> str | None:
    """Return why kubectl sees no pod there that runs."""
    url = urlsplit(host)
    asked = dict(parse_qsl(url.query))
    where = [f"--{it}={asked[it]}" for it in ("context", "namespace") if it in asked]
    # One whose node is lost is "Running" for ever; some minutes later it is to be deleted.
    what = "jsonpath={.status.phase} {.metadata.deletionTimestamp}"
    limit = f"--request-timeout={_CONNECT_SECONDS}s"
    got = _ended(["kubectl", *where, limit, "get", "pod", url.netloc, "-o", what], _LOGIN_SECONDS)
    if isinstance(got, str):
        return got
    if got.returncode != 0:
        return _last(got)
    phase, _, deleted = got.stdout.strip().partition(" ")
    if deleted:
        return f"its pod is to be gone by {deleted}"
    return None if phase == "Running" else f"its pod is {phase or 'in no phase'}, not Running"


def _shake_hands(client: socket.socket, name: str, files: Mapping[str, str]) -> None:
    """Raise OSError where the two do not trust each other: the client would try for minutes."""
    context = ssl.create_default_context(cafile=files.get("ca_path"))
    if "cert_path" in files:
        context.load_cert_chain(files["cert_path"], files.get("key_path"))
    with context.wrap_socket(client, server_hostname=name) as secure:
        # One that refuses or misses our certificate ends now, or when it is read from (TLS 1.3);
        # one that takes it waits for us.
        try:
            ended = not secure.recv(1)
        except TimeoutError:
            return
    if ended:
        msg = "it ends the connection: is the certificate in cert_path the one that it asks for?"
        raise ConnectionError(msg)


def _docker(say: Callable[[str], None]) -> Choice | str:
    """Try for real: a daemon that answers may still be unable to run the engine."""
    deadline = time.monotonic() + _TRIAL_SECONDS

    def fails(*args: str) -> str | None:
        return _fails(["docker", *args], max(deadline - time.monotonic(), 0.5))

    if (why := fails("version")) is not None:
        return why
    if fails("image", "inspect", ENGINE_IMAGE) is not None:
        # The manifest is asked for first: it tells in a moment what a pull may take minutes to.
        why = fails("manifest", "inspect", ENGINE_IMAGE)
        if why is None:
            say(f"pulling {ENGINE_IMAGE}")
            why = _fails(["docker", "pull", ENGINE_IMAGE], None)
            deadline = time.monotonic() + _TRIAL_SECONDS
        if why is not None:
            return f"{ENGINE_IMAGE} cannot be pulled ({why})"
    if (why := _no_client()) is not None:
        return why
    name = f"cresset-trial-{uuid.uuid4().hex[:12]}"
    trial = ("run", "--rm", "--name", name, "--privileged", "--entrypoint", "true", ENGINE_IMAGE)
    if (why := fails(*trial)) is not None:
        _fails(["docker", "rm", "--force", name], _ANSWER_SECONDS)
        return f"a privileged container cannot start ({why})"
    return Choice("docker", "Docker answers and can run it", {RUNNER_HOST: None} | _no_session())


def docker_folder() -> Path | None:
    """Return the folder of all that Docker has, None where it is not known to be on this machine.

    It is where the daemon's socket and name are this machine's: not in a container with the socket
    of its host, nor with Docker Desktop, whose daemon has a virtual machine of its own.
    """

    def said(*args: str) -> str:
        ended = _ended(["docker", *args], _CONNECT_SECONDS)
        return "" if isinstance(ended, str) or ended.returncode != 0 else ended.stdout.strip()

    socket_of = said("context", "inspect", "--format", "{{.Endpoints.docker.Host}}")
    name, _, root = said("info", "--format", "{{.Name}} {{.DockerRootDir}}").partition(" ")
    if not socket_of.startswith("unix://") or name != os.uname().nodename:
        return None
    with contextlib.suppress(OSError):
        return Path(root) if root and Path(root).is_dir() else None
    return None


def _no_client() -> str | None:
    """Return why the SDK would find no client for an engine in Docker, None if it will."""
    import requests  # noqa: PLC0415 - only this route asks

    if os.environ.get(CLI_BIN) or (user_cache_path("dagger") / f"dagger-{local.VERSION}").exists():
        return None
    try:
        requests.head(CLIENT, timeout=_ANSWER_SECONDS, verify=ca.bundle()).raise_for_status()
    except requests.RequestException as error:
        return f"{CLIENT} cannot be downloaded ({type(error).__name__})"
    return None


def _local(say: Callable[[str], None]) -> Choice | str:
    if needs := local.needs():
        return "it needs " + ", ".join(need.what for need in needs)
    endpoint = local.ensure(say)
    environment = _no_session() | {
        RUNNER_HOST: endpoint.runner_host,
        CLI_BIN: str(endpoint.session_bin),
        # Over a socket the client can't know what loads images here.
        IMAGE_STORE: "docker-image",
    }
    return Choice("local", f"built here, at {endpoint.runner_host}", environment)


def _fails(command: list[str], seconds: float | None) -> str | None:
    """Return why a command fails in one line, None if it does not."""
    ended = _ended(command, seconds)
    if isinstance(ended, str):
        return ended
    return _last(ended) if ended.returncode != 0 else None


def _ended(command: list[str], seconds: float | None) -> subprocess.CompletedProcess[str] | str:
    """Return how a command ended that nobody could answer, or why it did not."""
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {seconds:.0f} s"
    except FileNotFoundError:
        return f"{command[0]} is not installed"


def _last(ended: subprocess.CompletedProcess[str]) -> str:
    """Return the last line of what a command that failed complains of."""
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"exit code {ended.returncode}"
