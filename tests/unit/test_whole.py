"""Folders for what is half done: gone at the end, and later where their process was killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pipeline.host import whole

HOLD = """
import sys
from pathlib import Path
from pipeline.host import whole

with whole.scratch(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("a bundle")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_a_scratch_folder_goes_at_the_end(tmp_path: Path) -> None:
    with whole.scratch(tmp_path) as folder:
        (folder / "it").touch()
        with whole.scratch(tmp_path) as other:
            assert {folder, other} == set(tmp_path.iterdir()), "what is in use stays"
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_with_the_next(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout
        left = Path(holder.stdout.readline().strip())
        with whole.scratch(tmp_path):
            assert (left / "half").exists()
        holder.kill()
    assert left.exists()
    with whole.scratch(tmp_path):
        assert not left.exists()
    assert [it.name for it in tmp_path.iterdir()] == ["mine"]
