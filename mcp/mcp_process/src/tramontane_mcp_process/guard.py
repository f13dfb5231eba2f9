"""Runs a command and ends it, with all it has started, when the process that asked for it is gone.

Run as a program: ``python guard.py PARENT_PID COMMAND ARGUMENT...``. It leads a process group of
its own, shares its standard streams with the command, and imports nothing beyond the standard
library so that it starts in milliseconds. POSIX only; on Windows a job object does this.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys

POLL_SECS = 1.0
"""How often to look whether the parent is still there."""

GRACE_SECS = 2.0
"""Between asking the group to end and killing it."""


def main(parent: int, command: list[str]) -> int:
    """Exit status of the command, as a shell would give it."""
    try:
        child = subprocess.Popen(command)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return 126
    # From here on only the command holds the streams: their end is its end.
    for stream in (0, 1):
        os.close(stream)
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: None)  # the group's: the command has it too
    while child.poll() is None:
        if os.getppid() != parent:
            _end(child)
            return 0
        if select.select([woken], [], [], POLL_SECS)[0]:
            woken.recv(64)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _end(child: subprocess.Popen[bytes]) -> None:
    os.killpg(0, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(GRACE_SECS)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
