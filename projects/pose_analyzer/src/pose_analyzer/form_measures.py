"""What of a repetition's form this camera shows, ready to be compared with a reference.

The signals of `repetition_features` lie in the image plane. Those named for a joint's angle are
judged only where `biomechanics` trusts that angle; places only along directions that the view
shows: heights always, sideways from the front, forward from the side.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float

from pose_analyzer.form_types import RepetitionTrack
from pose_analyzer.phase_alignment import rows_at
from pose_analyzer.repetition_features import (
    N_PHASES,
    SIGNAL_NAMES,
    SUMMARY_NAMES,
    RepetitionFeatures,
    measure_repetition,
    mirror,
)
from pose_analyzer.repetition_tracks import returns_only, way_back
from pose_analyzer.skeletons import ANGLE_INDEX, ANGLE_NAMES, Coco
from pose_analyzer.types import View

N_ROWS: Final = 25
"""Moments of a repetition that are compared, evenly over its phases."""
_ROWS: Final = np.linspace(0.0, N_PHASES - 1.0, N_ROWS)

PAIRS: Final = tuple(
    (SIGNAL_NAMES.index(name), SIGNAL_NAMES.index(name.replace("left", "right")))
    for name in SIGNAL_NAMES
    if name.startswith("left_") and name.endswith(("_deg", "_up"))
)
"""Columns of what exists on both sides and has no direction to left or right."""

IS_ANGLE: Final = np.array([name.endswith("_deg") for name in SIGNAL_NAMES])
_DURATION: Final = SUMMARY_NAMES.index("duration_s")

# A keypoint is judged if it was seen so surely in so many of the frames.
MIN_CONFIDENCE: Final = 0.4
_MIN_SEEN_RATIO: Final = 0.7
# An angle, if it was trusted in so many; those at the extremes are the least certain ones.
_MIN_TRUSTED_RATIO: Final = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """A repetition as done, or as its mirror image."""

    signals: Float[np.ndarray, "25 39"]
    """Columns as in `repetition_features.SIGNAL_NAMES`; NaN where unknown."""
    swapped: bool
    """Whether what is called left here is the person's right."""


@dataclass(frozen=True, slots=True, eq=False)
class FormMeasures:
    """One repetition, as far as form goes."""

    features: RepetitionFeatures
    """All that was measured, in fine phases."""
    images: tuple[Image, Image]
    """Leading leg left, and its mirror image."""
    sure: Bool[np.ndarray, "17"]
    """Keypoints that were seen surely nearly all the time."""
    trusted: Bool[np.ndarray, "12"]
    """Angles that were trusted most of the time."""
    times_s: Float[np.ndarray, "25"]
    view: View
    yaw_deg: float
    duration_s: float
    """From onset to end of the movement."""
    smoothness: float
    """Log dimensionless jerk; less negative is smoother."""
    returns_only: bool = False
    """The way out was not seen, as of a lift that begins on the floor."""


def measure_form(track: RepetitionTrack) -> FormMeasures:
    """Compute what a score needs.

    Raises
    ------
    ValueError
        If the track has fewer than two frames, or its times do not increase.
    """
    if returns_only(track.repetition):
        track = way_back(track) or track
    keypoints_px = _credible(track.keypoints_px)
    # A body without extent has no directions: its signals are NaN.
    with np.errstate(all="ignore"):
        features = measure_repetition(track.times_s, keypoints_px, track.confidences)
    seen = np.isfinite(keypoints_px).all(axis=2) & (track.confidences >= MIN_CONFIDENCE)
    sure: Bool[np.ndarray, "17"] = seen.mean(axis=0) >= _MIN_SEEN_RATIO
    trusted: Bool[np.ndarray, "12"] = track.angles_trusted.mean(axis=0) >= _MIN_TRUSTED_RATIO
    placed = _shown(View.FRONT, sure, trusted, swapped=features.swapped)[_PLACES]
    return FormMeasures(
        features=features,
        images=(_image(features), _image(mirror(features))),
        sure=sure,
        trusted=trusted,
        times_s=np.interp(_ROWS, np.arange(N_PHASES), features.times_s),
        view=track.view,
        yaw_deg=track.yaw_deg,
        duration_s=float(features.summary[_DURATION]),
        smoothness=log_dimensionless_jerk(
            features.times_s, features.trajectory[:, _PLACES[placed]]
        ),
        returns_only=returns_only(track.repetition),
    )


_PLACES: Final = np.flatnonzero(~IS_ANGLE)
_MIRRORED: Final = np.array(
    [
        SIGNAL_NAMES.index(
            name.replace("left", "right") if "left" in name else name.replace("right", "left")
        )
        for name in SIGNAL_NAMES
    ]
)


def _credible(keypoints_px: Float[np.ndarray, "frames 17 2"]) -> Float[np.ndarray, "frames 17 2"]:
    """NaN where no picture reaches, and everywhere if nobody is as large as a pixel."""
    inside = np.abs(keypoints_px) <= _MAX_PX
    credible: Float[np.ndarray, "frames 17 2"] = np.where(inside, keypoints_px, np.nan)
    known = credible[np.isfinite(credible)]
    if known.size == 0 or np.ptp(known) < _MIN_BODY_PX:
        credible[:] = np.nan
    return credible


_MAX_PX: Final = 1e6
_MIN_BODY_PX: Final = 1.0


def _image(features: RepetitionFeatures) -> Image:
    return Image(rows_at(features.trajectory, _ROWS), features.swapped)


def shown_signals(measures: FormMeasures, image: Image, view: View) -> Bool[np.ndarray, "39"]:
    """Which signals of an image a view shows, with the confidence the keypoints had."""
    shown = _shown(view, measures.sure, measures.trusted, swapped=image.swapped)
    known: Bool[np.ndarray, "39"] = shown & np.isfinite(image.signals).all(axis=0)
    return known


def _shown(
    view: View, sure: Bool[np.ndarray, "17"], trusted: Bool[np.ndarray, "12"], *, swapped: bool
) -> Bool[np.ndarray, "39"]:
    shown = np.array([_is_shown(name, view, sure, trusted) for name in SIGNAL_NAMES])
    return shown[_MIRRORED] if swapped else shown


def _is_shown(
    name: str, view: View, sure: Bool[np.ndarray, "17"], trusted: Bool[np.ndarray, "12"]
) -> bool:
    part, _, kind = name.rpartition("_")
    if kind == "deg":
        angle = angle_of(name) if view is not View.FRONT else part
        if angle in ANGLE_INDEX:
            return bool(trusted[ANGLE_INDEX[angle]])
        # Leaning and tilting sideways, which the front shows.
        return view is View.FRONT and bool(sure[_TRUNK].all())
    if kind == "forward" and view not in (View.FRONT, View.SIDE):
        return False
    if part == "head":
        return bool(sure[: Coco.LEFT_SHOULDER].any() and sure[_HIPS].all())
    return bool(sure[_HIPS].all() and (part == "pelvis" or sure[Coco[part.upper()]]))


_TRUNK: Final = np.array(
    [Coco.LEFT_SHOULDER, Coco.RIGHT_SHOULDER, Coco.LEFT_HIP, Coco.RIGHT_HIP], dtype=np.int64
)
_HIPS: Final = _TRUNK[2:]


def angle_of(signal: str) -> str | None:
    """Name of the anatomical angle that a signal stands for, as in `skeletons.ANGLE_NAMES`."""
    part = signal.removesuffix("_deg")
    return part if part in ANGLE_NAMES else "trunk_inclination" if part == "trunk_lean" else None


def joint_of(signal: str, view: View, *, swapped: bool) -> str:
    """What a signal is called: an angle, or a place and the direction in which it is off."""
    if swapped:
        signal = other_side(signal)
    part, _, kind = signal.rpartition("_")
    if kind == "up":
        return f"{part}_height"
    if kind == "forward":
        return f"{part}_sideways" if view is View.FRONT else f"{part}_forward"
    if part == "trunk_lean":
        return "trunk_lean_sideways" if view is View.FRONT else "trunk_inclination"
    return part


def other_side(name: str) -> str:
    """``left_knee`` for ``right_knee`` and the other way round; other names stay."""
    if "left" in name:
        return name.replace("left", "right")
    return name.replace("right", "left")


def shown_at(
    view: View, sure: Bool[np.ndarray, "17"], trusted: Bool[np.ndarray, "12"]
) -> Bool[np.ndarray, "39"]:
    """Which signals a view shows, given which keypoints are sure and which angles trusted."""
    return _shown(view, sure, trusted, swapped=False)


def log_dimensionless_jerk(
    times_s: Float[np.ndarray, "phases"], places: Float[np.ndarray, "phases places"]
) -> float:
    """How smooth a movement is, whatever its duration and size.

    Minus the logarithm of the squared second derivative of speed, integrated over time, times
    duration cubed over peak speed squared (LDLJ; Balasubramanian et al. 2015, "On the analysis of
    movement smoothness", J NeuroEng Rehabil 12:112). NaN if nothing moves or is known.
    """
    known = places[:, np.isfinite(places).all(axis=0)]
    duration_s = float(times_s[-1] - times_s[0])
    if not known.shape[1] or not duration_s > 0.0:
        return float("nan")
    even_s = np.linspace(times_s[0], times_s[-1], len(times_s))
    even = np.stack([np.interp(even_s, times_s, column) for column in known.T], axis=1)
    step_s = duration_s / (len(times_s) - 1)
    speed = np.sqrt((np.diff(even, axis=0) ** 2).sum(axis=1)) / step_s
    peak = float(speed.max())
    if not peak > 0.0:
        return float("nan")
    jerk = np.diff(speed, n=2) / step_s**2
    squared = float((jerk**2).sum()) * step_s * duration_s**3 / peak**2
    return float(-np.log(squared)) if squared > 0.0 else float("nan")
