"""What a process that tries batch sizes may meet with, without PyTorch to start at once."""

import os
import signal
import time
from typing import Any

from gpu_optimizer.batch_probing.child import Try
from gpu_optimizer.batch_probing.results import ProbeRequest, ProbeResult


def make_trouble(payload: dict[str, Any]) -> Try:
    """Trials that end the process from some size on, or hang in it."""

    def try_size(request: ProbeRequest) -> ProbeResult:
        if request.batch_size >= payload["from"]:
            if payload["how"] == "kill":
                os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(600.0)
        return ProbeResult(request.batch_size, item_s=1e-3, n_steps=request.n_steps)

    return try_size


def make_nothing(payload: dict[str, Any]) -> Try:
    """Do not even start."""
    raise RuntimeError("no libraries for this")


def make_limited(payload: dict[str, Any]) -> Try:
    """Trials with room for so many items: in a process's first one, in later ones, and where one
    is to verify; up to so many they settle.
    """
    asked = []

    def try_size(request: ProbeRequest) -> ProbeResult:
        asked.append(request.batch_size)
        largest = payload["first"] if len(asked) == 1 else payload["later"]
        if request.n_steady_steps:
            largest = payload.get("verified", largest)
        return ProbeResult(
            request.batch_size,
            out_of_memory=request.batch_size > largest,
            item_s=1e-3,
            n_steps=request.n_steps,
            steady=request.batch_size <= payload.get("settled", largest),
            failure=payload.get("failure", ""),
            clean=payload.get("clean", True),
        )

    return try_size
