"""The local engine: Dagger built from Go modules, run in a root file system of its own.

For machines without Docker. It needs root, Go and mmdebstrap once, is shared by every clone on
the machine, and outlives the command that started it.
"""

from pathlib import Path

from pipeline.engine.local.build import VERSION, built
from pipeline.engine.local.needs import Need, install, mend, needs
from pipeline.engine.local.run import (
    Endpoint,
    Status,
    ensure,
    evicted,
    held,
    log_path,
    start,
    status,
    stop,
)

__all__ = [
    "VERSION",
    "Endpoint",
    "Need",
    "Status",
    "ensure",
    "evicted",
    "held",
    "install",
    "log_path",
    "mend",
    "needs",
    "session_program",
    "start",
    "status",
    "stop",
]


def session_program() -> Path | None:
    """Return the program that opens sessions with any engine, None where it is not built."""
    programs = built()
    return programs.session if programs else None
