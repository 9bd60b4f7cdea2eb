"""Stands in for ``build-only`` of one cell: does what the cell's settings say, as a build would.

Run by its text (``python -c``), with the arguments and the environment of a child.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    notes = Path(os.environ["STAND_IN_NOTES"])
    if sys.argv[1] == "engine":
        if os.environ.get("ENGINES", "") in os.environ.get("STAND_IN_DEAD", "").split():
            ended(4, {"why": "nobody there"})
        sys.stdout.write(json.dumps({"cores": 4, "memory": 1 << 36}))
        return
    name = os.environ["STAND_IN_NAME"]
    with (notes / "handed").open("a") as file:
        file.write(f"{name} {os.environ['ENGINES']}\n")
    sys.stderr.write("log: nowhere\npip: running\n")
    sys.stderr.flush()
    what, _, rest = os.environ.get("STAND_IN_DOES", "deliver").partition(" ")
    if os.environ["ENGINES"] in os.environ.get("STAND_IN_DIES", "").split():
        ended(4, {"why": "it was killed"})
    if what == "wait" and rest in {"", os.environ["ENGINES"]}:
        wait(notes, name)
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "fail":
        code, stage = rest.split()
        ended(int(code), {"what": f"{name} cannot be built", "stage": stage, "next": "mend it"})
    if what == "once":
        first = notes / f"{name}.first"
        if not first.exists():
            first.touch()
            ended(int(rest), {"what": "not this time", "stage": "deliver"})
    time.sleep(0.1)
    delivered = {"ref": f"registry/{name}@sha256:1", "digest": "sha256:1", "size": 5}
    asked = {"args": sys.argv[1:], "summary": os.environ.get("GITHUB_STEP_SUMMARY")}
    if what == "edited":
        delivered["key"] = f"another key of {name}"
    sys.stdout.write(json.dumps(delivered | asked | {"cached": ["base"]}))


def wait(notes: Path, name: str) -> None:
    """Wait for Ctrl-C, and end in good order."""
    try:
        (notes / f"{name}.pid").write_text(str(os.getpid()))
        signal.pause()
    except KeyboardInterrupt:
        (notes / f"{name}.told").touch()
        ended(130, {"what": "stopped"})


def ended(code: int, error: dict[str, str]) -> None:
    sys.stdout.write(json.dumps({"error": error}))
    raise SystemExit(code)


main()
