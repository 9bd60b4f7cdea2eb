"""The README says what the code does, and the shell completes what the README names."""

from __future__ import annotations

import re
from pathlib import Path

from tests import readme
from tests.unit.running import ROOT, checkout, run


def test_the_generated_parts_of_the_readme_are_those_of_the_code() -> None:
    text = readme.README.read_text()
    assert readme.renewed(text) == text, "run `make docs`"


def test_every_make_target_that_the_readme_names_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", readme.README.read_text(), re.MULTILINE))
    assert named <= targets


def test_a_shell_completes_verbs_and_settings(tmp_path: Path) -> None:
    def completed(words: str) -> list[str]:
        asked = {"_CRESSET_COMPLETE": "complete_bash", "COMP_WORDS": words}
        return run(environ=asked | {"COMP_CWORD": str(words.count(" "))}).out.split()

    with checkout(tmp_path):
        assert completed("cresset bu") == ["build", "build-only"]
        assert "--pytorch-version-tag" in completed("cresset build --pytorch")
