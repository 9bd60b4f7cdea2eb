"""Repositories elsewhere, asked by this machine's own git with its own logins."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from typing import Final

from pipeline.errors import Problem
from pipeline.settings import shown
from pipeline.spec import without_login

_SECONDS: Final = 60


def commit(url: str, ref: str, mirror: tuple[str, str] = ("", "")) -> str | Problem:
    """Return the commit that a branch or a tag stands at now; `mirror` replaces how URLs begin."""
    if shutil.which("git") is None:
        return Problem(
            "", ref, "a branch moves, and there is no git here to ask where it stands",
            next_step="apt-get install -y git, or name a commit",
        )  # fmt: skip
    # By the environment: everybody on the machine may read a command line, which a login may be on.
    public = without_login(url)
    old, new = mirror
    # As where it is fetched: a mirror goes before the login of the place that it stands in for.
    mirrored = bool(new) and public.startswith(old)
    rewriting = [(old, new)] if mirrored else [(public, url)] if public != url else []
    environment = {
        **os.environ,
        # A prompt for a password would wait forever where nobody sits.
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_CONFIG_COUNT": str(len(rewriting)),
        **{f"GIT_CONFIG_KEY_{at}": f"url.{it[1]}.insteadOf" for at, it in enumerate(rewriting)},
        **{f"GIT_CONFIG_VALUE_{at}": it[0] for at, it in enumerate(rewriting)},
    }
    try:
        answer = subprocess.run(
            ["git", "ls-remote", "--exit-code", public, f"refs/heads/{ref}",
             f"refs/tags/{ref}", f"refs/tags/{ref}^{{}}"],
            capture_output=True, text=True, check=False, timeout=_SECONDS, env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Problem("", ref, f"{shown(url)} does not answer in {_SECONDS} s",
                       next_step="check the network, or name a commit")  # fmt: skip
    lines = answer.stdout.split("\n")
    if answer.returncode == 2:  # noqa: PLR2004 - git's own: no matching ref
        return Problem(
            "", ref, f"{shown(url)} has no branch and no tag of this name",
            allowed="a tag, a branch, or all 40 digits of a commit",
            next_step=f"git ls-remote {shown(url)} lists what it has",
        )  # fmt: skip
    if answer.returncode:
        last = shown((answer.stderr.strip().splitlines() or ["git says nothing"])[-1])
        return Problem("", ref, f"{shown(url)} cannot be asked where it stands: {last}",
                       next_step="check the URL, the network and git's logins")  # fmt: skip
    # Of an annotated tag the peeled line comes last, and names the commit.
    return [line.split("\t")[0] for line in lines if line][-1]


def checkout() -> tuple[str, str]:
    """Return the URL of the repository that this folder is a checkout of, and its commit.

    The URL is as a browser takes it; the commit ends in ``-dirty`` where there are edits. Each is
    empty where there is none.
    """
    url = _asked("config", "--get", "remote.origin.url")
    return web(url), _asked("describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")


def web(url: str) -> str:
    """Return what a browser finds a repository by, without a login; empty for a path."""
    # ssh://git@host:22/team/it.git, and git@host:team/it.git
    url = re.sub(r"^ssh://([^@/]*@)?([^:/]+)(:\d+)?/", r"https://\2/", url)
    url = re.sub(r"^[^@/:]+@([^:/]+):/*", r"https://\1/", url)
    if not url.startswith(("https://", "http://")):
        return ""
    return re.split("[?#]", without_login(url))[0].rstrip("/").removesuffix(".git")


def _asked(*words: str) -> str:
    """Return what git says of this folder, nothing where it does not know."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        said = subprocess.run(
            ["git", *words], capture_output=True, text=True, check=False, timeout=_SECONDS
        )
        if said.returncode == 0:
            return said.stdout.strip()
    return ""
