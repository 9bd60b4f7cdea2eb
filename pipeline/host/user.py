"""What ``make env`` writes down of this machine and its user."""

from __future__ import annotations

import grp
import os
import pwd
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import CressetError
from pipeline.host import gpu
from pipeline.settings import NAMES, allowed_values, group_of, refusal

NOBODY = "user"
"""The name where this machine has none that can be used."""

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
    names = {"USR": user_name(uid), "GRP": group_name(gid)}
    # A directory service has names such as CORP\jdoe, which no Linux image can have.
    usable = {key: name if refusal(key, name) is None else NOBODY for key, name in names.items()}
    return {"UID": str(uid), "GID": str(gid)} | usable


def user_name(uid: int) -> str:
    """Return the name of a user, `NOBODY` where there is none."""
    # A container or a directory service may run a process under an id without a name.
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return NOBODY


def group_name(gid: int) -> str:
    """Return the name of a group, `NOBODY` where there is none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return NOBODY


def time_zone() -> str:
    """Return the machine's time zone, UTC where it names none."""
    target = os.path.realpath("/etc/localtime")
    return target.partition("/zoneinfo/")[2] or "UTC"


def env_file(found_out: Mapping[str, str], for_compose: Mapping[str, str]) -> str:
    """Return the text of a new ``.env``: this user's values, and every other setting explained.

    `found_out` are more values, and `for_compose` variables that Compose alone reads.
    """
    values = identity() | {"TZ": time_zone(), **found_out}
    if found := gpu.capabilities():
        values["CCA"] = " ".join(map(str, found))
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
    lines += ["", "# --- Docker Compose, where it is called by hand"]
    lines += [f"{name}={value}" for name, value in for_compose.items()]
    return "\n".join(lines) + "\n"


def set_variable(path: Path, name: str, value: str) -> bool:
    """Set a variable in a ``.env``, in place of the line that it or its comment has.

    Returns whether the file had another value. The file is replaced as a whole or not at all.
    """
    path = path.resolve()  # or a link to a team's own would become a file
    lines = path.read_text().splitlines()
    line = f"{name}={value}"
    if line in lines:
        return False
    for beginning in (f"{name}=", f"# {name}="):
        places = [i for i, it in enumerate(lines) if it.startswith(beginning)]
        if places:
            # Of two lines with one name the last counts.
            lines[places[-1]] = line
            break
    else:
        lines.append(line)
    written = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        written.write_text("\n".join(lines) + "\n")
        shutil.copymode(path, written)
        os.chown(written, path.stat().st_uid, path.stat().st_gid)
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)
    return True


def write_new(path: Path, text: str) -> bool:
    """Write a file that does not exist yet, all of it or nothing; say whether it was written."""
    try:
        return _linked(path, text)
    except OSError as error:
        raise CressetError(
            f"{path} cannot be written",
            why=error.strerror or str(error),
            next_step="run it in a folder that you may write to and that has room",
        ) from error


def _linked(path: Path, text: str) -> bool:
    # A link, unlike a rename, never takes the place of a file that is there already.
    written = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        with written.open("x") as file:
            file.write(text)
        path.hardlink_to(written)
    except FileExistsError:
        return False
    finally:
        written.unlink(missing_ok=True)
    return True
