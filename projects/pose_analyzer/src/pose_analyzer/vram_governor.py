"""What to do when the GPU's memory runs short: smaller batches, then streams that wait.

`step` is asked at every reading of the memory, some five times a second, and answers with what is
to be done. Memory counts whoever uses it, other programs included; what they hold, no shedding
frees. So streams are shed a few at a time, and no further once shedding is seen to be in vain.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

_BYTES_PER_GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class GovernorConfig:
    """When to act.

    The times are somewhat less than multiples of 0.2 s, the distance of the readings, so that a
    reading that comes a little early does not put the action off until the next.

    Raises
    ------
    ValueError
        The thresholds or the limits of the batch are not in order.
    """

    max_batch: int
    """Frames in a batch while there is memory enough."""
    min_batch: int = 1
    min_active: int = 1
    """So many streams are analysed however little memory is left."""
    high_ratio: float = 0.90
    """Of the memory in use. From here on: pressure."""
    low_ratio: float = 0.70
    """Below it: calm. In between everything stays as it is."""
    shed_after_s: float = 0.6
    """Pressure must last so long before the first stream is shed; until then batches shrink."""
    shed_interval_s: float = 0.45
    resume_after_s: float = 0.55
    """Calm must last so long before anything is given back."""
    resume_interval_s: float = 0.15
    """Between two streams: one comes back at each reading."""
    grow_interval_s: float = 0.55
    """Between two doublings of the batch, which cost the pipeline preparation."""
    cooldown_s: float = 2.95
    """Time after shedding in which no stream is resumed."""
    max_vain_sheds: int = 2
    """After so many in a row that changed nothing, no further stream is shed."""
    relief_bytes: int = 64 << 20
    """A fall by this much since streams were shed means that it helped."""
    rise_ratio: float = 0.01
    """A rise by this much of all memory means that others take more: shed again, in vain or not."""

    def __post_init__(self) -> None:
        if not 0.0 < self.low_ratio < self.high_ratio <= 1.0:
            raise ValueError("Thresholds must be 0 < low_ratio < high_ratio <= 1.")
        if not 1 <= self.min_batch <= self.max_batch:
            raise ValueError("Batches must be 1 <= min_batch <= max_batch.")


@dataclass(frozen=True, slots=True)
class VramReading:
    """How full the GPU is."""

    time_s: float
    """By the service's monotonic clock."""
    used_bytes: int
    """By all processes."""
    total_bytes: int

    @property
    def used_ratio(self) -> float:
        """Part of the memory in use."""
        return self.used_bytes / self.total_bytes


@dataclass(frozen=True, slots=True)
class StreamRank:
    """A stream as the governor sees it, with earlier actions already carried out."""

    stream_id: str
    priority: int
    """Higher is kept longer."""
    started_s: float
    """Among equal priorities the older is kept longer."""
    active: bool
    """Its frames are analysed: neither shed nor paused by its client."""
    shed: bool


@dataclass(frozen=True, slots=True)
class Shed:
    """Let these streams wait, least important first, and tell their clients why."""

    stream_ids: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Resume:
    """Analyse these streams again, most important first, and tell their clients why."""

    stream_ids: tuple[str, ...]
    reason: str


Action = Shed | Resume


@dataclass(frozen=True, slots=True)
class GovernorState:
    """What is remembered between readings; begin with `initial_state`."""

    batch_limit: int
    """Take at most so many frames at once."""
    pressure_since_s: float | None = None
    """First of the readings under pressure that led up to now."""
    calm_since_s: float | None = None
    last_shed_s: float = -math.inf
    last_relaxed_s: float = -math.inf
    """When a stream was last resumed or the batch grew."""
    used_when_shed_bytes: int | None = None
    """Memory in use when streams were last shed; forgotten once all is calm."""
    n_vain_sheds: int = 0
    """How many times in a row shedding changed nothing, the last time not judged yet."""


def initial_state(config: GovernorConfig) -> GovernorState:
    """State before the first reading: batches of full size, nobody shed."""
    return GovernorState(batch_limit=config.max_batch)


def step(
    config: GovernorConfig,
    state: GovernorState,
    reading: VramReading | None,
    streams: Sequence[StreamRank],
) -> tuple[GovernorState, tuple[Action, ...]]:
    """What to do now, given the latest reading.

    Parameters
    ----------
    config
        When to act.
    state
        As the last step returned it.
    reading
        Not older than the last one; None while the driver does not tell.
    streams
        All there are at present, in any order. Those that ended are left out and thereby forgotten.

    Returns
    -------
    tuple
        The next state, whose `batch_limit` holds from now on, and what becomes of streams: nothing
        while the memory is not known, nor between the thresholds, with one exception: where fewer
        than `GovernorConfig.min_active` streams are left active, shed ones take the free places.
    """
    if reading is None:
        return replace(state, pressure_since_s=None, calm_since_s=None), ()
    state = _timed(config, state, reading)
    active = sorted((stream for stream in streams if stream.active), key=_importance)
    shed = sorted((stream for stream in streams if stream.shed), key=_importance, reverse=True)
    n_missing = config.min_active - len(active)
    if shed and n_missing > 0:
        reason = "The streams that were kept ended or were paused. Frames are analysed again."
        return _resumed(state, reading, shed[:n_missing], reason)
    if state.pressure_since_s is not None:
        lasted = reading.time_s - state.pressure_since_s >= config.shed_after_s
        return _relieve(config, state, reading, active, lasted=lasted)
    if state.calm_since_s is None or reading.time_s - state.calm_since_s < config.resume_after_s:
        return state, ()
    return _relax(config, state, reading, shed)


def _importance(stream: StreamRank) -> tuple[int, float, str]:
    return stream.priority, -stream.started_s, stream.stream_id


def _timed(config: GovernorConfig, state: GovernorState, reading: VramReading) -> GovernorState:
    """State that knows since when there has been pressure, or calm."""
    ratio, time_s = reading.used_ratio, reading.time_s
    if ratio >= config.high_ratio:
        since_s = time_s if state.pressure_since_s is None else state.pressure_since_s
        return replace(state, pressure_since_s=since_s, calm_since_s=None)
    if ratio < config.low_ratio:
        since_s = time_s if state.calm_since_s is None else state.calm_since_s
        return replace(
            state,
            pressure_since_s=None,
            calm_since_s=since_s,
            used_when_shed_bytes=None,
            n_vain_sheds=0,
        )
    return replace(state, pressure_since_s=None, calm_since_s=None)


def _relieve(
    config: GovernorConfig,
    state: GovernorState,
    reading: VramReading,
    active: Sequence[StreamRank],
    *,
    lasted: bool,
) -> tuple[GovernorState, tuple[Action, ...]]:
    """Under pressure: halve the batch; once pressure has lasted, shed the least important."""
    # Readings that come late must not delay the shedding: it never waits for the last halving.
    n_frames = config.min_batch if lasted else max(config.min_batch, state.batch_limit // 2)
    state = replace(state, batch_limit=min(state.batch_limit, n_frames))
    n_streams = min(max(1, len(active) // 4), len(active) - config.min_active)
    n_vain = _n_vain_sheds(config, state, reading)
    due = lasted and reading.time_s - state.last_shed_s >= config.shed_interval_s
    if not due or n_streams <= 0 or n_vain >= config.max_vain_sheds:
        return state, ()
    state = replace(
        state,
        last_shed_s=reading.time_s,
        used_when_shed_bytes=reading.used_bytes,
        n_vain_sheds=n_vain,
    )
    ids = tuple(stream.stream_id for stream in active[:n_streams])
    return state, (Shed(ids, _why_shed(config, reading)),)


def _n_vain_sheds(config: GovernorConfig, state: GovernorState, reading: VramReading) -> int:
    """How many times in a row shedding changed nothing, the last time included."""
    if state.used_when_shed_bytes is None:
        return 0
    change_bytes = reading.used_bytes - state.used_when_shed_bytes
    helped = change_bytes <= -config.relief_bytes
    worse = change_bytes >= config.rise_ratio * reading.total_bytes
    return 0 if helped or worse else state.n_vain_sheds + 1


def _relax(
    config: GovernorConfig, state: GovernorState, reading: VramReading, shed: Sequence[StreamRank]
) -> tuple[GovernorState, tuple[Action, ...]]:
    """In lasting calm: resume the most important stream; with all back, double the batch."""
    now_s = reading.time_s
    waited_s = now_s - state.last_relaxed_s
    if shed:
        cool = now_s - state.last_shed_s >= config.cooldown_s
        if not cool or waited_s < config.resume_interval_s:
            return state, ()
        return _resumed(state, reading, shed[:1], _why_resumed(reading))
    if state.batch_limit == config.max_batch or waited_s < config.grow_interval_s:
        return state, ()
    n_frames = min(config.max_batch, 2 * state.batch_limit)
    return replace(state, batch_limit=n_frames, last_relaxed_s=now_s), ()


def _resumed(
    state: GovernorState, reading: VramReading, streams: Sequence[StreamRank], reason: str
) -> tuple[GovernorState, tuple[Action, ...]]:
    ids = tuple(stream.stream_id for stream in streams)
    return replace(state, last_relaxed_s=reading.time_s), (Resume(ids, reason),)


def _why_shed(config: GovernorConfig, reading: VramReading) -> str:
    return (
        f"GPU memory is short: {_fullness(reading)} is in use, by this service and other programs,"
        f" and from {config.high_ratio:.0%} on the streams of lowest priority wait. This one goes"
        f" on by itself soon after less than {config.low_ratio:.0%} is in use; what was counted is"
        " kept."
    )


def _why_resumed(reading: VramReading) -> str:
    return f"There is GPU memory again: {_fullness(reading)} is in use. Frames are analysed again."


def _fullness(reading: VramReading) -> str:
    return (
        f"{reading.used_ratio:.0%} of it ({reading.used_bytes / _BYTES_PER_GIB:.1f} of"
        f" {reading.total_bytes / _BYTES_PER_GIB:.1f} GiB)"
    )
