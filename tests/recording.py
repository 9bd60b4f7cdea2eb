"""``make recording``: a day with a container, recorded from a real terminal, as text and as SVG.

It takes a Docker with Compose, and the image of IMAGE in it. tmux is the terminal.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / ".github" / "terminal.svg"
USER = {"uid": "1234", "gid": "2345", "usr": "ann", "grp": "lab", "project": "recording"}
COLUMNS = 100
SECONDS = 90.0

AT_PROMPT = "\N{HEAVY RIGHT-POINTING ANGLE QUOTATION MARK ORNAMENT}"
DAY: tuple[tuple[str, str], ...] = (
    ("make up", "is up, from"),
    ("make exec", AT_PROMPT),
    ("id; pwd", "/opt/project"),
    (
        "python -c 'import torch; print(torch.__version__, torch.randn(2, 3) @ torch.ones(3))'",
        "tensor",
    ),
    ("pip install --no-index --no-deps torch[opt-einsum]", "already satisfied"),
    ("touch written-in-the-container; exit", ""),
    ("ls -ln | grep written", "1234"),
    ("make ls | grep -o '^recording.*)'", "running(1)"),
    ("make down", ""),
    ("make run COMMAND='python --version'", "Python 3"),
    ("make up", "is up, from"),
    ("make start", ""),
    ("make down; echo that was all", "that was all\n"),
)
"""What is typed, and what has come when the next may be."""


def checkout(folder: Path, image: str) -> None:
    """Make a checkout of somebody's, with a .env that names the image."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml", ".compose.yaml"):
        shutil.copy2(ROOT / name, folder)
    for name in ("compose", "reqs"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    os.chown(folder, int(USER["uid"]), int(USER["gid"]))
    folder.chmod(0o755)
    flags = [word for name, value in USER.items() for word in (f"--{name}", value)]
    argv = [sys.executable, "-m", "pipeline", "env", *flags, "--image", image]
    subprocess.run(argv, cwd=folder, check=True, capture_output=True)


def record(folder: Path) -> str:
    """Return what the terminal shows of a day, with its colors."""
    socket = str(folder.parent / "tmux")

    def tmux(*args: str) -> str:
        argv = ["tmux", "-S", socket, "-f", "/dev/null", *args]
        # A make below another one would say which folders it enters.
        outer = dict.fromkeys(("MAKEFLAGS", "MAKELEVEL", "MFLAGS"), "")
        env = {**os.environ, **outer, "TERM": "xterm-256color", "PS1": "$ "}
        return subprocess.run(
            argv, cwd=folder, env=env, check=True, capture_output=True, text=True
        ).stdout

    tmux("new-session", "-d", "-x", str(COLUMNS), "-y", "50", "sh")
    tmux("set-option", "-g", "history-limit", "5000")
    try:
        for typed, shown in DAY:
            before = tmux("capture-pane", "-p", "-J", "-S", "-")
            tmux("send-keys", "-l", typed)
            tmux("send-keys", "Enter")
            deadline = time.monotonic() + SECONDS
            while True:
                time.sleep(0.3)
                screen = tmux("capture-pane", "-p", "-J", "-S", "-")
                new = screen.strip()[len(before.strip()) + len(typed) :]
                ended = screen.rstrip().endswith(("#", "$", AT_PROMPT))
                if shown.strip() in new and ended:
                    break
                if time.monotonic() > deadline:
                    raise SystemExit(f"{typed!r} does not show {shown!r}:\n{screen}")
        return tmux("capture-pane", "-p", "-e", "-S", "-")
    finally:
        tmux("kill-server")


def main() -> None:
    """Record a day, print it, and draw it."""
    image = sys.argv[1]
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        folder = Path(parent, "project")
        folder.mkdir()
        checkout(folder, image)
        try:
            text = Text.from_ansi(record(folder).rstrip())
        finally:
            down = [sys.executable, "-m", "pipeline", "down", "--volumes"]
            subprocess.run(down, cwd=folder, check=False, capture_output=True)
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True)
    console.print(text)
    PICTURE.write_text(console.export_svg(title="a dev container, from up to down"))
    print(text.plain)


if __name__ == "__main__":
    main()
