"""Tries one batch size after the other in this process, each with a model built anew."""

import gc
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

import torch

from gpu_optimizer.batch_probing.results import ProbeRequest, ProbeResult
from gpu_optimizer.steps.builder import Step

_LEFT_BYTES: Final = 64 << 20
"""What libraries may keep of the device between trials; more, and something was not freed."""
# What libraries say that were refused memory and do not raise PyTorch's own error.
_MEANS_OUT_OF_MEMORY: Final = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)
_REASON_CHARACTERS: Final = 600
_N_ALIKE: Final = 4
"""Steps in a row that each gave as much memory back and took it again: so will all others."""


@runtime_checkable
class Meter(Protocol):
    """What a trial needs to know of the device's memory."""

    limit_bytes: int
    """What the allocator may reserve."""

    def begin(self) -> None:
        """Forget earlier peaks."""

    def wait(self) -> None:
        """Wait until the device has done all that was asked of it."""

    def taken_bytes(self) -> int:
        """All that was ever taken from the device, whether it was given back or not."""

    def peaks(self) -> tuple[int, int]:
        """Highest allocated and reserved memory since `begin`, bytes."""

    def is_overfull(self) -> bool:
        """Whether the device is fuller than it may be, with what all programs use."""

    def release(self) -> int:
        """Give back what is not in use; what is left, bytes."""


@dataclass(frozen=True, slots=True)
class MemoryCap:
    """How much of the device may be used."""

    max_ratio: float
    """Of all memory there is, or of `bytes`."""
    bytes: int | None = None
    """Memory of the allocator, as if the card had no more; None: the card's own memory counts,
    with the CUDA context and what other programs use."""


class CudaMeter:
    """Memory of the current CUDA device, capped.

    Parameters
    ----------
    cap
        Trials beyond it run out of memory.
    """

    def __init__(self, cap: MemoryCap) -> None:
        # The context has to be there before what is left can be known.
        torch.cuda.synchronize()
        free_bytes, total_bytes = torch.cuda.mem_get_info()
        self._full_bytes = None if cap.bytes is not None else int(cap.max_ratio * total_bytes)
        if cap.bytes is None:
            limit_bytes = int(cap.max_ratio * total_bytes) - (total_bytes - free_bytes)
        else:
            limit_bytes = int(cap.max_ratio * cap.bytes)
        self.limit_bytes = min(max(limit_bytes, 0), total_bytes)
        torch.cuda.set_per_process_memory_fraction(self.limit_bytes / total_bytes)

    def begin(self) -> None:
        """Forget earlier peaks."""
        torch.cuda.reset_peak_memory_stats()

    def wait(self) -> None:
        """Wait until the device has done all that was asked of it."""
        torch.cuda.synchronize()

    def taken_bytes(self) -> int:
        """All that was ever taken from the device; also counts pages of expandable segments."""
        return int(torch.cuda.memory_stats()["reserved_bytes.all.allocated"])

    def peaks(self) -> tuple[int, int]:
        """Highest allocated and reserved memory since `begin`, bytes."""
        return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()

    def is_overfull(self) -> bool:
        """Whether all programs together use more than the cap."""
        if self._full_bytes is None:
            return False
        free_bytes, total_bytes = torch.cuda.mem_get_info()
        return total_bytes - free_bytes > self._full_bytes

    def release(self) -> int:
        """Give back what is not in use; what is left, bytes."""
        clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)  # noqa: SLF001
        if clear is not None:
            clear()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()


def try_batch_size(
    build: Callable[[int], Step], request: ProbeRequest, meter: Meter
) -> ProbeResult:
    """Run some steps with one batch size, and leave nothing of them behind.

    Parameters
    ----------
    build
        Makes model, inputs and optimizer for a batch size.
    request
        Size and number of steps.
    meter
        Of the device that `build` uses.
    """
    began_s = time.perf_counter()
    meter.begin()
    times_s: list[float] = []
    n_steady, out_of_memory, failure = 0, False, ""
    try:
        n_steady = _run(build, request, meter, times_s)
        out_of_memory = meter.is_overfull()
    # The model is the caller's: whatever it raises is an answer about this batch size.
    except Exception as error:  # noqa: BLE001
        out_of_memory = means_out_of_memory(error)
        failure = "" if out_of_memory else _reason(error)
        # Frames keep the tensors of the failed step alive.
        traceback.clear_frames(error.__traceback__)
    ran = not out_of_memory and not failure
    allocated_bytes, reserved_bytes = meter.peaks()
    gc.collect()
    timed = times_s[1:] or times_s
    clean = _release(meter) <= _LEFT_BYTES
    return ProbeResult(
        batch_size=request.batch_size,
        out_of_memory=out_of_memory,
        peak_allocated_bytes=allocated_bytes,
        peak_reserved_bytes=reserved_bytes,
        item_s=statistics.median_low(timed) / request.batch_size if ran and timed else None,
        n_steps=len(times_s),
        steady=ran and n_steady > 0,
        failure=failure,
        limit_bytes=meter.limit_bytes,
        clean=clean,
        took_s=time.perf_counter() - began_s,
    )


def _run(
    build: Callable[[int], Step], request: ProbeRequest, meter: Meter, times_s: list[float]
) -> int:
    """Build and run; how many steps in a row took nothing more from the device at the end."""
    step = build(request.batch_size)
    meter.wait()
    n_steady, n_alike, last_bytes = 0, 0, -1
    for _ in range(request.n_steps):
        taken_bytes, began_s = meter.taken_bytes(), time.perf_counter()
        step.run()
        meter.wait()
        times_s.append(time.perf_counter() - began_s)
        more_bytes = meter.taken_bytes() - taken_bytes
        n_steady = n_steady + 1 if more_bytes == 0 else 0
        n_alike = n_alike + 1 if more_bytes == last_bytes else 1
        last_bytes = more_bytes
        enough = request.n_steady_steps
        if enough and (n_steady >= enough or (more_bytes > 0 and n_alike >= _N_ALIKE)):
            break
    return n_steady


def means_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device has not enough memory, whoever raised it."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    is_from_library = isinstance(error, RuntimeError)
    return is_from_library and any(sign in str(error) for sign in _MEANS_OUT_OF_MEMORY)


def _reason(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}".strip()
    return text[:_REASON_CHARACTERS]


def _release(meter: Meter) -> int:
    try:
        return meter.release()
    except RuntimeError:
        # After an error in a kernel the CUDA context answers nothing any more.
        return _LEFT_BYTES + 1
