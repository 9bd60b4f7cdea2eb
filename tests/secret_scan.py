"""Passwords made for a test, and how each is found again, however it was written down."""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass, field

USER = "somebody"


@dataclass
class Secrets:
    """Passwords by what they are for, and how each might be found."""

    values: dict[str, str] = field(default_factory=dict)

    def new(self, name: str) -> str:
        """Return a new password for something."""
        self.values[name] = secrets.token_hex(16)
        return self.values[name]

    def login(self, name: str) -> str:
        """Return a new ``user:password`` for something."""
        return f"{USER}:{self.new(name)}"

    def found_in(self, content: bytes) -> list[str]:
        """Return which of them are in there, plain or in base64."""
        return [
            name
            for name, value in self.values.items()
            if any(it in content for it in _written(value))
        ]


def _written(value: str) -> list[bytes]:
    """Return a password, and it in base64 at any place in what was encoded."""
    found = [value.encode()]
    for before in range(3):
        encoded = base64.b64encode(b"x" * before + value.encode())
        # The ends depend on what stands beside it.
        found.append(encoded[4 if before else 0 : -4])
    found.append(base64.b64encode(f"{USER}:{value}".encode()))
    return found
