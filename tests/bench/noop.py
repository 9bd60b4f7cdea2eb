"""``make bench``: a build with nothing to do, and one with a line added, beside docker buildx.

Both sides make the `simple` image from the same base and requirements, turn by turn on one
machine in one run, so that the ratio holds whatever else the machine is doing. It needs root, a
Docker daemon with buildx, and docker-registry. ``--lines`` adds the slower second part.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import ssl
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline import reqs, settings, validate
from pipeline.host.bootstrap import base_archive
from tests.services import registry

ROUNDS = 11
BASE = "cresset-bench-base:1"
ROOT = Path(__file__).parents[2]

DOCKERFILE = """\
FROM {base}
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \\
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \\
    apt-get update -q && apt-get install -q -y --no-install-recommends \\
    ca-certificates libjemalloc2 tzdata python3 python3-venv
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \\
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \\
    apt-get update -q && apt-get install -q -y --no-install-recommends {apt}
RUN python3 -m venv /opt/venv
COPY {pip} /tmp/
RUN --mount=type=cache,target=/mnt/pip --mount=type=secret,id=ca \
    PIP_CACHE_DIR=/mnt/pip PIP_CERT=/run/secrets/ca /opt/venv/bin/pip install -q -r /tmp/{pip}
RUN ln -snf /usr/share/zoneinfo/UTC /etc/localtime
"""


def main() -> None:
    """Print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", action="store_true", help="also time a line added to pip-train")
    options = parser.parse_args()
    with checkout() as folder, registry(folder) as host:
        ours = command(sys.executable, "-m", "pipeline", "build", "simple", "--registry", host)
        theirs = buildx(folder, f"{host}/bench:1")
        for name, build in (("cresset", ours), ("buildx", theirs)):
            print(f"{name:<40} first build         {build():6.1f} s")
        show("nothing to do", ours, theirs, ROUNDS)
        for name, argv in PARTS.items():
            print(f"    of which {name:<37} {median(command(*argv), ROUNDS):6.3f} s")
        if options.lines:
            push = command("docker", "push", "--quiet", f"{host}/bench:1")
            push()
            mine, its = add_line(ours, "six"), add_line(theirs, "toml") + push()
            print(f"one line added to pip-train, to the registry: cresset  {mine:6.1f} s")
            print(f"one line added to pip-train, to the registry: buildx   {its:6.1f} s")
            print(f"    ratio                                              {mine / its:6.2f}")


PARTS = {
    "starting Python": (sys.executable, "-c", "pass"),
    "and importing typer": (sys.executable, "-c", "import typer"),
    "and pydantic with the settings": (sys.executable, "-c", "import typer, pipeline.settings"),
    "and the tables, spec and verbs": (
        sys.executable,
        "-c",
        "import pipeline.cli, pipeline.build, pipeline.validate",
    ),
}


@contextlib.contextmanager
def checkout() -> Iterator[Path]:
    """Go to a copy of the requirements, where lines can be added."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "reqs", folder / "reqs")
        os.chdir(folder)
        yield folder


def command(*argv: str) -> Callable[[], float]:
    """Return a function that runs a command and says how many seconds it took."""

    def run() -> float:
        start = time.perf_counter()
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(argv)} failed:\n{done.stderr}")
        return time.perf_counter() - start

    return run


def buildx(folder: Path, tag: str) -> Callable[[], float]:
    """Return a function that builds an equal Dockerfile, its base already loaded into Docker."""
    spec = validate.image_spec(settings.load(environ={}, env_file=Path("none")).settings, "simple")
    archive = base_archive(spec.base, lambda line: print(line, file=sys.stderr))
    import_base(archive)
    text = DOCKERFILE.format(base=BASE, apt=" ".join(spec.apt), pip=reqs.PIP_TRAIN)
    (folder / "Dockerfile").write_text(text)
    return command(
        "docker", "buildx", "build", "--network", "host", "--load", "--tag", tag,
        # Behind a private CA, which our side hands to the builds by itself.
        "--secret", f"id=ca,src={ssl.get_default_verify_paths().cafile}",
        "--file", "Dockerfile", "reqs",
    )  # fmt: skip


def import_base(archive: Path) -> None:
    """Load the root file system in an OCI archive into Docker, which reads no such archive."""
    with tarfile.open(archive) as tar:
        largest = max(tar.getmembers(), key=lambda member: member.size)
        rootfs = tar.extractfile(largest)
        assert rootfs is not None
        with subprocess.Popen(["docker", "import", "-", BASE], stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            shutil.copyfileobj(rootfs, process.stdin)


def median(run: Callable[[], float], rounds: int) -> float:
    """Return the median of some runs, in seconds."""
    return statistics.median(run() for _ in range(rounds))


def show(what: str, ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> None:
    """Print both medians, taken turn by turn, and the ratio."""
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    mine, its = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"{what}, median of {rounds}:  cresset       {mine:6.3f} s")
    print(f"{what}, median of {rounds}:  buildx        {its:6.3f} s")
    print(f"    ratio                               {mine / its:6.2f}")


def add_line(build: Callable[[], float], package: str) -> float:
    """Return the seconds of a build after a line was added to pip-train."""
    with (reqs.FOLDER / reqs.PIP_TRAIN).open("a") as file:
        file.write(f"{package}\n")
    return build()


if __name__ == "__main__":
    main()
