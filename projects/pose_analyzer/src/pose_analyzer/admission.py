"""Whether there is room for one more stream, by what was measured."""

from dataclasses import dataclass
from typing import Final

_BYTES_PER_GIB: Final = 1 << 30
_WAIT_FOR_A_STREAM_TO_END_S: Final = 30.0
_WAIT_FOR_MEMORY_S: Final = 10.0
"""The governor has every stream back within it once memory is free."""


@dataclass(frozen=True, slots=True)
class AdmissionConfig:
    """Where the service is full."""

    max_streams: int | None = None
    """None: as many as the detector can serve."""
    min_stream_fps: float = 8.0
    """Analysed frames a second below which repetitions are no longer counted reliably."""
    vram_high_ratio: float = 0.90
    """The governor's threshold: a stream that would reach it would be shed at once."""
    bytes_per_stream: int = 0
    """GPU memory one more stream takes, such as that of its own video decoder."""


@dataclass(frozen=True, slots=True)
class Load:
    """What the service is busy with."""

    n_streams: int
    """All that have not ended, paused and shed ones included: they may come back."""
    expected_fps_total: float
    """Sum of the rates these streams asked for."""
    capacity_fps: float
    """Frames a second the detector manages at full load, as measured."""
    vram_used_bytes: int | None = None
    """By all processes; None without a GPU, or where the driver does not tell."""
    vram_total_bytes: int | None = None
    n_shed: int = 0
    """Streams that wait for GPU memory."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """There is room."""


@dataclass(frozen=True, slots=True)
class Refused:
    """There is none; a value, since it is expected."""

    reason: str
    """Sentences for the client: the numbers, and what to do."""
    retry_after_s: float


Admission = Admitted | Refused


def admit(config: AdmissionConfig, load: Load, requested_fps: float) -> Admission:
    """Whether a stream of `requested_fps` frames a second may start.

    Frames are shared out so that a stream gets what it asks for, or as much as any other. Then
    everybody gets enough, the rate they asked for or `AdmissionConfig.min_stream_fps`, exactly
    where the detector manages the sum of all that is enough.
    """
    reason = _too_many(config, load) or _too_slow(config, load, requested_fps)
    if reason is not None:
        return Refused(reason, _WAIT_FOR_A_STREAM_TO_END_S)
    reason = _too_full(config, load)
    return Admitted() if reason is None else Refused(reason, _WAIT_FOR_MEMORY_S)


def _too_many(config: AdmissionConfig, load: Load) -> str | None:
    if config.max_streams is None or load.n_streams < config.max_streams:
        return None
    return (
        f"This service takes {config.max_streams} streams and has {load.n_streams}. End a stream"
        " that is no longer needed, or try again later."
    )


def _too_slow(config: AdmissionConfig, load: Load, requested_fps: float) -> str | None:
    if load.n_streams == 0:
        # Alone it gets all there is. A slow device, or a measurement taken while the machine was
        # busy, must not keep everybody out.
        return None
    enough_fps = min(config.min_stream_fps, requested_fps)
    # Of the streams there are only the sum is known; this is at least what they need.
    taken_fps = min(load.expected_fps_total, load.n_streams * config.min_stream_fps)
    if taken_fps + enough_fps <= load.capacity_fps:
        return None
    share_fps = load.capacity_fps / (load.n_streams + 1)
    return (
        f"The detector manages {load.capacity_fps:.0f} frames a second, and {load.n_streams}"
        f" stream(s) need {taken_fps:.0f} of them to count repetitions; this one would need"
        f" {enough_fps:.3g} more, where a fair share is {share_fps:.3g}. End a stream that is no"
        " longer needed, ask for fewer frames a second, or try again later."
    )


def _too_full(config: AdmissionConfig, load: Load) -> str | None:
    if load.n_shed > 0:
        return (
            f"{load.n_shed} stream(s) already wait for GPU memory. Try again once they are back,"
            " or free memory that other programs hold on this GPU."
        )
    used_bytes, total_bytes = load.vram_used_bytes, load.vram_total_bytes
    if used_bytes is None or not total_bytes:
        return None
    if used_bytes + config.bytes_per_stream < config.vram_high_ratio * total_bytes:
        return None
    own = ""
    if config.bytes_per_stream:
        own = f", and a stream takes {config.bytes_per_stream / _BYTES_PER_GIB:.2f} GiB"
    return (
        f"GPU memory is short: {used_bytes / _BYTES_PER_GIB:.1f} of"
        f" {total_bytes / _BYTES_PER_GIB:.1f} GiB is in use ({used_bytes / total_bytes:.0%}), by"
        f" this service and other programs{own}; it must stay below"
        f" {config.vram_high_ratio:.0%}. Free memory that other programs hold on this GPU, or try"
        " again later."
    )
