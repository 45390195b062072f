"""How much GPU memory will a run take, and will it fit: answered without a GPU.

A recording of the step on fake tensors goes through a replay of PyTorch's allocator; to what that
reserves comes the CUDA context of the card. PyTorch is imported when the first prediction is made.
"""

import json
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import cache
from importlib import resources

import numpy as np

from gpu_optimizer.allocator.config import AllocatorConfig
from gpu_optimizer.allocator_replay import ReplayOptions, ReplayResult, replay
from gpu_optimizer.errors import UnknownNameError
from gpu_optimizer.kernels.attention import CudaTarget
from gpu_optimizer.models.workloads import Workload
from gpu_optimizer.steps.recordings import Recording
from gpu_optimizer.types import (
    CATEGORIES,
    PHASES,
    Category,
    Machine,
    MemoryTimeline,
    Phase,
    Prediction,
)

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class DeviceConstants:
    """What a card decides beside its size."""

    name: str
    target: CudaTarget
    context_bytes: int
    """CUDA context, loaded kernels and libraries of one process that trains."""
    inference_context_bytes: int
    """The same of one that only runs forward: fewer kernels, and one thread with handles."""
    measured: bool
    """False: the contexts are upper estimates."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far predictions have been from measurements."""

    error_ratio: float
    """Largest error of the device total, as part of the prediction."""
    n_cases: int
    """Measured cases it comes from; the predictor's rules were worked out with them in view."""
    held_out_error_ratio: float
    """The same of cases that were not."""
    n_held_out: int


class Fit(StrEnum):
    """Whether a run fits a machine."""

    YES = "fits"
    TIGHT = "may not fit: within the prediction's error"
    NO = "does not fit"


def predict(
    workload: Workload, gpu: str = "H200", allocator: AllocatorConfig | None = None
) -> Prediction:
    """Predict the peak memory of a workload.

    Parameters
    ----------
    workload
        Model and how it is run.
    gpu
        A card's name, also as the driver gives it ("NVIDIA H200").
    allocator
        Settings of PyTorch's allocator; None: its defaults.

    Raises
    ------
    UnknownNameError
        If the card, the model or another name is not known.
    InvalidModelError
        If the model cannot be run as asked.
    """
    constants = device_constants(gpu)
    from gpu_optimizer.steps.recorder import record_step  # noqa: PLC0415 -- imports PyTorch

    return predict_from(record_step(workload, constants.target), constants, allocator)


def predict_from(
    recording: Recording, constants: DeviceConstants, allocator: AllocatorConfig | None = None
) -> Prediction:
    """Predict the peak memory of a recorded step; parameters as for `predict`."""
    timeline = recording.timeline
    config = allocator or AllocatorConfig()
    result = replay(timeline, config)
    event = result.allocated_peak_event
    reserved = result.reserved_peak_bytes
    trains = bool((timeline.phase == PHASES.index(Phase.BACKWARD)).any())
    context = constants.context_bytes if trains else constants.inference_context_bytes
    total = reserved + context
    unsure = 0 if constants.measured else context / total
    return Prediction(
        allocated_peak_bytes=result.allocated_peak_bytes,
        reserved_peak_bytes=reserved,
        total_bytes=total,
        error_ratio=calibration().error_ratio + unsure,
        by_category_bytes=_by_category(timeline, event, config),
        peak_phase=PHASES[timeline.phase[event]] if len(timeline) else Phase.SETUP,
        peak_module=timeline.modules[timeline.module[event]] if len(timeline) else "",
        assumptions=(*recording.assumptions, *_assumptions(constants, result)),
    )


def fits(prediction: Prediction, machine: Machine) -> Fit:
    """Say whether a predicted run fits a machine that nothing else runs on."""
    free_bytes = machine.total_bytes - machine.reserved_bytes
    margin_bytes = prediction.total_bytes * prediction.error_ratio
    if prediction.total_bytes + margin_bytes <= free_bytes:
        return Fit.YES
    return Fit.TIGHT if prediction.total_bytes - margin_bytes <= free_bytes else Fit.NO


def device_constants(gpu: str) -> DeviceConstants:
    """Look up a card by its name or a longer name that contains it.

    Raises
    ------
    UnknownNameError
        If no known card is meant.
    """
    known = _device_table()
    wanted = gpu.casefold()
    meant = [name for name in known if name.casefold() in wanted]
    if not meant:
        raise UnknownNameError("GPU", gpu, tuple(known))
    return known[max(meant, key=len)]


@cache
def calibration() -> Calibration:
    """Read how accurate predictions have been found."""
    content = json.loads(_data("prediction_calibration.json"))
    return Calibration(**{each.name: content[each.name] for each in fields(Calibration)})


@cache
def _device_table() -> dict[str, DeviceConstants]:
    devices = json.loads(_data("device_constants.json"))["devices"]
    return {
        each["name"]: DeviceConstants(
            name=each["name"],
            target=CudaTarget(
                compute_capability=(each["compute_capability"][0], each["compute_capability"][1]),
                n_multiprocessors=each["n_multiprocessors"],
                threads_per_multiprocessor=each["threads_per_multiprocessor"],
            ),
            context_bytes=each["context_mib"] * _MIB,
            inference_context_bytes=each["inference_context_mib"] * _MIB,
            measured=each["measured"],
        )
        for each in devices
    }


def _data(name: str) -> str:
    return resources.files("gpu_optimizer").joinpath("data", name).read_text(encoding="utf-8")


def _by_category(
    timeline: MemoryTimeline, event: int, config: AllocatorConfig
) -> dict[Category, int]:
    """Return what the blocks in use after an event are for; their sizes add up to the allocated."""
    segments = replay(timeline, config, ReplayOptions(snapshot_after=event)).segments
    category_of = np.zeros(int(timeline.block.max(initial=-1)) + 1, np.int8)
    category_of[timeline.block] = timeline.category
    sums = dict.fromkeys(CATEGORIES, 0)
    for block in (block for segment in segments for block in segment.blocks):
        if block.number >= 0:
            sums[CATEGORIES[category_of[block.number]]] += block.size_bytes
    return {category: size for category, size in sums.items() if size}


def _assumptions(constants: DeviceConstants, result: ReplayResult) -> tuple[str, ...]:
    said = [f"nothing else runs in the process; {result.n_cuda_mallocs} segments are reserved"]
    found = calibration()
    said.append(
        f"the error bound is the worst of {found.n_cases} measured cases; the worst of "
        f"{found.n_held_out} held-out ones was {found.held_out_error_ratio:.1%}"
    )
    if not constants.measured:
        said.append(f"the CUDA context of a {constants.name} was not measured: an upper estimate")
    return tuple(said)
