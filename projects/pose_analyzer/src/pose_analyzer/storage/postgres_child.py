"""Turns itself into a PostgreSQL server that ends when the process that started it does.

Run as a script, not as a module: it must start fast and needs nothing of this package.

    python -I -S postgres_child.py OWNER_PID UID GID POSTGRES ARGUMENT...

A script between owner and server, since `subprocess` may not run Python code between fork and exec
in a process with threads; the server takes its place and so is the owner's direct child.
"""

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def become_server(owner_pid: int, uid: int, gid: int, command: list[str]) -> None:
    """Change user, tie this process's life to its owner's, and run the server in its place."""
    if os.geteuid() != uid:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    # After the change of user, which would undo it. SIGINT is a fast, orderly shutdown.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != owner_pid:
        sys.exit("the owner ended before its server began")
    os.execve(command[0], command, {"LC_ALL": "C"})  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    become_server(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
