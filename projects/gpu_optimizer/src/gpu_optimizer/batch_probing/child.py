"""The process that tries batch sizes, one request per line on standard input, until it closes.

The first line says what to run; then each line is a `ProbeRequest`, answered by a `ProbeResult` on
the original standard output. What models and libraries print goes to standard error. The device is
not touched before the first request, so that such a process can wait without taking memory.
"""

import importlib
import json
import multiprocessing.spawn
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final, TextIO

from gpu_optimizer.batch_probing.results import ProbeRequest, ProbeResult

Try = Callable[[ProbeRequest], ProbeResult]
INSIDE_VARIABLE: Final = "GPU_OPTIMIZER_BATCH_PROBE"
"""Set in such a process: a script that is imported here must not start the search again."""


def main() -> int:
    """Serve requests until there are no more."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.environ[INSIDE_VARIABLE] = "1"
    job = json.loads(sys.stdin.readline())
    # As the caller finds its modules; its script, where classes of the model are defined in it.
    multiprocessing.spawn.prepare(job["preparation"])
    try_size = _find(job["maker"])(job["payload"])
    _write(channel, {"ready": True})
    for line in sys.stdin:
        _write(channel, asdict(try_size(ProbeRequest(**json.loads(line)))))
    channel.flush()
    # Threads of libraries must not keep the process alive.
    os._exit(0)


def _find(name: str) -> Callable[[dict[str, Any]], Try]:
    module, _, function = name.partition(":")
    found: Callable[[dict[str, Any]], Try] = getattr(importlib.import_module(module), function)
    return found


def _write(channel: TextIO, message: dict[str, Any]) -> None:
    channel.write(json.dumps(message) + "\n")
    channel.flush()
