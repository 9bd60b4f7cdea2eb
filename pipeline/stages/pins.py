"""What a stage fetches that no requirements file can name, by its hash."""

from __future__ import annotations

from typing import Final

PROMPT: Final = "pure-prompt-1.28.3"
"""The prompt of the shell, from npm."""
PROMPT_SHA512: Final = (
    "474e2a452f41e31ce7878aab25453537d90ebc2ce29b8f25511199efaddd4f64"
    "d2e986a5d7db2fd711863570102c63935541b6e174d35a9b574b8a43c4a376b1"
)
