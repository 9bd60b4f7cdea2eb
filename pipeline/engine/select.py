"""Which engine builds: the first that answers, and the reasons why the ones before it did not."""

from __future__ import annotations

import contextlib
import os
import subprocess
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from pipeline.engine import local
from pipeline.errors import EngineError

Kind = Literal["session", "remote", "docker", "local"]

RUNNER_HOST: Final = "_EXPERIMENTAL_DAGGER_RUNNER_HOST"
CLI_BIN: Final = "_EXPERIMENTAL_DAGGER_CLI_BIN"
IMAGE_STORE: Final = "_EXPERIMENTAL_DAGGER_RUNNER_IMAGESTORE"
ENGINE_IMAGE: Final = f"registry.dagger.io/engine:v{local.VERSION}"

# Together they stay under the ten seconds after which falling through would be noticed.
_ANSWER_SECONDS: Final = 2.0
_START_SECONDS: Final = 6.0


@dataclass(frozen=True)
class Choice:
    """The engine to use, why, and the environment by which Dagger's SDK finds it."""

    kind: Kind
    reason: str
    environment: Mapping[str, str] = field(default_factory=dict)


def choose(setting: str, say: Callable[[str], None]) -> Choice:
    """Return the engine that ENGINE names; ``auto`` takes the first of the four that answers.

    Raises:
        EngineError: the one named, or every one, cannot be used; with the reason of each.

    """
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
    raise EngineError(
        "no Dagger engine can be used",
        why="; ".join(reasons),
        next_step="start Docker, or give the local engine what it lacks "
        "(python -m pipeline engine status)",
    )


def _session() -> Choice | str:
    if {"DAGGER_SESSION_PORT", "DAGGER_SESSION_TOKEN"} <= os.environ.keys():
        return Choice("session", "this runs inside a Dagger session")
    return "DAGGER_SESSION_PORT is not set"


def _remote() -> Choice | str:
    host = os.environ.get(RUNNER_HOST)
    return Choice("remote", f"{RUNNER_HOST}={host}") if host else f"{RUNNER_HOST} is not set"


def _docker(say: Callable[[str], None]) -> Choice | str:
    """Try for real: a daemon that answers may still be unable to run the engine."""
    if (why := _fails(["docker", "version"], _ANSWER_SECONDS)) is not None:
        return why
    if _fails(["docker", "image", "inspect", ENGINE_IMAGE], _ANSWER_SECONDS) is not None:
        # The manifest is asked for first: it tells in a moment what a pull may take minutes to.
        if (
            why := _fails(["docker", "manifest", "inspect", ENGINE_IMAGE], _START_SECONDS)
        ) is not None:
            return f"{ENGINE_IMAGE} cannot be pulled ({why})"
        say(f"pulling {ENGINE_IMAGE}")
        if (why := _fails(["docker", "pull", ENGINE_IMAGE], None)) is not None:
            return f"{ENGINE_IMAGE} cannot be pulled ({why})"
    name = f"cresset-trial-{uuid.uuid4().hex[:12]}"
    trial = ["docker", "run", "--rm", "--name", name, "--privileged", "--entrypoint", "true"]
    if (why := _fails([*trial, ENGINE_IMAGE], _START_SECONDS)) is not None:
        _fails(["docker", "rm", "--force", name], _ANSWER_SECONDS)
        return f"a privileged container cannot start ({why})"
    return Choice("docker", "Docker answers and can run it")


def _local(say: Callable[[str], None]) -> Choice | str:
    if needs := local.needs():
        return "it needs " + ", ".join(f"{need.what} ({need.mend})" for need in needs)
    endpoint = local.ensure(say)
    environment = {
        RUNNER_HOST: endpoint.runner_host,
        CLI_BIN: str(endpoint.session_bin),
        # Over a socket the client can't know what loads images here.
        IMAGE_STORE: "docker-image",
    }
    return Choice("local", f"built here, at {endpoint.runner_host}", environment)


def _fails(command: list[str], seconds: float | None) -> str | None:
    """Return why a command fails in one line, None if it does not."""
    with contextlib.suppress(FileNotFoundError):
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return f"no answer in {seconds:.0f} s"
        if done.returncode == 0:
            return None
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"exit code {done.returncode}"
    return f"{command[0]} is not installed"
