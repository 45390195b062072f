"""The process that runs one job: reads it on standard input, confines itself, reports as lines.

Each line on the original standard output is a JSON object with the key ``event``: ``started``,
``progress``, and last either ``result`` or ``failed``. What the job prints goes to standard error.
"""

import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final, TextIO

from gpu_optimizer.profiling_worker.confinement import confine
from gpu_optimizer.profiling_worker.limits import FailureReason, JobLimits
from shared_utils.errors import ProjectError

Report = Callable[[Mapping[str, Any]], None]
Job = Callable[[Mapping[str, Any], Report], Mapping[str, Any]]
"""Takes the payload and a function that reports progress; returns what can be written as JSON."""

# What PyTorch raises when the host has no memory; its class is a plain RuntimeError.
_NO_HOST_MEMORY: Final = ("can't allocate memory", "Cannot allocate memory", "bad_alloc")


def main() -> int:
    """Run the job described on standard input."""
    channel = _take_standard_output()
    request = json.load(sys.stdin)
    network = confine(JobLimits(**request["limits"]), request["parent_pid"])
    _write(channel, {"event": "started", "network": network})

    def report(progress: Mapping[str, Any]) -> None:
        _write(channel, {"event": "progress", **progress})

    try:
        value = _find(request["function"])(request["payload"], report)
        _write(channel, {"event": "result", "value": value})
    except ProjectError as error:
        _fail(channel, FailureReason.INVALID, str(error))
    except MemoryError as error:
        _fail(channel, FailureReason.OUT_OF_MEMORY, _short_of_memory(error))
    except RuntimeError as error:
        if not _means_no_memory(error):
            raise
        _fail(channel, FailureReason.OUT_OF_MEMORY, _short_of_memory(error))
    channel.flush()
    # Threads of libraries must not keep a finished job alive.
    os._exit(0)


def _take_standard_output() -> TextIO:
    """Keep the channel to the parent; let everything that prints write to standard error."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def _write(channel: TextIO, message: Mapping[str, Any]) -> None:
    channel.write(json.dumps(message, allow_nan=False) + "\n")
    channel.flush()


def _find(function: str) -> Job:
    module, _, name = function.partition(":")
    job: Job = getattr(importlib.import_module(module), name)
    return job


def _fail(channel: TextIO, reason: FailureReason, message: str) -> None:
    _write(channel, {"event": "failed", "reason": reason, "message": message})


def _means_no_memory(error: RuntimeError) -> bool:
    if any(base.__name__ == "OutOfMemoryError" for base in type(error).__mro__):
        return True
    return any(sign in str(error) for sign in _NO_HOST_MEMORY)


def _short_of_memory(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"The job ran out of memory. {lines[0] if lines else ''}".strip()
