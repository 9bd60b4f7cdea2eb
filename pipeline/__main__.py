"""``python -m pipeline`` and ``cresset``."""

from __future__ import annotations

import sys

from pipeline.errors import CressetError


def main() -> None:
    """Run the command line; end with the exit code of what went wrong."""
    from pipeline.cli import app  # noqa: PLC0415 - an error above this would be a traceback

    try:
        app()
    except CressetError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        # A folder that can't be written, a disk that is full: named by the system itself.
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
