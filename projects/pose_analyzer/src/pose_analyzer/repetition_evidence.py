"""What was seen during one repetition: feature statistics, conditions on them, ranges of motion."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from jaxtyping import Bool, Float

from pose_analyzer.movement_features import FEATURE_INDEX, FEATURE_NAMES
from pose_analyzer.skeletons import ANGLE_NAMES
from pose_analyzer.types import RangeOfMotion

Zone = Literal["unknown", "start", "full"]
Where = Literal["start", "full", "all"]
Statistic = Literal["mean", "min", "max", "range"]

# A position's mean is taken with this memory, so that only its latest moments count.
_MEMORY_S: Final = 0.4
_MIN_TRUSTED_SHARE: Final = 0.5


@dataclass(frozen=True, slots=True)
class Condition:
    """A statistic of one feature, at one position or over the whole repetition, in bounds.

    At a position only the mean is known. A condition on a feature that was never seen fails.
    """

    feature: str
    at: Where = "full"
    statistic: Statistic = "mean"
    min: float = -math.inf
    max: float = math.inf


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """One frame as the counter sees it."""

    time_s: float
    features: Float[np.ndarray, "13"]
    angles_deg: Float[np.ndarray, "12"]
    angles_trusted: Bool[np.ndarray, "12"]


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """Running statistics of the repetition under way."""

    start_mean: Float[np.ndarray, "13"]
    full_mean: Float[np.ndarray, "13"]
    feature_min: Float[np.ndarray, "13"]
    feature_max: Float[np.ndarray, "13"]
    depth: float
    """Largest progress so far."""


def no_evidence() -> Evidence:
    """Before the first frame of a repetition."""
    n = len(FEATURE_NAMES)
    return Evidence(
        start_mean=np.full(n, np.nan),
        full_mean=np.full(n, np.nan),
        feature_min=np.full(n, np.inf),
        feature_max=np.full(n, -np.inf),
        depth=-math.inf,
    )


def continued(previous: Evidence) -> Evidence:
    """Evidence of a repetition that begins at the start position where the previous one ended."""
    start = previous.start_mean
    return replace(
        no_evidence(),
        start_mean=start,
        feature_min=np.where(np.isnan(start), np.inf, start),
        feature_max=np.where(np.isnan(start), -np.inf, start),
    )


def accumulate(
    evidence: Evidence, observation: Observation, progress: float, dt_s: float, zone: Zone
) -> Evidence:
    """Add one frame, `dt_s` after the previous one and at the position `zone`."""
    gain = 1.0 - math.exp(-dt_s / _MEMORY_S)
    features = observation.features
    start_mean, full_mean = evidence.start_mean, evidence.full_mean
    if zone == "start":
        start_mean = _blend(start_mean, features, gain)
    elif zone == "full":
        full_mean = _blend(full_mean, features, gain)
    return Evidence(
        start_mean=start_mean,
        full_mean=full_mean,
        feature_min=np.fmin(evidence.feature_min, features),
        feature_max=np.fmax(evidence.feature_max, features),
        depth=max(evidence.depth, progress),
    )


def _blend(
    mean: Float[np.ndarray, "13"], value: Float[np.ndarray, "13"], gain: float
) -> Float[np.ndarray, "13"]:
    blended = mean + gain * (value - mean)
    return np.where(np.isnan(mean), value, np.where(np.isnan(value), mean, blended))


def holds(condition: Condition, evidence: Evidence) -> bool:
    """Whether what was seen meets the condition."""
    return condition.min <= statistic(condition, evidence) <= condition.max


def statistic(condition: Condition, evidence: Evidence) -> float:
    """The number a condition is about; NaN or infinite where the feature was never seen."""
    index = FEATURE_INDEX[condition.feature]
    if condition.at == "start":
        return float(evidence.start_mean[index])
    if condition.at == "full":
        return float(evidence.full_mean[index])
    low, high = float(evidence.feature_min[index]), float(evidence.feature_max[index])
    if condition.statistic == "min":
        return low
    if condition.statistic == "max":
        return high
    return high - low if condition.statistic == "range" else (low + high) / 2.0


def ranges_of_motion(observations: Sequence[Observation]) -> tuple[RangeOfMotion, ...]:
    """Extremes of every angle that was seen; trusted if it was in half of the frames.

    Parameters
    ----------
    observations
        Of one repetition, at least one.
    """
    angles_deg = np.stack([observation.angles_deg for observation in observations])
    trusted = np.stack([observation.angles_trusted for observation in observations])
    lowest, highest = np.fmin.reduce(angles_deg), np.fmax.reduce(angles_deg)
    return tuple(
        RangeOfMotion(
            angle=name,
            min_deg=float(lowest[i]),
            max_deg=float(highest[i]),
            trusted=bool(trusted[:, i].mean() >= _MIN_TRUSTED_SHARE),
        )
        for i, name in enumerate(ANGLE_NAMES)
        if np.isfinite(lowest[i])
    )
