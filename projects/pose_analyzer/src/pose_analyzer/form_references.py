"""What repetitions are compared with: the mean course of an exercise, and how far people stray.

A reference holds one pattern per camera view, each with the scatter of correct repetitions about
it. Made of many people it is general; made of one person's own repetitions it is personal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from jaxtyping import Float

from pose_analyzer.repetition_features import SIGNAL_NAMES
from pose_analyzer.types import View

MAX_YAW_DIFFERENCE_DEG: Final = 25.0
"""Seen from further aside than this, a pattern says nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Scatter:
    """How far correct repetitions stray from a pattern: standard deviations and limits."""

    offsets: Float[np.ndarray, "39"]
    """Of a signal's mean over the repetition: builds and keypoints differ, and stay as they are."""
    courses: Float[np.ndarray, "25 39"]
    """Of the rest, moment by moment."""
    ranges: Float[np.ndarray, "39"]
    asymmetry: Float[np.ndarray, "10"]
    """Of left minus right, for each of `form_measures.PAIRS`."""
    log_duration: float
    smoothness: float
    deviation_limits: tuple[float, float]
    """Of `form_comparison.Comparison.deviation`: half of all correct repetitions stay below the
    first, nineteen of twenty below the second."""
    symmetry_limits: tuple[float, float]


@dataclass(frozen=True, slots=True, eq=False)
class Pattern:
    """An exercise as one camera view shows it."""

    view: View
    yaw_deg: float
    n_people: int
    n_repetitions: int
    mean: Float[np.ndarray, "25 39"]
    """Columns as in `repetition_features.SIGNAL_NAMES`; NaN where it was not seen."""
    log_duration: float
    """Mean logarithm of the movement's duration in seconds."""
    smoothness: float
    """Mean log dimensionless jerk."""
    scatter: Scatter
    """Of whoever is compared with this pattern."""
    returns_only: bool = False
    """Of the way back alone, for lifts that begin on the floor."""
    own_scatter: Scatter | None = None
    """Of one person's repetitions about the mean of a few of them, which general patterns lend to
    personal ones."""


Mode = Literal["personal", "general"]


@dataclass(frozen=True, slots=True, eq=False)
class FormReference:
    """One exercise as it should be done."""

    name: str
    exercise: str
    mode: Mode
    provenance: Mapping[str, str]
    """Of what it was made, by what, under which licence."""
    signals: tuple[str, ...]
    """What is compared, of `repetition_features.SIGNAL_NAMES`: a squat may hold its arms anyhow."""
    patterns: tuple[Pattern, ...]

    def pattern_at(self, yaw_deg: float, *, returns_only: bool = False) -> Pattern | None:
        """The one seen from the nearest direction; None if none is near."""
        near = [p for p in self.patterns if p.returns_only == returns_only and _is_near(p, yaw_deg)]
        return min(near, key=lambda p: abs(p.yaw_deg - yaw_deg)) if near else None


_ARMS: Final = ("shoulder", "elbow")
# Where the hands are put is a matter of build and equipment; the angles of the arms are form.
_NEVER: Final = ("head", "wrist", "elbow_forward", "elbow_up")


def signals_for(main_angles: Sequence[str]) -> tuple[str, ...]:
    """Which signals an exercise is judged by, given the angles a coach looks at first.

    Where the arms are not among them, people may hold them anyhow. Where one looks is not form.
    """
    arms = any(angle in _ARMS for angle in main_angles)
    left_out = _NEVER if arms else (*_NEVER, "shoulder_deg", "elbow_deg")
    return tuple(name for name in SIGNAL_NAMES if not any(part in name for part in left_out))


def _is_near(pattern: Pattern, yaw_deg: float) -> bool:
    """Near, or beyond the outermost: from 0 and from 90 degrees on everything is seen mirrored."""
    beyond = {View.FRONT: pattern.yaw_deg - yaw_deg, View.SIDE: yaw_deg - pattern.yaw_deg}
    return (
        abs(pattern.yaw_deg - yaw_deg) <= MAX_YAW_DIFFERENCE_DEG
        or beyond.get(pattern.view, 0.0) > 0.0
    )
