"""The command line run in this process, in a checkout of its own, and what it said."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from pipeline.settings import ALIASES, NAMES
from pipeline.spec import Arch, ImageSpec

ROOT = Path(__file__).parents[2]

Files = Mapping[str, str | bytes | None]
"""Files of a checkout by name; None takes one away."""


@dataclass(frozen=True)
class Result:
    """How a run ended, and what a user saw of it."""

    code: int
    out: str
    err: str


class Nowhere:
    """A destination that has no image yet; nothing can be delivered to it."""

    name = "nowhere"
    repository = "nowhere"

    def find(self, _: ImageSpec) -> None:
        return None


def without_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without anything that a setting or a terminal would be read from."""
    terminal = {"FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "NO_COLOR"}
    return {
        name: value
        for name, value in environ.items()
        if name not in {*NAMES, *ALIASES, *terminal} and "DAGGER" not in name
    }


@contextlib.contextmanager
def checkout(folder: Path, files: Files | None = None) -> Iterator[Path]:
    """Stand in a new checkout: the repository's ``reqs/``, no ``.env``, no setting in the shell."""
    shutil.copytree(ROOT / "reqs", folder / "reqs")
    for name, content in (files or {}).items():
        _put(folder / name, content)
    private = {f"XDG_{kind}_HOME": str(folder / kind.lower()) for kind in ("CACHE", "STATE")}
    width = {"TERMINAL_WIDTH": "200", "COLUMNS": "200", "_TYPER_FORCE_DISABLE_TERMINAL": "1"}
    environ = without_settings(os.environ) | private | width
    with mock.patch.dict(os.environ, environ, clear=True), contextlib.chdir(folder):
        yield folder


def _put(path: Path, content: str | bytes | None) -> None:
    if content is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def run(
    *argv: str,
    environ: Mapping[str, str] | None = None,
    gpus: tuple[Arch, ...] = (),
    driver: str = "",
) -> Result:
    """Return what ``cresset`` does with these arguments, on a machine with these GPUs."""
    from pipeline.__main__ import main  # noqa: PLC0415 - as late as in a real run

    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        mock.patch.object(sys, "argv", ["cresset", *argv]),
        # Or usage messages would name the module that this runs from.
        mock.patch.object(sys.modules["__main__"], "__package__", None),
        mock.patch.dict(os.environ, environ or {}),
        mock.patch("pipeline.host.gpu.capabilities", return_value=list(gpus)),
        mock.patch("pipeline.host.gpu.driver", return_value=driver),
        mock.patch("pipeline.publish.destination", return_value=Nowhere()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Result(code, out.getvalue(), err.getvalue())
