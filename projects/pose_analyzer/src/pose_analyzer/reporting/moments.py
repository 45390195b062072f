"""Where repetitions were furthest from good form: the person then, and the reference beside."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from jaxtyping import Float

from pose_analyzer.form_types import Component, Fault, FormUpdate, PointLoss, ReferenceUsed
from pose_analyzer.repetition_features import SIGNAL_NAMES
from pose_analyzer.reporting.summary import readable
from pose_analyzer.skeletons import BONES, KEYPOINT_NAMES, MIRRORED_KEYPOINTS, Coco
from pose_analyzer.types import PersonAnalysis, Repetition

MAX_MOMENTS: Final = 4
"""Of one person."""
PICTURE_SIZE: Final = 160.0
_MARGIN_RATIO: Final = 0.12
# Of the reference's body, to be laid over a person's.
_MIN_JOINTS: Final = 4
# Shoulders to ankles: what references have besides the head.
_PLACED: Final = range(Coco.LEFT_SHOULDER, len(Coco))
_BODY_BONES: Final = tuple((a, b) for a, b in BONES if min(a, b) >= Coco.LEFT_SHOULDER)
_UNITS: Final = {"deg": "°", "body_ratio": "% of body length", "ratio": "", "s": " s"}
_PERCENT: Final = frozenset({"body_ratio"})
# What is not at a keypoint is shown at the middle of two.
_BETWEEN: Final = {
    "pelvis": (Coco.LEFT_HIP, Coco.RIGHT_HIP),
    "hip": (Coco.LEFT_HIP, Coco.RIGHT_HIP),
    "knee": (Coco.LEFT_KNEE, Coco.RIGHT_KNEE),
    "ankle": (Coco.LEFT_ANKLE, Coco.RIGHT_ANKLE),
    "wrist": (Coco.LEFT_WRIST, Coco.RIGHT_WRIST),
    "elbow": (Coco.LEFT_ELBOW, Coco.RIGHT_ELBOW),
    "shoulder": (Coco.LEFT_SHOULDER, Coco.RIGHT_SHOULDER),
    "back": (Coco.LEFT_SHOULDER, Coco.RIGHT_HIP),
    "trunk": (Coco.LEFT_SHOULDER, Coco.RIGHT_HIP),
}

Line = tuple[float, float, float, float]
"""x0, y0, x1, y1 in a picture of `PICTURE_SIZE`."""


@dataclass(frozen=True, slots=True)
class Square:
    """A part of the video's picture, in its pixels; it may reach beyond the edges."""

    left_px: float
    top_px: float
    side_px: float


@dataclass(frozen=True, slots=True)
class Moment:
    """One frame where form was bad, as a small picture."""

    repetition: int
    time_s: float
    """Of the frame."""
    sentence: str
    points: float | None
    """That were lost; None for a fault, which costs none."""
    square: Square
    person: tuple[Line, ...]
    reference: tuple[Line, ...]
    """At the same moment of the movement; empty where there is no reference."""
    joint: tuple[float, float] | None
    """Where in the picture it is."""


def worst_moments(person: PersonAnalysis, forms: Sequence[FormUpdate]) -> tuple[Moment, ...]:
    """Choose named faults first, then what cost most points; each fault and joint once.

    Parameters
    ----------
    person
        Whose movement it is.
    forms
        What was said of this person's repetitions.
    """
    faults: dict[str, tuple[Fault | PointLoss, FormUpdate]] = {}
    losses: dict[str, tuple[Fault | PointLoss, FormUpdate]] = {}
    found = [(fault, form) for form in forms for fault in form.faults]
    for fault, form in sorted(found, key=lambda one: -one[0].severity):
        faults.setdefault(fault.name, (fault, form))
    lost = [(loss, form) for form in forms if form.score for loss in form.score.losses]
    for loss, form in sorted(lost, key=lambda one: -one[0].points):
        if loss.joint != "body":
            losses.setdefault(loss.joint, (loss, form))
    moments = [_moment(person, what, form) for what, form in (*faults.values(), *losses.values())]
    return tuple(moment for moment in moments if moment is not None)[:MAX_MOMENTS]


def loss_sentence(loss: PointLoss) -> str:
    """Why points are missing, as a coach would write it."""
    amount = abs(loss.amount) * (100.0 if loss.unit in _PERCENT else 1.0)
    digits = 1 if loss.unit in {"s", "ratio"} else 0
    size = f"{amount:.{digits}f}{_UNITS[loss.unit]}"
    direction = loss.text_key.partition(".")[2]
    joint = readable(loss.joint)
    match loss.component:
        case Component.TEMPO:
            return f"{size} {direction} than the reference"
        case Component.SMOOTHNESS:
            return "jerkier than the reference"
        case Component.RANGE:
            return f"{joint}: covers {size} less than the reference"
        case Component.SYMMETRY:
            return f"{joint}: {size} more than the other side"
    return f"{joint}: {size} {direction} than the reference"


def _moment(person: PersonAnalysis, what: Fault | PointLoss, form: FormUpdate) -> Moment | None:
    """None if nothing of the body is known at that time."""
    index = int(np.argmin(np.abs(person.time_s - what.at_s)))
    points = person.keypoints_px[index]
    reference = _reference_beside(person, what, form, points)
    bodies = points[_PLACED] if reference is None else np.concatenate([points, reference])
    known = bodies[np.isfinite(bodies).all(axis=1)]
    if not len(known):
        return None
    square = _square_around(known)
    return Moment(
        repetition=what.repetition,
        time_s=float(person.time_s[index]),
        sentence=readable(what.name) if isinstance(what, Fault) else loss_sentence(what),
        points=None if isinstance(what, Fault) else what.points,
        square=square,
        person=_lines(points, square),
        reference=() if reference is None else _lines(reference, square),
        joint=_joint_at(what, points, square),
    )


def _reference_beside(
    person: PersonAnalysis,
    what: Fault | PointLoss,
    form: FormUpdate,
    points: Float[np.ndarray, "17 2"],
) -> Float[np.ndarray, "17 2"] | None:
    """Keypoints of the reference in pixels of the video; None if there is none."""
    used = None if form.score is None else form.score.reference
    of_number = (one for one in person.repetitions if one.number == what.repetition)
    repetition = next(of_number, None)
    if used is None or used.course is None or repetition is None:
        return None
    row = what.row if isinstance(what, PointLoss) else _row_at(repetition, what, len(used.course))
    body = _reference_body(used, row)
    within = (person.time_s >= repetition.start_s) & (person.time_s <= repetition.end_s)
    return None if body is None else laid_over(points, body, person.keypoints_px[within])


def _square_around(points: Float[np.ndarray, "points 2"]) -> Square:
    low, high = points.min(axis=0), points.max(axis=0)
    side_px = (1.0 + 2.0 * _MARGIN_RATIO) * max(float((high - low).max()), 1.0)
    left_px, top_px = (0.5 * (low + high) - 0.5 * side_px).tolist()
    return Square(left_px, top_px, side_px)


def _row_at(repetition: Repetition, fault: Fault, n_rows: int) -> int:
    """Moment of the reference at the same share of the way out or back."""
    knots_s = repetition.start_s, repetition.turn_s, repetition.end_s
    share = np.interp(fault.at_s, np.maximum.accumulate(knots_s), (0.0, 0.5, 1.0))
    return round(float(share) * (n_rows - 1))


@dataclass(frozen=True, slots=True, eq=False)
class _Stature:
    """How large a person is in the picture, and which way is up along the body."""

    length_px: float
    """Trunk, thigh and shank at their longest."""
    up: Float[np.ndarray, "2"]


def _stature(frames: Float[np.ndarray, "frames 17 2"]) -> _Stature | None:
    """None if a part of the body was never seen."""
    joints = (Coco.LEFT_SHOULDER, Coco.LEFT_HIP, Coco.LEFT_KNEE, Coco.LEFT_ANKLE)
    length_px = 0.0
    for upper, lower in pairwise(joints):
        ways = frames[:, [upper, upper + 1]] - frames[:, [lower, lower + 1]]
        known_px = np.hypot(ways[..., 0], ways[..., 1])
        known_px = known_px[np.isfinite(known_px)]
        length_px += float(np.quantile(known_px, 0.9)) if known_px.size else math.nan
    axes = frames[:, [joints[0], joints[0] + 1]] - frames[:, [joints[-1], joints[-1] + 1]]
    axes = axes[np.isfinite(axes).all(axis=2)]
    axis = axes.mean(axis=0) if len(axes) else np.full(2, np.nan)
    up = axis / max(float(np.hypot(*axis)), 1e-9)
    if not (math.isfinite(length_px) and length_px > 0.0 and np.isfinite(up).all()):
        return None
    return _Stature(length_px, up)


def _reference_body(used: ReferenceUsed, row: int) -> Float[np.ndarray, "17 2"] | None:
    """Pose of one moment of the reference: forward and up in body lengths.

    NaN for the face and for arms that may be held anyhow.
    """
    if used.course is None:
        return None
    with_arms = any("elbow" in name for name in used.signals)
    body = np.full((len(Coco), 2), np.nan)
    for joint in _PLACED:
        name = KEYPOINT_NAMES[joint]
        if with_arms or not name.endswith(("elbow", "wrist")):
            columns = [SIGNAL_NAMES.index(f"{name}_{axis}") for axis in ("forward", "up")]
            body[joint] = used.course[row, columns]
    return body


def laid_over(
    points: Float[np.ndarray, "17 2"],
    body: Float[np.ndarray, "17 2"],
    frames: Float[np.ndarray, "frames 17 2"],
) -> Float[np.ndarray, "17 2"] | None:
    """Lay a body over a person: same hips, size and upright, whichever way they face.

    Parameters
    ----------
    points
        The person in one frame, in pixels.
    body
        Forward and up from the middle of the hips, in body lengths.
    frames
        The person in all frames of the repetition.
    """
    stature = _stature(frames)
    pelvis = points[[Coco.LEFT_HIP, Coco.RIGHT_HIP]].mean(axis=0)
    if stature is None or not np.isfinite(pelvis).all():
        return None
    across = np.array([-stature.up[1], stature.up[0]])
    best: tuple[float, Float[np.ndarray, "17 2"]] | None = None
    for order in (np.arange(len(Coco)), MIRRORED_KEYPOINTS):
        for direction in (across, -across):
            placed = pelvis + stature.length_px * body[order] @ np.stack([direction, stature.up])
            known = np.isfinite(points - placed).all(axis=1)
            if known.sum() < _MIN_JOINTS:
                continue
            misfit = float(((points - placed)[known] ** 2).mean())
            if best is None or misfit < best[0]:
                best = misfit, placed
    return None if best is None else best[1]


def _lines(points: Float[np.ndarray, "17 2"], square: Square) -> tuple[Line, ...]:
    placed = np.round(_in_picture(points, square), 1).tolist()
    return tuple(
        (*placed[a], *placed[b])
        for a, b in _BODY_BONES
        if np.isfinite([placed[a], placed[b]]).all()
    )


def _in_picture(
    points: Float[np.ndarray, "*points 2"], square: Square
) -> Float[np.ndarray, "*points 2"]:
    placed: Float[np.ndarray, "*points 2"] = (
        (points - np.array([square.left_px, square.top_px])) * PICTURE_SIZE / square.side_px
    )
    return placed


def _joint_at(
    what: Fault | PointLoss, points: Float[np.ndarray, "17 2"], square: Square
) -> tuple[float, float] | None:
    places = tuple(_keypoints_of(what))
    if not places:
        return None
    x, y = np.round(_in_picture(points[list(places)].mean(axis=0), square), 1).tolist()
    return (x, y) if np.isfinite([x, y]).all() else None


def _keypoints_of(what: Fault | PointLoss) -> Iterator[Coco]:
    side = what.side if isinstance(what, Fault) and what.side in {"left", "right"} else ""
    name = f"{side}_{what.joint}" if side else what.joint
    for joint in _PLACED:
        if name.startswith(KEYPOINT_NAMES[joint]):
            yield Coco(joint)
            return
    yield from next((both for part, both in _BETWEEN.items() if name.startswith(part)), ())
