"""The certificates that this machine trusts."""

from __future__ import annotations

import ssl


def bundle() -> str | bool:
    """Return the machine's CA file or folder for requests, which trusts certifi's unless told.

    True, which means certifi's, where the machine has none.
    """
    paths = ssl.get_default_verify_paths()
    return paths.cafile or paths.capath or True
