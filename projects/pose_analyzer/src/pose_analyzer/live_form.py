"""Form while a repetition is under way: where in the movement a frame is, and what is off now.

One frame is measured as `repetition_features` measures a finished repetition, as far as the frames
before it tell: the body's length, its axis, where it faces. The score of the finished repetition
has the last word.
"""

import math
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int64

from pose_analyzer.form_comparison import (
    AT_LIMIT,
    MAX_LOSS,
    MIN_SIGNALS,
    MOST_SD,
    beyond,
    columns_of,
)
from pose_analyzer.form_measures import IS_ANGLE, MIN_CONFIDENCE, joint_of, other_side, shown_at
from pose_analyzer.form_references import FormReference, Mode, Pattern
from pose_analyzer.form_types import Component, Unit
from pose_analyzer.phase_alignment import PhaseState, advance
from pose_analyzer.repetition_features import SIGNAL_NAMES, TILT_ARM
from pose_analyzer.skeletons import N_ANGLES, N_KEYPOINTS, Coco
from pose_analyzer.types import PersonFrame, View

# The keypoints that enclose the angles of shoulders, elbows, hips and knees, left before right.
_FIRST: Final = np.array([11, 12, 5, 6, 5, 6, 11, 12])
_VERTEX: Final = np.array([5, 6, 7, 8, 11, 12, 13, 14])
_SECOND: Final = np.array([7, 8, 9, 10, 13, 14, 15, 16])
_MIDDLES: Final = np.array([Coco.LEFT_SHOULDER, Coco.LEFT_HIP, Coco.LEFT_ANKLE], dtype=np.int64)
_LEGS: Final = np.array([Coco.LEFT_HIP, Coco.RIGHT_HIP, Coco.LEFT_KNEE, Coco.RIGHT_KNEE])
_MIRRORED: Final = np.array([SIGNAL_NAMES.index(other_side(name)) for name in SIGNAL_NAMES])
_TILTS: Final = np.array(["tilt" in name for name in SIGNAL_NAMES])
_FORWARD: Final = np.array([n.endswith("_forward") or n == "trunk_lean_deg" for n in SIGNAL_NAMES])
# From the side, which shows all angles of legs and trunk, places follow from them.
_CAUSES: Final = IS_ANGLE | np.array([name.startswith("pelvis") for name in SIGNAL_NAMES])
# Limbs seem longer than they are for a frame or two; from frame to frame they do not grow by more.
_GROWTH: Final = 1.05
_N_ROWS: Final = 25


@dataclass(frozen=True, slots=True, eq=False)
class _Aim:
    """What the frames of one repetition are compared with."""

    pattern: Pattern
    mode: Mode
    columns: Int64[np.ndarray, "2 columns"]
    """Of `SIGNAL_NAMES`, as done and with the sides swapped."""
    sign: Float[np.ndarray, "2 columns"]
    """Of what changes with the side that leads."""
    needs: Bool[np.ndarray, "2 columns 29"]
    """Which keypoints must be sure, and which angles trusted."""
    mean: Float[np.ndarray, "25 columns"]
    scale: Float[np.ndarray, "columns"]
    """Standard deviation of a value, whatever the phase."""
    target: Float[np.ndarray, "25 columns"]
    """Mean in standard deviations."""
    offsets: Float[np.ndarray, "columns"]
    courses: Float[np.ndarray, "25 columns"]


@dataclass(frozen=True, slots=True, eq=False)
class _Body:
    """What is known of the person's body since the repetition began, in pixels of the picture."""

    segments_px: Float[np.ndarray, "5"]
    """Trunk, thighs, shanks at their longest."""
    axis_px: Float[np.ndarray, "2"]
    """Sum of the ways from ankles to shoulders."""
    facing_px: float
    """Sum of how far the front, or seen from the front the left, is to the right."""
    pelvis_px: Float[np.ndarray, "2"]
    """In the first frame."""


@dataclass(frozen=True, slots=True, eq=False)
class LiveFormState:
    """What is remembered within a repetition; a new one starts with ``LiveFormState()``."""

    aim: _Aim | None = None
    body: _Body | None = None
    phases: PhaseState = field(default_factory=PhaseState)
    rows: Int64[np.ndarray, "2"] | None = None
    """Of the frame before, as done and with the sides swapped."""
    sums: Float[np.ndarray, "5 2 columns"] | None = None
    """Over rows: w, w d, w d / c**2, w (d / c)**2, w / c**2, of weights, differences, scatter."""


@dataclass(frozen=True, slots=True)
class LiveForm:
    """One frame against the reference."""

    phase: float
    """0 at the start of the repetition, 1 at its end."""
    score: float
    """0..100: what the deviation so far would leave, were the rest as usual."""
    joint: str
    """What is off most now, named as in `form_types.PointLoss`."""
    amount: float
    """What it has more than the reference, in `unit`."""
    unit: Unit
    sd: float
    """The same in standard deviations of correct repetitions, without sign; 6 at most."""


def follow_form(
    reference: FormReference | None, state: LiveFormState, frame: PersonFrame
) -> tuple[LiveFormState, LiveForm | None]:
    """Place one frame in the reference and name what is off most.

    Parameters
    ----------
    reference
        Of the exercise under way; what the repetition began with stays.
    state
        ``LiveFormState()`` at the start of every repetition, then what the last call returned.
    frame
        The next frame of the same person.

    Returns
    -------
    tuple of LiveFormState and LiveForm or None
        None if nothing of this frame can be judged from here.
    """
    aim = state.aim
    if aim is None:
        pattern = None if reference is None else reference.pattern_at(frame.view.yaw_deg)
        if reference is None or pattern is None:
            return state, None
        aim = _aim_at(reference, pattern)
    seen = (frame.confidences >= MIN_CONFIDENCE) & np.isfinite(frame.keypoints_px[:, 0])
    missing = ~np.concatenate([seen, frame.angles.trusted])
    body, signals = _measured(
        state.body, frame.keypoints_px, is_front=aim.pattern.view is View.FRONT
    )
    values = signals[aim.columns] * aim.sign
    known = ~(aim.needs & missing).any(axis=2) & np.isfinite(values)
    if known.sum(axis=1).min() < MIN_SIGNALS:
        return replace(state, aim=aim, body=body), None
    values = np.where(known, values, 0.0)
    phases, rows = advance(aim.target, state.phases, values / aim.scale, known)
    if rows is None or phases.costs is None:
        return replace(state, aim=aim, body=body), None
    differences = np.where(known, values - aim.mean[rows], 0.0)
    sums = _summed(state, aim, rows, differences, known)
    state = LiveFormState(aim, body, phases, rows, sums)
    way = int(np.argmin(phases.costs.min(axis=1)))
    return state, _told(state, aim, way, differences[way], known[way])


def _aim_at(reference: FormReference, pattern: Pattern) -> _Aim:
    possible, needs = _needs(pattern.view)
    wanted = columns_of(reference.signals) & np.isfinite(pattern.mean).all(axis=0) & possible
    columns = np.flatnonzero(wanted)
    courses, offsets = pattern.scatter.courses[:, columns], pattern.scatter.offsets[columns]
    scale = np.sqrt((courses**2).mean(axis=0) + offsets**2)
    sign = np.where(_TILTS | (_FORWARD & (pattern.view is View.FRONT)), -1.0, 1.0)
    both = np.stack([columns, _MIRRORED[columns]])
    return _Aim(
        pattern=pattern,
        mode=reference.mode,
        columns=both,
        sign=np.stack([np.ones(len(columns)), sign[columns]]),
        needs=needs[both],
        mean=pattern.mean[:, columns],
        scale=scale,
        target=pattern.mean[:, columns] / scale,
        offsets=offsets,
        courses=courses,
    )


@cache
def _needs(view: View) -> tuple[Bool[np.ndarray, "39"], Bool[np.ndarray, "39 29"]]:
    """Which signals a view may show, and which keypoints and angles each of them needs."""
    every = np.ones(N_KEYPOINTS + N_ANGLES, dtype=bool)
    possible = shown_at(view, *np.split(every, [N_KEYPOINTS]))
    without = [
        shown_at(view, *np.split(every & ~one, [N_KEYPOINTS]))
        for one in np.eye(len(every), dtype=bool)
    ]
    return possible, possible[:, None] & ~np.stack(without, axis=1)


def _measured(
    body: _Body | None, points: Float[np.ndarray, "17 2"], *, is_front: bool
) -> tuple[_Body, Float[np.ndarray, "39"]]:
    """One frame's signals, with left and right as they are; NaN where keypoints are missing."""
    left, right = points[_MIDDLES], points[_MIDDLES + 1]
    middles = np.where(np.isnan(left), right, np.where(np.isnan(right), left, 0.5 * (left + right)))
    shoulders, pelvis, ankles = middles
    legs = points[_LEGS] - points[_LEGS + 2]
    ends = np.concatenate([(shoulders - pelvis)[None], legs])
    segments_px = np.hypot(ends[:, 0], ends[:, 1])
    axis_px = shoulders - ankles
    axis_px = np.where(np.isfinite(axis_px), axis_px, 0.0)
    facing_px, origin_px = 0.0, pelvis
    if body is not None:
        grown_px = np.fmin(segments_px, _GROWTH * body.segments_px)
        segments_px = np.fmax(body.segments_px, grown_px)
        axis_px, facing_px, origin_px = body.axis_px + axis_px, body.facing_px, body.pelvis_px
    up = axis_px / max(float(np.hypot(axis_px[0], axis_px[1])), 1e-9)
    across = np.array([-up[1], up[0]])
    ahead_px = (left - right)[:2].sum(axis=0) if is_front else points[Coco.NOSE] - shoulders
    seen_px = float(ahead_px @ across)
    facing_px += seen_px if math.isfinite(seen_px) else 0.0
    following = _Body(segments_px, axis_px, facing_px, origin_px)
    length_px = _length_px(segments_px)
    turn = np.stack([across if facing_px >= 0.0 else -across, up], axis=1) / length_px
    placed = (points[Coco.LEFT_SHOULDER :] - pelvis) @ turn
    trunk, way = (shoulders - pelvis) @ turn, (pelvis - origin_px) @ turn
    tilts = np.clip((left - right)[:2] @ turn[:, 1] / TILT_ARM, -1.0, 1.0)
    inclined = np.degrees([np.arctan2(trunk[0], trunk[1]), *np.arcsin(tilts)])
    return following, np.concatenate(
        [_enclosed_deg(points), inclined, _NO_HEAD, placed.ravel(), way]
    )


_NO_HEAD: Final = np.full(2, np.nan)


def _length_px(segments_px: Float[np.ndarray, "5"]) -> float:
    """Trunk, thigh and shank together; NaN if one of them was never seen."""
    trunk, *legs = segments_px.tolist()
    length_px = trunk
    for one, other in (legs[:2], legs[2:]):
        length_px += one if math.isnan(other) else other if math.isnan(one) else 0.5 * (one + other)
    return length_px if length_px > 0.0 else float("nan")


def _enclosed_deg(points: Float[np.ndarray, "17 2"]) -> Float[np.ndarray, "8"]:
    first, second = points[_FIRST] - points[_VERTEX], points[_SECOND] - points[_VERTEX]
    cross = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
    angles: Float[np.ndarray, "8"] = np.degrees(
        np.arctan2(np.abs(cross), (first * second).sum(axis=1))
    )
    return angles


def _summed(
    state: LiveFormState,
    aim: _Aim,
    rows: Int64[np.ndarray, "2"],
    differences: Float[np.ndarray, "2 columns"],
    known: Bool[np.ndarray, "2 columns"],
) -> Float[np.ndarray, "5 2 columns"]:
    """Each row counts once, however long somebody stays there."""
    passed = np.ones(2) if state.rows is None else np.maximum(rows - state.rows, 0)
    if state.sums is not None and not passed.any():
        return state.sums
    precision = aim.courses[rows] ** -2.0
    relative = differences * precision
    added: Float[np.ndarray, "5 2 columns"] = np.empty((5, *differences.shape))
    added[0], added[1], added[2] = 1.0, differences, relative
    added[3], added[4] = differences * relative, precision
    added *= known * passed[:, None]
    return added if state.sums is None else state.sums + added


def _told(
    state: LiveFormState,
    aim: _Aim,
    way: int,
    differences: Float[np.ndarray, "columns"],
    known: Bool[np.ndarray, "columns"],
) -> LiveForm | None:
    if state.rows is None or state.sums is None:
        return None
    row = int(state.rows[way])
    scale = np.hypot(aim.offsets, aim.courses[row])
    blamed = known & _CAUSES[aim.columns[0]] if aim.pattern.view is View.SIDE else known
    off = np.where(blamed if blamed.any() else known, np.abs(differences) / scale, -1.0)
    worst = int(np.argmax(off))
    column = int(aim.columns[0, worst])
    return LiveForm(
        phase=row / (_N_ROWS - 1),
        score=_score(state.sums[:, way], aim),
        joint=joint_of(SIGNAL_NAMES[column], aim.pattern.view, swapped=way == 1),
        amount=float(differences[worst]),
        unit="deg" if IS_ANGLE[column] else "body_ratio",
        sd=min(float(off[worst]), MOST_SD),
    )


def _score(sums: Float[np.ndarray, "5 columns"], aim: _Aim) -> float:
    """Points that the deviation so far leaves, `form_comparison.Comparison.deviation` estimated.

    What has not been seen yet counts as usual, so that the first frames do not frighten.
    """
    weight, total, relative, squared, inverse = sums
    limits = aim.pattern.scatter.deviation_limits
    seen = weight > 0.0
    if not seen.any():
        return 100.0
    mean = np.divide(total, weight, out=np.zeros_like(total), where=seen)
    course = squared - 2.0 * mean * relative + mean**2 * inverse
    course = np.divide(course, weight, out=np.zeros_like(total), where=seen)
    strangeness = np.minimum((mean / aim.offsets) ** 2, MOST_SD**2)
    strangeness += np.minimum(course, MOST_SD**2)
    share = np.minimum(weight / _N_ROWS, 1.0)
    estimate = (share * strangeness + (1.0 - share) * limits[0] ** 2)[seen]
    deviation = float(np.mean(estimate**2) ** 0.25)
    loss = AT_LIMIT[aim.mode][Component.DEVIATION] * beyond(deviation, limits)
    return 100.0 * float(np.exp(-min(loss, MAX_LOSS)))
