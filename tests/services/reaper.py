"""A process that outlives its parent by a moment: ends process groups and removes folders when the parent is gone.

Its standard input is a pipe from the parent and carries one order per line: `watch PID`, `forget PID`, `remove FOLDER`.
The end of the input means that the parent has ended, in whatever way, `kill -9` included. Runs as a plain script.
"""

import contextlib
import os
import shutil
import signal
import sys


def main() -> None:
    groups: set[int] = set()
    folders: list[str] = []
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, signal.SIG_IGN)
    for line in sys.stdin:
        order, _, argument = line.rstrip("\n").partition(" ")
        if order == "watch":
            groups.add(int(argument))
        elif order == "forget":
            groups.discard(int(argument))
        elif order == "remove":
            folders.append(argument)
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


main()
