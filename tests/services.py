"""Real services that tests and benchmarks start on loopback, and end."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

_READY_SECONDS = 20.0

_CONFIG = """\
version: 0.1
log: {{level: warn}}
storage: {{filesystem: {{rootdirectory: {data}}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}"}}
{auth}"""

_AUTH = "auth: {{htpasswd: {{realm: tests, path: {path}}}}}\n"


@contextlib.contextmanager
def registry(folder: Path, *, htpasswd: Path | None = None) -> Iterator[str]:
    """Run Debian's docker-registry with its data in `folder`; yield its ``localhost:port``."""
    port = free_port()
    config = folder / "registry.yml"
    auth = _AUTH.format(path=htpasswd) if htpasswd else ""
    config.write_text(_CONFIG.format(data=folder / "data", port=port, auth=auth))
    log = folder / "registry.log"
    with (
        log.open("wb") as out,
        subprocess.Popen(
            ["docker-registry", "serve", str(config)], stdout=out, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            _wait_until_ready(f"http://127.0.0.1:{port}/v2/", process, log)
            yield f"localhost:{port}"
        finally:
            process.terminate()


def free_port() -> int:
    """Return a port of loopback that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1):  # noqa: S310 - a loopback URL of ours
                return
        except urllib.error.HTTPError:
            return  # 401 is an answer
        except OSError:
            time.sleep(0.05)
    msg = f"docker-registry does not answer:\n{log.read_text()}"
    raise RuntimeError(msg)
