"""The local engine: Dagger built from Go modules, run in a root file system of its own.

For machines without Docker. It needs root, Go and mmdebstrap once, is shared by every clone on
the machine, and outlives the command that started it.
"""

from pipeline.engine.local.build import VERSION
from pipeline.engine.local.needs import Need, needs
from pipeline.engine.local.run import Endpoint, Status, ensure, log_path, start, status, stop

__all__ = [
    "VERSION",
    "Endpoint",
    "Need",
    "Status",
    "ensure",
    "log_path",
    "needs",
    "start",
    "status",
    "stop",
]
