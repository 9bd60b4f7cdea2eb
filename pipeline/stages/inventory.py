"""Which packages are in a built image, asked inside it."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from dagger import Container, dag

from pipeline.spec import Target
from pipeline.stages.packages import VENV
from pipeline.stages.toolchain import TOOLS

_PROGRAM = "/run/inventory.py"


def inventory(image: Container, target: Target) -> Container:
    """Return the image after the question; its standard output holds the packages as JSON."""
    source = resources.files("pipeline.stages.inside").joinpath("inventory.py").read_text()
    python = f"{TOOLS if target == 'devel' else VENV}/bin/python"
    # Isolated: what a PYTHONPATH leads to is mounted, and no part of the image.
    return image.with_mounted_file(_PROGRAM, dag.file("inventory.py", source)).with_exec(
        [python, "-I", _PROGRAM]
    )


def read(output: str) -> dict[str, Any]:
    """Return the packages that were printed."""
    facts: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return facts
