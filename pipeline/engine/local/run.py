"""Starting, finding and stopping the local engine: one for each state folder, shared by all.

The engine runs under ``unshare`` in its own mount and process namespace (``enter.sh``), away from
the process that started it. If either is killed, the kernel ends the other and every container.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

from pipeline.engine.local import build, evictions, places, rootfs, traces
from pipeline.engine.local.build import VERSION, Programs
from pipeline.engine.local.evictions import Evicted
from pipeline.engine.local.needs import needs
from pipeline.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.engine.local.places import Say

READY_WITHIN = 60.0
"""Seconds that an engine may take until it answers."""

RESET_WITHIN = 900.0
"""The same where the engine first removes what a killed one left: it trusts none of that."""

GRACE = 300.0
"""Seconds that an engine may take to end before it is killed; its own limit is the same.

It writes its cache down as it ends, and one that was killed starts with an empty cache.
"""

_RESETTING = "local cache state invalid"
"""What the engine's log says then."""

_ENTER = Path(__file__).with_name("enter.sh")
_GONE_WITHIN = 10.0
"""Seconds that the network of a killed engine may take to lose what hung on it."""

_ENGINE = "/usr/local/bin/dagger-engine"
"""What `enter.sh` becomes."""
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")
_SOCKET_LIMIT = 100
"""Bytes of a path that surely fit into a Unix socket address (108 with the end mark)."""


@dataclass(frozen=True)
class Endpoint:
    """What the SDK needs: where the engine listens, and the program that opens sessions."""

    runner_host: str
    session_bin: Path


@dataclass(frozen=True)
class Status:
    """The engine as it is now; `since` is Unix time, `version` Dagger's."""

    running: bool
    pid: int | None
    since: float | None
    socket: Path
    state: Path
    state_bytes: int | None
    evicted_bytes: int | None
    """What it threw out of its cache by itself since it started, to stay within its limits."""
    log: Path
    version: str
    built: bool


@dataclass(frozen=True)
class Process:
    """A process, told by when it began from a later one with its number."""

    pid: int
    began: str

    @classmethod
    def of(cls, stat: str) -> Self | None:
        """Return the process that a line of /proc/PID/stat is about, or None if it has ended."""
        pid, _, rest = stat.partition(" ")
        state, *fields = rest.rpartition(")")[2].split()
        return None if state in "ZX" else cls(int(pid), fields[18])

    def lives(self) -> bool:
        """Return whether this very process still runs."""
        try:
            return Process.of(Path(f"/proc/{self.pid}/stat").read_text()) == self
        except OSError:
            return False


@dataclass(frozen=True)
class Record:
    """What is written down about an engine when it starts, to find it and to clean up after it.

    The process is the one that watches over the engine, and ends with it.
    """

    pid: int
    began: str
    since: float
    version: str
    root: str
    cidr: str
    chains: list[str]
    forwarding: str

    @property
    def process(self) -> Process:
        """The process that watches over the engine."""
        return Process(self.pid, self.began)


def ensure(say: Say) -> Endpoint:
    """Return the running engine, built and started first if need be.

    EngineError where that fails, with the reason and the log.
    """
    with _in_words():
        record = _recorded()
        runs = record and record.version == VERSION and record.process.lives() and _answers()
        if runs and (found := build.built()):
            return Endpoint(f"unix://{_socket()}", found.session)
    return start(say)


def start(say: Say) -> Endpoint:
    """Start the engine unless it runs; return where it is. EngineError as :func:`ensure`."""
    with _in_words(), _only_one(say):
        programs, root = _parts(say)
        record = _recorded()
        if record and record.version != VERSION and record.process.lives():
            say(f"replacing the engine of Dagger {record.version}")
            _end(record, say)
        elif record and not (record.process.lives() and _ready(record, say)):
            say("the engine is gone without a goodbye: cleaning up after it")
            _end(record, say)
        if not _recorded():
            _launch(programs, root, say)
        return Endpoint(f"unix://{_socket()}", programs.session)


def stop(say: Say) -> bool:
    """End the engine and leave the host as it was before; return whether one ran."""
    with _in_words(), _only_one(say):
        record = _recorded()
        if not record:
            return False
        ran = record.process.lives()
        _end(record, say)
        return ran


def status() -> Status:
    """Return what is known of the engine, without changing anything."""
    record = _recorded()
    running = record is not None and record.process.lives() and _answers()
    engine = _engine()
    return Status(
        running=running,
        pid=engine.pid if running and engine else None,
        since=record.since if record and running else None,
        socket=_socket(),
        state=places.state(),
        state_bytes=held() if _data().exists() else None,
        evicted_bytes=evicted(record.since).size if record and running else None,
        log=log_path(),
        version=record.version if record and running else VERSION,
        built=build.built() is not None,
    )


def held() -> int:
    """Return the bytes that the engine's state takes, most of which is a cache."""
    return _bytes(_data()) if _data().exists() else 0


def evicted(since: float) -> Evicted:
    """Return what the engine threw out of its cache by itself since then (Unix time)."""
    return evictions.evicted(log_path(), since)


def log_path() -> Path:
    """Return the file that the engine writes its log to."""
    return places.state() / "engine.log"


# Places of one engine


def _data() -> Path:
    return places.state() / "data"


def _run() -> Path:
    return places.state() / "run"


def _socket() -> Path:
    return sockets(places.state()) / "engine.sock"


def sockets(state: Path) -> Path:
    """Return the folder of the engine's socket: in `state`, or in /run where that makes no URL."""
    folder = state / "run" / "sockets"
    address = str(folder / "engine.sock")
    if len(os.fsencode(address)) <= _SOCKET_LIMIT and quote(address) == address:
        return folder
    return Path("/run") / f"cresset-{places.digest(os.fsencode(state))}"


def own_name(state: Path) -> str:
    """Return the name of the engine's network and cgroups; its bridge is this and a 0."""
    return f"cresset-{places.digest(os.fsencode(state))[:4]}"


# Starting


def _only_one(say: Say) -> contextlib.AbstractContextManager[None]:
    lock = places.state() / "lock"
    return places.locked(lock, lambda: say("waiting: another process starts or stops the engine"))


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """Tell what the system refused as an EngineError."""
    try:
        yield
    except (OSError, subprocess.CalledProcessError) as error:
        why = str(error)
        if isinstance(error, subprocess.CalledProcessError) and error.stderr:
            why = f"{why} {error.stderr.strip()}"
        if isinstance(error, shutil.Error):  # one entry for each file of a folder
            why = str(error.args[0][0][-1])
        raise EngineError(
            "the local engine could not be handled",
            why=why,
            next_step=f"read the logs: {log_path()} and {places.build_log()}",
        ) from error


def _parts(say: Say) -> tuple[Programs, Path]:
    if missing := needs():
        raise EngineError(
            f"the local engine cannot run here: {', '.join(need.what for need in missing)} missing",
            why="; ".join(f"{need.what} {need.why}" for need in missing),
            next_step="; ".join(dict.fromkeys(need.mend for need in missing)),
        )
    programs, root = build.programs(say), rootfs.root(say)
    places.prune("programs", programs.home)
    places.prune("root", root)
    return programs, root


def _launch(programs: Programs, root: Path, say: Say) -> None:
    say("starting the engine")
    _refuse_company()
    _furnish(root)
    name = own_name(places.state())
    if traces.bridge(name).exists():
        _clear(root, name, say)
    cidr = traces.free_range(traces.host_routes())
    chains, forwarding = traces.shared_chains(root), traces.forwarding()
    argv = command(
        _run(), programs.layer, root, _data(), sockets(places.state()), name=name, cidr=cidr
    )
    with (
        places.in_use(programs.home) as first,
        places.in_use(root) as second,
        _fresh(log_path()).open("w") as log,
    ):
        process = subprocess.Popen(
            argv,
            cwd="/",
            env=environment(os.environ),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            umask=0o022,
            start_new_session=True,  # a Ctrl-C or a closed terminal is not meant for the engine
            pass_fds=(first, second),  # held open, so that no newer build prunes its folders
        )
    watcher = Process.of(Path(f"/proc/{process.pid}/stat").read_text())
    record = Record(
        pid=process.pid,
        began=watcher.began if watcher else "",
        since=time.time(),
        version=VERSION,
        root=str(root),
        cidr=cidr,
        chains=chains,
        forwarding=forwarding,
    )
    places.write(_record_file(), json.dumps(asdict(record)))
    assert process.stdin
    with contextlib.suppress(BrokenPipeError), process.stdin as starter:  # its log says why
        starter.write(b"on record\n")
    process.returncode = 0  # it outlives us, and subprocess need not warn of that
    if not _ready(record, say):
        died = not record.process.lives()
        last = places.tail(log_path())
        _end(record, say)
        raise EngineError(
            "the engine ended as it started"
            if died
            else f"the engine was not ready after {places.minutes(time.time() - record.since)}",
            why=last,
            next_step=f"read the whole log: {log_path()}",
        )


def _refuse_company() -> None:
    """EngineError where an engine that is not on record runs on our data, or on data that went."""
    if process := _of_our_name():
        raise EngineError(
            "another engine runs on this state folder and is not on record",
            why=f"process {process} is an engine of the name {own_name(places.state())}, as ours; "
            "the folder may have been deleted while it ran",
            next_step=f"end it: kill {process}",
        )
    try:
        with (_data() / "dagger-engine.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return
    except BlockingIOError as error:
        raise EngineError(
            "another engine runs on this state folder and is not on record",
            why=f"it holds {_data() / 'dagger-engine.lock'}",
            next_step="end the dagger-engine process that `fuser` names for that file",
        ) from error


def _clear(root: Path, name: str, say: Say) -> None:
    """Take off the network of an engine whose record went with its state folder (issue 6).

    EngineError where something still uses it: what no process here is may be one elsewhere.
    """
    begun = time.monotonic()
    while traces.in_use(name):  # the kernel takes its time with what was killed
        if time.monotonic() - begun > _GONE_WITHIN:
            raise EngineError(
                f"the bridge {traces.bridge(name).name} is in use, and no engine on record has it",
                why="an engine of the same name may run in a container that shares this network",
                next_step="end it there, or name another folder in XDG_STATE_HOME",
            )
        time.sleep(0.1)
    say("an engine that is not on record left its network: taking it off")
    traces.clean(root, name, traces.range_of(root, name), (), "")


def _of_our_name() -> int | None:
    """Return the number of the process that is an engine of our name, None if there is none.

    One in a container with a network of its own may have the name too, and is no company.
    """
    argument = f"\0--network-name\0{own_name(places.state())}\0".encode()
    network = Path("/proc/self/ns/net").readlink()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            found = (process / "cmdline").read_bytes()
            is_engine = found.startswith(_ENGINE.encode() + b"\0") and argument in found
            if is_engine and (process / "ns/net").readlink() == network:
                return int(process.name)
    return None


def _fresh(log: Path) -> Path:
    """Return `log` with its old content moved aside: it may tell why the last engine ended."""
    if log.exists():
        log.replace(log.with_name(f"{log.name}.old"))
    return log


def _furnish(root: Path) -> None:
    """Lay out what `enter.sh` puts into the root: configuration and trusted certificates."""
    shutil.rmtree(_run(), ignore_errors=True)
    for folder in ("mnt", "etc/dagger", "etc/buildkit", "etc/ssl/certs", "ca-certificates"):
        (_run() / folder).mkdir(parents=True)
    _data().mkdir(exist_ok=True, mode=0o700)
    sockets(places.state()).mkdir(exist_ok=True, mode=0o700)
    disk = shutil.disk_usage(_data())
    limits = rootfs.storage(disk.total, disk.free, _bytes(_data()))
    config = rootfs.configuration(limits, rootfs.users_configuration())
    (_run() / "etc/dagger/engine.json").write_text(json.dumps(config, indent=2))
    # What engine.json has no word for: control groups of our own name, to know them again.
    (_run() / "etc/buildkit/buildkitd.toml").write_text(
        f'[worker.oci]\ndefaultCgroupParent = "{own_name(places.state())}"\n'
    )
    for name, text in rootfs.authorities(root).items():
        (_run() / "ca-certificates" / name).write_text(text)
        # The engine itself, which speaks to registries, looks here.
        (_run() / "etc/ssl/certs" / name).with_suffix(".pem").write_text(text)
    for folder in (
        "etc",
        "etc/dagger",
        "etc/buildkit",
        "etc/ssl",
        "etc/ssl/certs",
        "ca-certificates",
    ):
        (_run() / folder).chmod(0o755)


def command(
    run: Path, layer: Path, root: Path, data: Path, sockets: Path, *, name: str, cidr: str
) -> list[str]:
    """Return the command that runs an engine, and stays with it until it ends."""
    return [
        *("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"),
        *("sh", str(_ENTER), *map(str, (run, layer, root, data, sockets))),
        *("--network-name", name, "--network-cidr", cidr),
        *("--oci-cni-binary-dir", rootfs.CNI_PLUGINS),
        # Networks made ahead of their use; more are made as they are needed. The default puts
        # 128 interfaces on the host.
        *("--oci-cni-pool-size", "8"),
    ]


def environment(machine: os._Environ[str] | dict[str, str]) -> dict[str, str]:
    """Return what the engine sees of the `machine`'s environment: its proxies."""
    proxies = {name for upper in _PROXIES for name in (upper, upper.lower())}
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        **{name: value for name, value in machine.items() if name in proxies},
    }


def _ready(record: Record, say: Say) -> bool:
    """Wait until the engine answers; return False where it ends first or takes too long."""
    begun = time.monotonic()
    within = READY_WITHIN
    while time.monotonic() - begun < within:
        if _answers():
            return True
        if not record.process.lives():
            return False
        if within == READY_WITHIN and _RESETTING in places.tail(log_path(), 50):
            say("the last engine was killed: what it had cached is being removed")
            within = RESET_WITHIN
        time.sleep(0.02)
    return False


# Finding


def _record_file() -> Path:
    return places.state() / "engine.json"


def _recorded() -> Record | None:
    """Return what is on record; EngineError where another version of us wrote that."""
    file = _record_file()
    try:
        return Record(**json.loads(file.read_text()))
    except (FileNotFoundError, ValueError):
        # It is written whole, so a machine that lost its power left half of it, and no engine: one
        # that runs all the same is found by its lock.
        return None
    except TypeError as error:
        raise EngineError(
            f"{file} was written by another version of Cresset",
            why="it tells of an engine that this version cannot handle",
            next_step="run `pipeline engine stop` from the clone that started it",
        ) from error


def _engine() -> Process | None:
    """Return the engine's own process, which `enter.sh` wrote down; it may have ended."""
    try:
        return Process.of((_run() / "stat").read_text())
    except (FileNotFoundError, ValueError):
        return None


def _answers() -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(_socket()))
        except OSError:
            return False
        return True


def _bytes(folder: Path) -> int:
    # Files come and go in a running engine's folder; what du could count is good enough.
    counted = subprocess.run(
        ["du", "--summarize", "--one-file-system", "--block-size=1", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    return int(counted.stdout.split()[0]) if counted.stdout else 0


# Stopping


def _end(record: Record, say: Say) -> None:
    """End what `record` tells of, take its network off the host and forget it."""
    # Where only one of the two was killed, the kernel is about to end the other.
    processes = [found for found in (_engine(), record.process) if found and found.lives()]
    _terminate(processes, say)
    root = Path(record.root)
    traces.clean(
        root if root.exists() else rootfs.root(say),
        own_name(places.state()),
        record.cidr,
        record.chains,
        record.forwarding,
    )
    shutil.rmtree(_run(), ignore_errors=True)
    shutil.rmtree(sockets(places.state()), ignore_errors=True)
    _record_file().unlink(missing_ok=True)


def _terminate(processes: list[Process], say: Say) -> None:
    """Wait until `processes` have ended: the first is asked to, the others end with it."""
    with contextlib.ExitStack() as opened:
        handles = []
        for process in processes:
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                handles.append(os.pidfd_open(process.pid))
                opened.callback(os.close, handles[-1])
        if not handles:
            return
        say("stopping the engine")
        _signal(handles[0], signal.SIGTERM)
        if not all(_ended(handle, say) for handle in handles):
            say(f"the engine did not end within {GRACE:.0f} s: killing it, its cache is lost")
            _signal(handles[0], signal.SIGKILL)
            _ended(handles[0], say)


def _signal(handle: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, number)


def _ended(process: int, say: Say) -> bool:
    """Wait until the process of descriptor `process` has ended, at most the grace."""
    waiter = select.poll()
    waiter.register(process, select.POLLIN)
    begun = time.monotonic()
    while (elapsed := time.monotonic() - begun) < GRACE:
        if waiter.poll(places.TICK * 1000):
            return True
        say(f"the engine writes its cache down: {places.minutes(elapsed)} (log: {log_path()})")
    return False
