"""``python -m pipeline`` and ``cresset``."""

from __future__ import annotations

import json
import sys
from typing import NoReturn

from pipeline.errors import CressetError


def main() -> None:
    """Run the command line; end with the exit code of what went wrong."""
    from pipeline.cli import app  # noqa: PLC0415 - an error above this would be a traceback

    try:
        app()
    except CressetError as error:
        _end(error)
    except OSError as error:
        # A folder that can't be written, a disk that is full: named by the system itself.
        _end(CressetError(str(error)))


def _end(error: CressetError) -> NoReturn:
    """Say what went wrong: to a person always, on standard output to a program that asked."""
    sys.stderr.write(f"error: {error}\n")
    # What stands after -- is for the program in a container.
    ours = sys.argv[: sys.argv.index("--")] if "--" in sys.argv else sys.argv
    if "--json" in ours:
        sys.stdout.write(json.dumps({"error": error.as_json()}) + "\n")
    raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
