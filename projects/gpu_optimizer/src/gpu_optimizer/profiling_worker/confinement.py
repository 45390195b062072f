"""Takes away from this process what a job does not need. Called once, before the job's code."""

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn

from gpu_optimizer.profiling_worker.limits import JobLimits, NetworkConfinement

# linux/sched.h, linux/prctl.h
_CLONE_NEWUSER: Final = 0x1000_0000
_CLONE_NEWNET: Final = 0x4000_0000
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38

_PRIVATE_MEMORY_SLACK_BYTES: Final = 1 << 30
"""Private memory that PyTorch reserves without touching it: stacks of threads, arenas."""
_CPU_GRACE_S: Final = 5
_REFUSED_EVENTS: Final = frozenset(
    {
        "socket.__new__",
        "socket.bind",
        "socket.connect",
        "socket.getaddrinfo",
        "socket.gethostbyaddr",
        "socket.gethostbyname",
        "socket.sendmsg",
        "socket.sendto",
    }
)


def confine(limits: JobLimits, parent_pid: int) -> NetworkConfinement:
    """Drop network, privileges and resources; end with the parent.

    Must run while the process has one thread only.

    Parameters
    ----------
    limits
        What the job may use. Wall time, resident memory and the number of processes are watched by
        the parent: for these the system's own limits count something else (the address space, all
        processes of the user).
    parent_pid
        Who started this process; it ends at once if that one is gone already.

    Returns
    -------
    NetworkConfinement
        How far the network is out of reach.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    network = _leave_network(libc)
    # After the namespaces: changing credentials clears the signal.
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)
    os.umask(0o077)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, limits.file_bytes)
    _limit(resource.RLIMIT_NOFILE, limits.n_open_files)
    _limit(resource.RLIMIT_CPU, limits.cpu_s, limits.cpu_s + _CPU_GRACE_S)
    if limits.limit_private_memory:
        _limit(resource.RLIMIT_DATA, limits.memory_bytes + _PRIVATE_MEMORY_SLACK_BYTES)
    return network


def _limit(kind: int, soft: int, hard: int | None = None) -> None:
    """Set a limit, or leave a lower one that is there already."""
    ceiling = resource.getrlimit(kind)[1]
    if ceiling == resource.RLIM_INFINITY:
        ceiling = sys.maxsize
    hard = min(soft if hard is None else hard, ceiling)
    resource.setrlimit(kind, (min(soft, hard), hard))


def _leave_network(libc: ctypes.CDLL) -> NetworkConfinement:
    """Enter an empty network namespace, by privilege or in a user namespace of one's own."""
    if libc.unshare(_CLONE_NEWNET) == 0:
        return NetworkConfinement.NAMESPACE
    user_id, group_id = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0:
        # Only for looks: unmapped, the process calls itself nobody, its rights stay the same.
        with suppress(OSError):
            Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
            Path("/proc/self/uid_map").write_text(f"{user_id} {user_id} 1", encoding="ascii")
            Path("/proc/self/gid_map").write_text(f"{group_id} {group_id} 1", encoding="ascii")
        return NetworkConfinement.NAMESPACE
    refuse_sockets()
    return NetworkConfinement.AUDIT_HOOK


def refuse_sockets() -> None:
    """Let Python refuse every socket in this process; cannot be undone."""
    sys.addaudithook(_refuse)


def _refuse(event: str, _arguments: Sequence[Any]) -> None:
    if event in _REFUSED_EVENTS:
        _raise_refusal()


def _raise_refusal() -> NoReturn:
    raise PermissionError("A job has no network.")
