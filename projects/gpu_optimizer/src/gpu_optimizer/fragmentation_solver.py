"""Which remedy against fragmentation helps this run: tried on its own timeline, not guessed.

`solve` replays one trace under every remedy. `apply_settings` sets the allocator of a running
process, `measure_live` says what a workload then really reserves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gpu_optimizer.allocator.config import MIB, AllocatorConfig
from gpu_optimizer.allocator_replay import ReplayOptions, ReplayResult, replay
from gpu_optimizer.errors import NoGpuError
from gpu_optimizer.remedies.fragmentation import Case, Remedy, RemedyKind, remedies
from gpu_optimizer.types import MemoryTimeline

_UNCHANGED = Remedy(
    "as it is", RemedyKind.NOTHING, "The run as it was recorded.", "-", lambda case: case
)


@dataclass(frozen=True, slots=True)
class Trial:
    """What a run reserves under one remedy."""

    remedy: Remedy
    setting: str
    """Value of `PYTORCH_ALLOC_CONF`."""
    reserved_peak_bytes: int
    waste_ratio: float
    """Part of the reserved peak beyond what the run needs, see `Solution.needed_bytes`."""
    waste_at_peak_ratio: float
    """Part not allocated at the moment when the reserved peak is reached."""
    waste_mean_ratio: float
    """Part not allocated, over all events; idle moments between steps count too."""
    n_cuda_mallocs: int
    n_cuda_frees: int
    fits: bool
    """Whether the device's memory, if a limit was given, is enough."""


@dataclass(frozen=True, slots=True)
class Solution:
    """All trials of one run."""

    needed_bytes: int
    """Allocated peak of the run as it is: what an allocator without any waste would reserve.

    The same number for all trials: a remedy that rounds sizes up allocates more, and would
    otherwise look better for it.
    """
    before: Trial
    ranked: tuple[Trial, ...]
    """Best first: those that fit, then by what they reserve, then by calls to the device."""

    @property
    def best(self) -> Trial:
        """The first of the ranked."""
        return self.ranked[0]

    def best_of(self, kind: RemedyKind) -> Trial | None:
        """Return the best trial that needs no more than this kind of change."""
        return next((trial for trial in self.ranked if trial.remedy.kind == kind), None)


def solve(
    timeline: MemoryTimeline,
    config: AllocatorConfig | None = None,
    *,
    step_starts: Sequence[int] = (),
    options: ReplayOptions | None = None,
) -> Solution:
    """Try every remedy on a timeline.

    Parameters
    ----------
    timeline
        Of a whole run, or of enough steps to show its pattern.
    config
        How the allocator is set now; None: PyTorch's defaults.
    step_starts
        Events with which steps begin, ascending; empty: remedies at the borders of steps are not
        tried.
    options
        What else happens now.
    """
    case = Case(timeline, config or AllocatorConfig(), options or ReplayOptions(), (*step_starts,))
    result = _run(case)
    needed_bytes = result.allocated_peak_bytes
    before = _trial(_UNCHANGED, case, result, needed_bytes)
    trials = [before]
    for remedy in remedies(case):
        changed = remedy.change(case)
        trials.append(_trial(remedy, changed, _run(changed), needed_bytes))
    least_bytes = min(trial.reserved_peak_bytes for trial in trials)
    grain_bytes = max(needed_bytes // 100, 1)  # 1% of the need.
    ranked = sorted(trials, key=lambda trial: _rank(trial, least_bytes, grain_bytes))
    return Solution(needed_bytes, before, tuple(ranked))


def least_device_bytes(case: Case, grain_bytes: int = 32 * MIB) -> int:
    """Return the smallest device on which a run does not run out of memory.

    Under pressure the allocator gives back segments that are wholly free, so this is less than the
    reserved peak: what is left of the waste is what costs a run its life.

    Parameters
    ----------
    case
        Its own limit is ignored.
    grain_bytes
        How exactly the answer is found.
    """
    free = replace(case, config=replace(case.config, device_bytes=None))
    result = _run(free)
    low, high = 0, -(-result.reserved_peak_bytes // grain_bytes)
    while high - low > 1:
        middle = (low + high) // 2
        config = replace(case.config, device_bytes=middle * grain_bytes)
        if _run(replace(case, config=config)).out_of_memory is None:
            high = middle
        else:
            low = middle
    return high * grain_bytes


def _run(case: Case) -> ReplayResult:
    return replay(case.timeline, case.config, case.options)


def _trial(remedy: Remedy, case: Case, result: ReplayResult, needed_bytes: int) -> Trial:
    reserved = result.reserved_peak_bytes
    return Trial(
        remedy=remedy,
        setting=case.config.as_setting(),
        reserved_peak_bytes=reserved,
        waste_ratio=max(1.0 - needed_bytes / reserved, 0.0) if reserved else 0.0,
        waste_at_peak_ratio=result.waste_at_peak_ratio,
        waste_mean_ratio=result.waste_mean_ratio,
        n_cuda_mallocs=result.n_cuda_mallocs,
        n_cuda_frees=result.n_cuda_frees,
        fits=result.out_of_memory is None,
    )


def _rank(trial: Trial, least_bytes: int, grain_bytes: int) -> tuple[bool, int, bool, int]:
    """A grain more or less does not outweigh a change of code, or calls to the device."""
    n_grains = (trial.reserved_peak_bytes - least_bytes) // grain_bytes
    is_code = trial.remedy.kind == RemedyKind.CODE
    n_calls = trial.n_cuda_mallocs + trial.n_cuda_frees
    return (not trial.fits, n_grains, is_code, n_calls)


@dataclass(frozen=True, slots=True)
class LiveUse:
    """What a workload took of the GPU, by PyTorch's own statistics."""

    allocated_peak_bytes: int
    reserved_peak_bytes: int
    n_cuda_mallocs: int
    n_cuda_frees: int

    @property
    def waste_ratio(self) -> float:
        """Part of the reserved peak beyond the allocated peak."""
        reserved = self.reserved_peak_bytes
        return 1.0 - self.allocated_peak_bytes / reserved if reserved else 0.0


def apply_settings(config: AllocatorConfig) -> str:
    """Set the caching allocator of this process; return the setting as a string.

    Segments that exist stay as they are: call `torch.cuda.empty_cache()` first, best before
    anything is allocated. The same string in `PYTORCH_ALLOC_CONF` sets it from the start.
    """
    import torch  # noqa: PLC0415  (needs seconds, and replays need none of it)

    setting = config.as_setting()
    setter = getattr(torch._C, "_accelerator_setAllocatorSettings", None)  # noqa: SLF001
    if setter is None:
        setter = torch.cuda.memory._set_allocator_settings  # noqa: SLF001
    setter(setting)
    return setting


def measure_live(workload: Callable[[], object]) -> LiveUse:
    """Run a workload on the GPU, starting with an empty cache, and say what it took.

    Raises
    ------
    NoGpuError
        PyTorch sees no GPU.
    """
    import torch  # noqa: PLC0415  (as above)

    if not torch.cuda.is_available():
        raise NoGpuError("Measuring fragmentation")
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()
    workload()
    torch.cuda.synchronize()
    after = torch.cuda.memory_stats()
    return LiveUse(
        allocated_peak_bytes=after["allocated_bytes.all.peak"],
        reserved_peak_bytes=after["reserved_bytes.all.peak"],
        n_cuda_mallocs=after["num_device_alloc"] - before["num_device_alloc"],
        n_cuda_frees=after["num_device_free"] - before["num_device_free"],
    )
