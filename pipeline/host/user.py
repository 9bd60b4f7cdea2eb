"""What ``make env`` writes down of this machine and its user."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

from pipeline.errors import CressetError
from pipeline.settings import NAMES, allowed_values, group_of

OVERRIDE = """\
# Settings of this machine for Docker Compose; git ignores this file.
services:
  {service}:
    volumes:
      - ${{HOME}}:/mnt/home
"""


def identity() -> dict[str, str]:
    """Return the user's ids and names as the settings call them."""
    uid, gid = os.getuid(), os.getgid()
    return {"UID": str(uid), "GID": str(gid), "USR": _user(uid), "GRP": _group(gid)}


def _user(uid: int) -> str:
    # A container or a directory service may run a process under an id without a name.
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return "user"


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return "user"


def time_zone() -> str:
    """Return the machine's time zone, UTC where it names none."""
    target = os.path.realpath("/etc/localtime")
    return target.partition("/zoneinfo/")[2] or "UTC"


def env_file() -> str:
    """Return the text of a new ``.env``: this user's values, and every other setting explained."""
    values = identity() | {"TZ": time_zone()}
    lines = [
        "# Written by `make env`, which never overwrites it. Flags and the shell go before this",
        "# file, this file before the defaults. Empty values count as not set.",
    ]
    group = ""
    for name, field in NAMES.items():
        if group_of(field) != group:
            group = group_of(field)
            lines += ["", f"# --- {group}"]
        lines.append(f"# {field.description} Allowed: {allowed_values(field) or 'any text'}.")
        value = values.get(name, field.default)
        lines.append(f"{name}={value}" if name in values else f"# {name}={value}")
    return "\n".join(lines) + "\n"


def write_new(path: Path, text: str) -> bool:
    """Write a file that does not exist yet; say whether it was written."""
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError:
        return False
    except OSError as error:
        raise CressetError(
            f"{path} cannot be written",
            why=error.strerror or str(error),
            next_step="run it in a folder that you may write to",
        ) from error
    return True
