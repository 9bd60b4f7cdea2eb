"""Machines for engines, as far as one machine can have several: a network of its own for each.

Each is a network namespace behind a pair of virtual interfaces, with an engine that keeps its own
state and is reached by TCP alone. What a team has one of for all (a registry, Redis) stays outside.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.engine.conftest import ROOT

_PORT = 7717
_READY_SECONDS = 20.0

# Handed on by a program of its own: what listens in one network reaches what is in another.
_FORWARD = """
import asyncio, ssl, sys

async def pipe(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof() if writer.can_write_eof() else writer.close()
    except OSError:
        pass

def to(target):
    async def serve(reader, writer):
        try:
            if target.startswith("/"):
                ahead, back = await asyncio.open_unix_connection(target)
            else:
                ahead, back = await asyncio.open_connection(*target.split(":"))
        except OSError:
            writer.close()
            return
        await asyncio.gather(pipe(reader, back), pipe(ahead, writer))
        back.close()
        writer.close()
    return serve

async def main(pem, *pairs):
    context = None
    if pem:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=pem)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(pem)
    for pair in pairs:
        here, target = pair.split("=")
        await asyncio.start_server(to(target), *here.split(":"), ssl=context)
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


@dataclass(frozen=True)
class Machine:
    """A machine with an engine."""

    number: int
    state: Path
    address: str
    outside: str
    """The address of this machine in that network."""

    @property
    def namespace(self) -> str:
        return f"cresset-test{self.number}"

    @property
    def host(self) -> str:
        """How the engine is reached, for ENGINES."""
        return f"tcp://{self.address}:{_PORT}"

    def run(self, *args: str) -> dict[str, Any]:
        """Run ``cresset engine`` on it; return what it printed as JSON, if it was that."""
        done = subprocess.run(
            [*_inside(self.namespace), sys.executable, "-m", "pipeline", "engine", *args],
            cwd=ROOT,
            env={**os.environ, "XDG_STATE_HOME": str(self.state)},
            capture_output=True,
            text=True,
            check=True,
        )
        said: dict[str, Any] = json.loads(done.stdout) if "--json" in args else {}
        return said

    def kill(self) -> None:
        """Kill the engine, as a power cut would; it does not come back by itself."""
        os.kill(int(self.run("status", "--json")["pid"]), signal.SIGKILL)


@contextlib.contextmanager
def machine(number: int, state: Path, registry: str) -> Iterator[Machine]:
    """Yield a machine whose loopback has the registry too, as ``localhost:port``."""
    net = f"198.18.{number}"
    made = Machine(number, state, f"{net}.2", f"{net}.1")
    port = registry.partition(":")[2].partition("/")[0]
    with _network(made.namespace, f"ct{number}", net), contextlib.ExitStack() as stack:
        try:
            made.run("start")
            socket_ = made.run("status", "--json")["socket"]
            stack.enter_context(forwarding((), f"{made.outside}:{port}=127.0.0.1:{port}"))
            stack.enter_context(
                forwarding(
                    _inside(made.namespace),
                    f"127.0.0.1:{port}={made.outside}:{port}",
                    f"{made.address}:{_PORT}={socket_}",
                )
            )
            yield made
        finally:
            made.run("stop")
            shutil.rmtree(state, ignore_errors=True)  # gigabytes, which pytest would keep


def _inside(namespace: str) -> tuple[str, ...]:
    # Not by `ip netns exec`, which mounts another /sys, without the control groups.
    return ("nsenter", f"--net=/run/netns/{namespace}")


@contextlib.contextmanager
def _network(namespace: str, link: str, net: str) -> Iterator[None]:
    """Make a network namespace that reaches this machine and the world through it."""
    rule = ("POSTROUTING", "-s", f"{net}.0/24", "!", "-o", link, "-j", "MASQUERADE")
    ways = [("FORWARD", flag, link, "-j", "ACCEPT") for flag in ("-i", "-o")]
    _run("ip", "netns", "add", namespace)
    try:
        _run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _run("ip", "addr", "add", f"{net}.1/24", "dev", link)
        _run("ip", "link", "set", link, "up")
        inside = ("ip", "-n", namespace)
        _run(*inside, "link", "set", "lo", "up")
        _run(*inside, "addr", "add", f"{net}.2/24", "dev", "eth0")
        _run(*inside, "link", "set", "eth0", "up")
        _run(*inside, "route", "add", "default", "via", f"{net}.1")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        _run("iptables", "-t", "nat", "-A", *rule)
        for way in ways:
            _run("iptables", "-I", *way)
        yield
    finally:
        for command in (
            ("iptables", "-t", "nat", "-D", *rule),
            *(("iptables", "-D", *way) for way in ways),
            ("ip", "link", "delete", link),
            ("ip", "netns", "delete", namespace),
        ):
            subprocess.run(command, check=False, capture_output=True)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextlib.contextmanager
def forwarding(enter: tuple[str, ...], *pairs: str, tls: Path | None = None) -> Iterator[None]:
    """Hand on connections to an address, as ``here:port=there:port`` or a socket's path.

    With `tls` they come by TLS; the file has the certificate, its key, and who vouches for clients.
    """
    command = [*enter, sys.executable, "-c", _FORWARD, str(tls or ""), *pairs]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield
        finally:
            process.terminate()
