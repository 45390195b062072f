"""Facts about this machine, and how its C library is to treat this process."""

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# glibc's malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8


def n_usable_cores() -> int:
    """Cores this process may run on, where the system tells; else all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def give_memory_back() -> bool:
    """Have malloc return what is freed to the system, for processes that run for weeks.

    By default glibc gives every thread an arena of its own, and raises its thresholds as large
    blocks are freed. What libraries allocate and free in many threads then leaves holes: a service
    whose clients come and go grows by tens of megabytes a minute without leaking anything.

    Returns
    -------
    bool
        False where the C library is another one; nothing is changed then.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    settings = ((_M_ARENA_MAX, 2), (_M_MMAP_THRESHOLD, 1 << 18), (_M_TRIM_THRESHOLD, 1 << 20))
    return all(mallopt(option, value) == 1 for option, value in settings)


def trim_memory() -> bool:
    """Return free pages to the system now, holes in the middle of the heap included.

    Takes some milliseconds, in which other threads may have to wait for memory.

    Returns
    -------
    bool
        False where the C library is not glibc, or had nothing to return.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return False
    return bool(trim(0))


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Make frees depend on the program alone, not on when the collector happens to run."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
