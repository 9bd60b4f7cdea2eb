"""The source that a package is compiled from: four places, one kind of directory.

Whatever a source came from, `ABOUT` at its root tells what it is.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from dagger import Container, Directory, File, dag

from pipeline import caches
from pipeline.spec import BaseSpec, SourceSpec
from pipeline.stages.inputs import Access
from pipeline.stages.packages import apt_install, with_deb_src

ABOUT = ".cresset-source.json"
"""JSON: ``kind`` and ``location``, and where there is one ``ref``, ``commit`` and ``sha256``; of a
source package ``version`` and ``patched``, which is false where the distribution's patches are not
in it. No password is in it, and nothing of a tarball's URL after its path."""

_MADE = "/mnt/made"
_SOURCE = f"{_MADE}/source"

_FETCH_GIT = "/run/fetch_git.sh"
_GIT_CONFIG = "/run/git/config"
_KNOWN_HOSTS = "/run/git/known_hosts"
_AGENT = "/run/git/agent"

_ARCHIVE = "/mnt/archive"

_UNPACK = r"""
found=$(sha256sum "$2" | cut -d ' ' -f 1)
if [ "$found" != "$1" ]; then
  echo "source: $4 is not the tarball that is wanted" >&2
  echo "source: wanted sha256 $1" >&2
  echo "source: found sha256 $found" >&2
  exit 1
fi
mkdir "$3"
tar --extract --file "$2" --directory "$3" --strip-components=1 --no-same-owner
if [ -z "$(ls -A "$3")" ]; then
  echo "source: $4 has no folder with the source in it" >&2
  exit 1
fi
printf '%s}\n' "$5" > "$3/.cresset-source.json"
"""

# apt has checked the files against the index, which is signed; dpkg-source applies the patches.
# Some mirrors serve the tarballs without the description that names the patches.
_APT_SOURCE = r"""
apt-get update -q -o APT::Update::Error-Mode=any $APT_OPTIONS
mkdir "$1/download"
cd "$1/download"
get() { apt-get source -q --download-only -o APT::Sandbox::User=root "$@" "$package"; }
package=$2${3:+=$3}
if get 2> said; then
  cat said >&2
  version=$(sed -n 's/^Version: //p' ./*.dsc)
  dpkg-source --no-copy -x ./*.dsc ../source
  patched=true
else
  cat said >&2
  grep -Eq '\.dsc +40[0-9]' said || exit 1
  echo "source: the .dsc of $2 is not served: its tarball, without the distribution's patches" >&2
  get --tar-only
  records() { apt-cache showsrc --only-source "$1" | sed -n 's/^Version: //p' | sort -V; }
  version=${3:-$(records "$2" | tail -n 1)}
  mkdir ../source
  tar --extract --file ./*.orig.tar.* --directory ../source --strip-components=1 --no-same-owner
  patched=false
fi
about=../source/.cresset-source.json
printf '%s, "version": "%s", "patched": %s}\n' "$4" "$version" "$patched" > "$about"
rm -r "$1/download"
"""

# The same sum as host/worktree.py's.
_CHECK_PATH = r"""
cd "$1"
found=$(
  {
    printf 'files\0'
    find . -type f ! -perm /111 -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum -z
    printf 'programs\0'
    find . -type f -perm /111 -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum -z
    printf 'links\0'
    find . -type l -printf '%p//%l\0' | LC_ALL=C sort -z
  } | sha256sum | cut -d ' ' -f 1
)
if [ "$found" != "$2" ]; then
  echo "source: $3 was edited while the build began; run the same command again" >&2
  echo "source: wanted sha256 $2" >&2
  echo "source: found sha256 $found" >&2
  exit 1
fi
printf '%s}\n' "$4" > .cresset-source.json
"""


def source(
    spec: SourceSpec,
    tools: Container,
    base: BaseSpec,
    *,
    access: Access | None = None,
    untracked: Sequence[str] = (),
) -> Directory:
    """Return the directory with the source, and with `ABOUT`.

    `tools` is what `source_tools` returns, or more. `untracked`, of a folder of this machine, is
    what `pipeline.host.worktree.untracked` says not to send.
    """
    if spec.kind == "git":
        return _from_git(spec, tools, access or Access())
    if spec.kind == "archive":
        return _from_archive(spec, tools)
    if spec.kind == "apt":
        return _from_apt(spec, tools, base)
    return _from_path(spec, tools, untracked)


def source_tools(container: Container, base: BaseSpec) -> Container:
    """Return the container with what fetches and unpacks sources."""
    wanted = ["bzip2", "ca-certificates", "git", "openssh-client", "xz-utils"]
    return apt_install(container, base, wanted)


def _empty(tools: Container) -> Container:
    """Return the container with an empty folder, which is all that leaves it."""
    return tools.with_mounted_directory(_MADE, dag.directory())


def _from_git(spec: SourceSpec, tools: Container, access: Access) -> Directory:
    # Not `dag.git`: it tries once, it knows no mirror (its git reads none of ours for submodules),
    # and its trees lack whatever submodule is left out without an error, as with `update = none`.
    url = _without_password(spec.location)
    # What the engine keeps is found by the names of secrets, not by what is in them.
    name = hashlib.sha256(url.encode()).hexdigest()[:12]
    config = dag.set_secret(f"cresset-git-{name}", git_config(spec.location, access))
    known = dag.set_secret(f"cresset-known-hosts-{name}", access.known_hosts or "# none\n")
    script = resources.files("pipeline.stages.inside").joinpath("fetch_git.sh").read_text()
    fetching = (
        _empty(tools)
        .with_mounted_file(_FETCH_GIT, dag.file("fetch_git.sh", script))
        .with_mounted_secret(_GIT_CONFIG, config)
        .with_mounted_secret(_KNOWN_HOSTS, known)
        .with_env_variable("GIT_CONFIG_GLOBAL", _GIT_CONFIG)
        .with_env_variable("KNOWN_HOSTS", _KNOWN_HOSTS)
    )
    # The path of the agent's socket is in the engine's key, and is another one after each login.
    if access.ssh_agent is not None and any(map(_speaks_ssh, _places(url, access))):
        fetching = fetching.with_unix_socket(_AGENT, access.ssh_agent).with_env_variable(
            "SSH_AUTH_SOCK", _AGENT
        )
    about = _about(spec, location=url, ref=spec.ref)
    return fetching.with_exec(["bash", _FETCH_GIT, url, spec.ref, _SOURCE, about]).directory(
        _SOURCE
    )


def _places(url: str, access: Access) -> list[str]:
    return [url, access.instead_of[1]] if access.instead_of else [url]


def _speaks_ssh(url: str) -> bool:
    """Say whether a URL is ssh's, in either way of writing one."""
    return url.startswith("ssh://") or "://" not in url


def git_config(location: str, access: Access) -> str:
    """Return git's configuration: the mirror, the password, and what it may speak.

    A repository names those of its submodules, so none of them may choose an unsafe transport.
    """
    places = [location]
    lines = ["[protocol]", "allow = never"]
    clean = _without_password(location)
    mirrored = False
    if access.instead_of is not None:
        old, new = access.instead_of
        lines += [f"[url {_quoted(_without_password(new))}]", f"insteadOf = {_quoted(old)}"]
        places.append(new)
        mirrored = clean.startswith(old)
    # In a URL a password would be in the command lines of what git starts, for all of the machine
    # to see. Submodules on the same host are reached by it as well.
    logins = {
        _site(_without_password(place)): f"Authorization: {basic}"
        for place in (places[1:] if mirrored else places)
        if (basic := _basic(place))
    }
    for site, header in logins.items():
        lines += [f"[http {_quoted(site)}]", f"extraHeader = {_quoted(header)}"]
    spoken = ["https", "ssh"]
    if any(_may_do_without_tls(place, access.trusted_host) for place in places):
        spoken.append("http")
    for scheme in spoken:
        lines += [f'[protocol "{scheme}"]', "allow = always"]
    # A connection over which not one byte comes for a minute is dead.
    lines += ["[http]", "lowSpeedLimit = 1", "lowSpeedTime = 60"]
    return "\n".join(lines) + "\n"


def _from_archive(spec: SourceSpec, tools: Container) -> Directory:
    remote = "://" in spec.location
    location = spec.public_location if remote else Path(spec.location).name
    about = _about(spec, location=location, sha256=spec.sha256)
    tarball = _download(spec.location) if remote else dag.host().file(spec.location)
    unpack = ["sh", "-ec", _UNPACK, "unpack", spec.sha256.lower(), _ARCHIVE, _SOURCE, location]
    mounted = _empty(tools).with_mounted_file(_ARCHIVE, tarball)
    return mounted.with_exec([*unpack, about]).directory(_SOURCE)


def _download(url: str) -> File:
    clean, basic = _without_password(url), _basic(url)
    # Named, as a URL may end in anything. A signature in its query goes to the engine and no
    # further: no command has it, and the file has no other name for it.
    if not basic:
        return dag.http(url, name="archive")
    name = hashlib.sha256(clean.encode()).hexdigest()[:12]
    return dag.http(
        clean, name="archive", auth_header=dag.set_secret(f"cresset-archive-{name}", basic)
    )


def _from_apt(spec: SourceSpec, tools: Container, base: BaseSpec) -> Directory:
    about = _about(spec, location=spec.location)
    download = ["sh", "-ec", _APT_SOURCE, "apt-source", _MADE, spec.location, spec.ref, about]
    ready = _empty(with_deb_src(apt_install(tools, base, ["dpkg-dev"])))
    cached = caches.with_apt(ready, base.distribution, base.codename)
    return cached.with_exec(download).directory(_SOURCE)


def _from_path(spec: SourceSpec, tools: Container, untracked: Sequence[str]) -> Directory:
    folder = Path(spec.location).resolve()
    # A list of the tens of thousands of files that are wanted would be matched against each file
    # there is; what is not wanted is few folders, and what changed since is all that is sent again.
    sent = dag.host().directory(str(folder), exclude=["**/.git", *untracked])
    about = _about(spec, location=folder.name, sha256=spec.sha256)
    check = ["sh", "-ec", _CHECK_PATH, "check", _SOURCE, spec.sha256, folder.name, about]
    return tools.with_mounted_directory(_SOURCE, sent).with_exec(check).directory(_SOURCE)


def _about(spec: SourceSpec, **known: str) -> str:
    """Return the JSON of `ABOUT` but for its end, to which the container adds what it learns."""
    fields = {name: value for name, value in known.items() if value}
    return json.dumps({"kind": spec.kind, **fields}).removesuffix("}")


def _without_password(url: str) -> str:
    """Return the URL without the login in it; ``git@`` of ssh stays, being no secret."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    user = f"{parts.username}@" if parts.scheme == "ssh" and parts.username else ""
    return parts._replace(netloc=user + parts.netloc.rpartition("@")[2]).geturl()


def _basic(url: str) -> str:
    """Return how HTTP sends the login that is in a URL; empty without one."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or "@" not in parts.netloc:
        return ""
    login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return f"Basic {base64.b64encode(login.encode()).decode()}"


def _site(url: str) -> str:
    """Return what a URL has before its path."""
    parts = urlsplit(url)
    return SplitResult(parts.scheme, parts.netloc, "/", "", "").geturl()


def _may_do_without_tls(url: str, trusted_host: str) -> bool:
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "http" or not host:
        return False
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    return loopback or host == trusted_host


def _quoted(text: str) -> str:
    """Return text as git's configuration wants it between quotes."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
