"""The local engine as a user meets it: it starts, builds, survives, and leaves nothing behind.

What is built is shared with the machine's own engine; what runs is an engine of these tests'.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.engine import local
from pipeline.engine.local import build, places, rootfs, run, traces
from pipeline.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.engine

SESSION = """
import asyncio, sys, time
import dagger
from dagger import dag

SKIPPED = ["usr/share/doc", "usr/share/locale", "usr/share/perl", "usr/lib/git-core"]

async def main():
    async with dagger.connection(dagger.Config(log_output=sys.stderr, retry=None)):
        root = dag.host().directory({root!r}, exclude=SKIPPED)
        base = dag.container().with_rootfs(root)
{body}

asyncio.run(main())
"""


def quiet(_: str) -> None: ...


@pytest.fixture(scope="module")
def root() -> Path:
    """The engine's root file system: the one image that needs no registry."""
    build.programs(print)
    return rootfs.root(print)


@pytest.fixture
def engine(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], local.Endpoint]]:
    """Give the function that ensures an engine of this test's own; it is stopped at the end."""
    assert root
    # A path as long as this needs a socket elsewhere, too.
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / ("state" * 15)))
    yield lambda: local.ensure(quiet)
    local.stop(quiet)


def in_session(endpoint: local.Endpoint, root: Path, body: str, timeout: float = 120) -> str:
    """Return what a pipeline with `body` prints; a process of its own, as a user's would be."""
    lines = "\n".join(f"        {line}" for line in body.strip().splitlines())
    done = subprocess.run(
        [sys.executable, "-c", SESSION.format(root=str(root), body=lines)],
        env=os.environ
        | {
            "_EXPERIMENTAL_DAGGER_CLI_BIN": str(endpoint.session_bin),
            "_EXPERIMENTAL_DAGGER_RUNNER_HOST": endpoint.runner_host,
        },
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


# Building in it


def test_an_exec_reaches_the_network_and_trusts_what_the_machine_trusts(
    engine: Callable[[], local.Endpoint], root: Path
) -> None:
    endpoint = engine()
    out = in_session(
        endpoint,
        root,
        """
update = ["apt-get", "-o", "APT::Update::Error-Mode=any", "update"]
await base.with_exec(update).sync()
print("updated")
print(await base.with_exec(["ls", "/usr/local/share/ca-certificates"]).stdout())
""",
    )
    assert "updated" in out
    assert set(rootfs.authorities(root)) <= set(out.split())


def test_a_registry_on_a_loopback_port_is_within_reach(
    engine: Callable[[], local.Endpoint], root: Path, tmp_path: Path
) -> None:
    (tmp_path / "served").write_text("from the host")
    server = subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "0"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with server:
        try:
            assert server.stdout
            port = server.stdout.readline().split("port ")[1].split()[0]
            out = in_session(
                engine(),
                root,
                f"print(await dag.http('http://127.0.0.1:{port}/served').contents())",
            )
        finally:
            server.terminate()
    assert "from the host" in out


def test_spans_and_logs_reach_an_otlp_receiver_while_an_exec_runs(
    engine: Callable[[], local.Endpoint], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[tuple[float, str, bytes]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append((time.time(), self.path, body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as receiver:
        threading.Thread(target=receiver.serve_forever).start()
        url = f"http://127.0.0.1:{receiver.server_port}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{url}/v1/traces")
        # Logs are sent only where they are asked for by their own name.
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", f"{url}/v1/logs")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_LIVE", "1")
        out = in_session(
            engine(),
            root,
            """
talk = ["sh", "-c", "echo word-of-the-exec; sleep 3; date +%s.%N"]
print((await base.with_exec(talk).stdout()).split()[1])
""",
        )
        receiver.shutdown()
    ended = float(out)
    early = [(path, body) for at, path, body in received if at < ended]
    assert any(path == "/v1/traces" and b"withExec" in body for path, body in early)
    assert any(path == "/v1/logs" and b"word-of-the-exec" in body for path, body in early)


def test_what_was_built_is_there_after_a_restart(
    engine: Callable[[], local.Endpoint], root: Path
) -> None:
    body = "print(await base.with_exec(['sh', '-c', 'date +%s%N']).stdout())"
    first = in_session(engine(), root, body)
    assert local.stop(quiet)
    assert in_session(engine(), root, body) == first


def test_sessions_end_when_the_engine_is_killed(
    engine: Callable[[], local.Endpoint], root: Path
) -> None:
    endpoint = engine()
    pid = local.status().pid
    out = in_session(
        endpoint,
        root,
        f"""
await base.with_exec(["true"]).sync()
import os, signal
asyncio.get_running_loop().call_later(0.5, os.kill, {pid}, signal.SIGKILL)
try:
    await base.with_exec(["sleep", "300"]).sync()
except dagger.DaggerError as error:
    print("told:", type(error).__name__)
    sys.stdout.flush()
    os._exit(0)
""",
        timeout=60,
    )
    assert "told: TransportError" in out


@pytest.mark.parametrize("closed", [0.0, 1.0])
def test_a_session_without_its_engine_does_not_hang(
    engine: Callable[[], local.Endpoint], closed: float
) -> None:
    endpoint = engine()
    session = subprocess.Popen(
        [endpoint.session_bin, "session"],
        env=os.environ | {"_EXPERIMENTAL_DAGGER_RUNNER_HOST": endpoint.runner_host},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert session.stdout
    assert session.stdout.readline()
    pid = local.status().pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    time.sleep(closed)
    _, said = session.communicate(timeout=20)
    assert session.returncode == 1
    assert "the engine does not answer" in said


def test_a_session_says_in_one_line_what_is_wrong(engine: Callable[[], local.Endpoint]) -> None:
    environment = os.environ | {"_EXPERIMENTAL_DAGGER_RUNNER_HOST": "unix:///nowhere.sock"}
    session = subprocess.Popen(
        [engine().session_bin, "session"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert session.wait(10) == 1
    printed, said = session.communicate()
    assert printed == ""
    assert len(said.splitlines()) == 1
    assert "nowhere.sock" in said


def test_a_ctrl_c_is_left_to_the_sdk(engine: Callable[[], local.Endpoint]) -> None:
    endpoint = engine()
    session = subprocess.Popen(
        [endpoint.session_bin, "session"],
        env=os.environ | {"_EXPERIMENTAL_DAGGER_RUNNER_HOST": endpoint.runner_host},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert session.stdout
    assert session.stdout.readline()
    session.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        session.wait(1)
    session.communicate(timeout=20)
    assert session.returncode == 0


# Its life


def test_a_running_engine_costs_next_to_nothing(engine: Callable[[], local.Endpoint]) -> None:
    endpoint = engine()
    begun = time.perf_counter()
    assert engine() == endpoint
    assert time.perf_counter() - begun < 0.2  # 10 ms on an idle machine


@pytest.mark.usefixtures("engine")
def test_two_starts_at_once_give_one_engine() -> None:
    script = (
        "from pipeline.engine import local\n"
        "local.ensure(lambda line: None)\n"
        "print(local.status().pid)\n"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    pids = {process.communicate(timeout=120)[0].strip() for process in both}
    assert pids == {str(local.status().pid)}


@pytest.mark.parametrize("victim", ["engine", "supervisor"])
def test_a_killed_engine_is_noticed_and_started_again(
    engine: Callable[[], local.Endpoint], root: Path, victim: str
) -> None:
    before = engine()
    pid = local.status().pid
    assert pid
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(pid if victim == "engine" else parent, signal.SIGKILL)
    assert until(lambda: not local.status().running)
    assert until(lambda: not Path(f"/proc/{pid}").exists())

    assert engine() == before
    assert local.status().pid != pid
    assert "alive" in in_session(
        before, root, "print(await base.with_exec(['echo', 'alive']).stdout())"
    )


def test_an_engine_that_is_not_on_record_is_left_alone(
    engine: Callable[[], local.Endpoint], root: Path
) -> None:
    endpoint = engine()
    record = places.state() / "engine.json"
    aside = record.rename(record.with_name("aside"))
    try:
        with pytest.raises(EngineError, match="another engine runs on this state folder"):
            engine()
    finally:
        aside.rename(record)
    assert engine() == endpoint
    assert "alive" in in_session(
        endpoint, root, "print(await base.with_exec(['echo', 'alive']).stdout())"
    )


def test_an_engine_starts_again_where_the_folder_of_a_killed_one_was_deleted(
    engine: Callable[[], local.Endpoint], root: Path
) -> None:
    engine()
    for name in ("engine.json", "data"):
        (places.state() / name).rename(places.state() / f"old-{name}")
    with pytest.raises(EngineError) as refused:
        engine()
    process = int(refused.value.next_step.rpartition("kill ")[2])
    os.kill(process, signal.SIGKILL)
    assert until(lambda: not Path(f"/proc/{process}").exists())
    assert "alive" in in_session(
        engine(), root, "print(await base.with_exec(['echo', 'alive']).stdout())"
    )


def test_an_engine_that_cannot_start_says_why(
    engine: Callable[[], local.Endpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config/dagger/engine.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"noSuchKey": 1}')
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    with pytest.raises(EngineError) as told:
        engine()
    assert "noSuchKey" in str(told.value)
    assert str(local.log_path()) in str(told.value)
    assert not local.status().running


# The host


def host(root: Path) -> dict[str, object]:
    """Return what an engine could change on this host, less what another engine of ours does."""
    own = f"{run.own_name(places.state())}0"
    routes = [line.split() for line in Path("/proc/net/route").read_text().splitlines()]
    others = {
        fields[0]: f" 10.{int(fields[1][4:6], 16)}."
        for fields in routes
        if fields[0].startswith("cresset-") and fields[0] != own
    }

    def foreign(rule: str) -> bool:
        named = any(f'"{bridge[:-1]}\\"' in rule for bridge in others)
        return named or any(prefix in rule for prefix in others.values())

    tables = {
        f"{variant} {table}": [
            line
            for line in traces._run(
                root, f"iptables-{variant}-save", "-t", table, check=False
            ).splitlines()
            if line.startswith("-A") and not foreign(line)
        ]
        for variant in ("legacy", "nft")
        for table in ("nat", "filter")
    }
    links = [
        Path(folder, name)
        for folder in ("/usr/bin", "/usr/sbin", "/etc/alternatives")
        for name in ("iptables", "iptables-save", "iptables-restore", "ip6tables")
    ]
    return tables | {
        "resolv.conf": Path("/etc/resolv.conf").read_bytes(),
        "hosts": Path("/etc/hosts").read_bytes(),
        "links": [(str(link), str(link.readlink())) for link in links if link.is_symlink()],
        "files": [
            (str(link), sha256(link.read_bytes()).hexdigest()) for link in links if link.exists()
        ],
        "mounts": Path("/proc/mounts").read_text(),
        "interfaces": sorted(
            interface.name
            for interface in Path("/sys/class/net").iterdir()
            if interface.name not in others and not (interface / "master").exists()
        ),
        "forwarding": traces.forwarding(),
        "sockets": sorted(Path("/run").glob("cresset-*")),
        "cgroups": sorted(Path("/sys/fs/cgroup").rglob(f"{own[:-1]}*")),
    }


@pytest.mark.parametrize("ending", ["stop", "kill"])
def test_the_host_is_as_it_was_before(
    engine: Callable[[], local.Endpoint], root: Path, ending: str
) -> None:
    before = host(root)
    endpoint = engine()
    in_session(endpoint, root, "await base.with_exec(['true']).sync()")
    assert f"{run.own_name(places.state())}0" in host(root)["interfaces"]  # type: ignore[operator]
    if ending == "kill":
        pid = local.status().pid
        assert pid
        os.kill(pid, signal.SIGKILL)
        assert until(lambda: not local.status().running)
    local.stop(quiet)
    assert host(root) == before


def test_stopping_twice_is_no_mistake(engine: Callable[[], local.Endpoint]) -> None:
    engine()
    assert local.stop(quiet) is True
    assert local.stop(quiet) is False


def test_the_engines_own_root_stays_as_it_was_built(
    engine: Callable[[], local.Endpoint], root: Path
) -> None:
    newest = max(_changed(root))
    engine()
    local.stop(quiet)
    assert max(_changed(root)) == newest


def _changed(folder: Path) -> Iterator[float]:
    for file in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            yield file.lstat().st_ctime
