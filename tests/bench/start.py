"""What the entrypoint adds to the start of a container, beside a program that does nothing.

Run by ``make bench-start IMAGE=…`` against the Docker that answers; it prints milliseconds.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

ROUNDS = 21
# By bash's own clock: another process for `date` would be half of what is measured.
LOOP = """
for i in $(seq {rounds}); do
    a=$EPOCHREALTIME; {command}; b=$EPOCHREALTIME
    echo $(( (${{b/./}} - ${{a/./}}) ))
done
"""
USER = ["-e", "UID=1234", "-e", "GID=2345", "-e", "USR=ann", "-e", "GRP=lab"]


def milliseconds(image: str, command: str) -> list[float]:
    """Return how long each run of a command in one container takes."""
    script = LOOP.format(rounds=ROUNDS, command=command)
    argv = ["docker", "run", "--rm", "--network", "none", *USER, "--entrypoint", "bash", image]
    done = subprocess.run([*argv, "-c", script], capture_output=True, text=True, check=True)
    return [int(line) / 1000 for line in done.stdout.split()]


def main() -> None:
    """Print the first start, in which the user is made, the later ones, and nothing at all."""
    image = sys.argv[1]
    first, *rest = milliseconds(image, "enter true")
    later, alone = statistics.median(rest), statistics.median(milliseconds(image, "env true"))
    print(f"enter, with the user to be made: {first:.0f} ms")
    print(f"enter, again: {later:.0f} ms; `env true`: {alone:.1f} ms; ratio {later / alone:.1f}")


if __name__ == "__main__":
    main()
