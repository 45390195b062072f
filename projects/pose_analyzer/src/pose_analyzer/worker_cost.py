"""What workers for recorded videos cost on rented machines."""

import math
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Instance:
    """A machine that can be rented by the hour."""

    name: str
    gpu: str
    usd_per_hour: float
    chunk_s: float | None
    """Seconds it takes for a chunk of 30 s of video; None: not known."""
    basis: str
    """Where `chunk_s` is from."""


PRICES_AS_OF: Final = "2026-09-24, AWS price list, us-east-1, on demand"

INSTANCES: Final = (
    Instance("g4dn.xlarge", "T4 16 GB", 0.526, 10.0, "the plan's estimate, not measured"),
    Instance("g6.xlarge", "L4 24 GB", 0.8048, None, "not measured"),
    Instance("g5.xlarge", "A10G 24 GB", 1.006, None, "not measured"),
)

SCHEDULES: Final = ((1, 24.0), (3, 8.0), (5, 24.0))
"""Workers, and hours a day."""

_HOUR_S: Final = 3600.0


def per_day_usd(instance: Instance, n_workers: int, hours: float) -> float:
    """Cost of so many workers for so many hours a day."""
    return instance.usd_per_hour * n_workers * hours


def per_video_usd(instance: Instance, video_s: float, chunk_s: float) -> float | None:
    """Cost of the machine time that one video takes; None where its pace is not known.

    Parameters
    ----------
    instance
        Which machine.
    video_s
        Length of the video.
    chunk_s
        Length of a chunk; the time for it is taken to grow with its length.
    """
    if instance.chunk_s is None:
        return None
    return instance.usd_per_hour * _chunks(video_s, chunk_s) * _pace_s(instance, chunk_s) / _HOUR_S


def workers_for(instance: Instance, videos_per_hour: float, video_s: float) -> int | None:
    """How many workers keep up with that many videos; None where the pace is not known."""
    if instance.chunk_s is None:
        return None
    busy_s = videos_per_hour * video_s / _REFERENCE_CHUNK_S * instance.chunk_s
    return max(math.ceil(busy_s / _HOUR_S), 1)


_REFERENCE_CHUNK_S: Final = 30.0


def _pace_s(instance: Instance, chunk_s: float) -> float:
    assert instance.chunk_s is not None  # noqa: S101 - asked by the caller
    return instance.chunk_s * chunk_s / _REFERENCE_CHUNK_S


def _chunks(video_s: float, chunk_s: float) -> int:
    return math.ceil(video_s / chunk_s)
