"""Every bad input is answered before anything is built: what is wrong, and what to do."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.unit.bad_inputs import TABLE, Bad
from tests.unit.running import run


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.name)
def test_a_bad_input_is_answered_in_words(bad: Bad, tmp_path: Path) -> None:
    result = bad.run(tmp_path / "checkout")
    assert result.code == bad.code, result
    assert result.out == "", "standard output is for results"
    assert "Traceback" not in result.err
    missing = [word for word in bad.words if word not in result.err]
    assert missing == [], result.err


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.name)
def test_every_mistake_says_what_is_allowed_or_comes_next(bad: Bad, tmp_path: Path) -> None:
    head, *problems = re.split(r"\n(?! )", bad.run(tmp_path / "checkout").err.rstrip())
    if not head.startswith("error:"):
        assert "Error" in bad.run(tmp_path / "another").err, "the command line's own parser"
        return
    assert head.startswith(f"error: {len(problems)} mistake")
    assert [it for it in problems if not re.search(r"\n    (allowed|next): ", it)] == []


@pytest.mark.parametrize("verb", ["env", "over"])
@pytest.mark.usefixtures("checkout", "no_machine")
def test_a_folder_that_is_gone(verb: str, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    result = run(verb)
    assert result.code == 1
    assert re.search("cannot be written|this folder is gone", result.err)
    assert "next: " in result.err


def test_the_table_is_as_long_as_promised() -> None:
    assert len(TABLE) >= 40
    assert len({bad.name for bad in TABLE}) == len(TABLE)
