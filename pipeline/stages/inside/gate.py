#!/usr/bin/env -S python3 -IS
"""Run by ccache before a compiler that really runs: waits until there is memory for it.

Usage: gate.py COMPILER ARGUMENT...

ninja knows no kinds of files. Memory is a number of slots (SLOTS), of which a C++ compiler takes
one, and one for CUDA or flash attention as many as CUDA_SLOTS and FLASH_SLOTS say. A slot is a
locked file in SLOTS_FOLDER, which the compiler and whatever it starts inherit: it is free when the
last of them has ended, however that was. Never part of an image; keeps to the standard library.
"""

import fcntl
import os
import signal
import sys
import time

PATIENCE = 0.1  # seconds between two looks


def main():
    # Or one that waits would print a traceback where the compile is stopped.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    command = sys.argv[1:]
    # nvcc may call a compiler that is behind ccache too, and would wait for itself.
    if "CRESSET_GATED" not in os.environ:
        os.environ["CRESSET_GATED"] = "1"
        take(wanted(command))
    os.execvp(command[0], command)


def wanted(command):
    """Return how many slots a compiler takes; only its source tells, for flags name kinds too."""
    sources = [word for word in command if word.endswith(".cu")]
    if not sources:
        return 1
    return number("FLASH_SLOTS" if any("flash" in source for source in sources) else "CUDA_SLOTS")


def take(count):
    """Hold so many slots from now until the end of this process and all that it becomes."""
    # One at a time, or two could wait for each other with half of theirs.
    queue = lock("queue", fcntl.LOCK_EX)
    while count:
        for slot in range(number("SLOTS")):
            held = lock(str(slot), fcntl.LOCK_EX | fcntl.LOCK_NB)
            if held is not None:
                os.set_inheritable(held, True)
                count -= 1
                if not count:
                    break
        else:
            time.sleep(PATIENCE)
    os.close(queue)


def lock(name, how):
    """Return the descriptor of a file that is locked by it; None where another has it."""
    path = os.path.join(os.environ["SLOTS_FOLDER"], name)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def number(name):
    return int(os.environ[name])


if __name__ == "__main__":
    main()
