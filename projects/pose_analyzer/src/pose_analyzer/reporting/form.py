"""What the report says about form: scores, worst moments, sides compared, cues."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float

from pose_analyzer.form_references import FormReference, Pattern
from pose_analyzer.form_scorer import score_set
from pose_analyzer.form_types import Component, Cue, FormScore, FormUpdate, PointLoss
from pose_analyzer.repetition_features import SIGNAL_NAMES
from pose_analyzer.reporting.summary import readable
from pose_analyzer.skeletons import BONES, KEYPOINT_NAMES, MIRRORED_KEYPOINTS, Coco
from pose_analyzer.types import PersonAnalysis, Repetition

MAX_MOMENTS: Final = 4
PICTURE_SIZE: Final = 160.0
_MARGIN: Final = 14.0
_COMPONENTS: Final = tuple(component.value for component in Component)
# Shoulders to ankles: what references have besides the head.
_PLACED: Final = range(Coco.LEFT_SHOULDER, len(Coco))
_BODY_BONES: Final = tuple((a, b) for a, b in BONES if min(a, b) >= Coco.LEFT_SHOULDER)
_UNITS: Final = {"deg": "°", "body_ratio": "% of body length", "ratio": "", "s": " s"}
_PERCENT: Final = frozenset({"body_ratio"})

Line = tuple[float, float, float, float]
"""x0, y0, x1, y1 in a picture of `PICTURE_SIZE`."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Where most points were lost, as a small picture."""

    loss: PointLoss
    sentence: str
    person: tuple[Line, ...]
    reference: tuple[Line, ...]
    """Empty if it is the person's own way, or unknown."""


@dataclass(frozen=True, slots=True)
class SidePair:
    """How far a joint moved on both sides, mean over the repetitions in degrees."""

    joint: str
    left_deg: float
    right_deg: float


@dataclass(frozen=True, slots=True, eq=False)
class FormSection:
    """Everything about one person's form."""

    whole: FormScore
    components: tuple[str, ...]
    rows: tuple[FormUpdate, ...]
    moments: tuple[Moment, ...]
    pairs: tuple[SidePair, ...]
    cues: tuple[Cue, ...]
    unseen: tuple[str, ...]


def form_section(
    person: PersonAnalysis,
    forms: Sequence[FormUpdate],
    references: Mapping[str, FormReference],
) -> FormSection | None:
    """Sum up one person's form; None if nothing was judged."""
    rows = tuple(form for form in forms if form.track_id == person.track_id)
    if not rows:
        return None
    scores = [form.score for form in rows if form.score is not None]
    unseen = dict.fromkeys(
        readable(item.what)
        for form in rows
        for item in (*form.cannot_judge, *(form.score.cannot_judge if form.score else ()))
    )
    return FormSection(
        whole=score_set(scores),
        components=_COMPONENTS,
        rows=rows,
        moments=_moments(person, rows, references),
        pairs=side_pairs(person.repetitions),
        cues=tuple(form.cue for form in rows if form.cue is not None),
        unseen=tuple(unseen),
    )


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


def side_pairs(repetitions: Sequence[Repetition]) -> tuple[SidePair, ...]:
    """Compare the sides of joints that were trusted on both."""
    ranges: dict[str, list[float]] = {}
    for repetition in repetitions:
        for one in repetition.ranges:
            if one.trusted:
                ranges.setdefault(one.angle, []).append(one.range_deg)
    joints = [name.removeprefix("left_") for name in ranges if name.startswith("left_")]
    return tuple(
        SidePair(
            readable(joint),
            float(np.mean(ranges[f"left_{joint}"])),
            float(np.mean(ranges[f"right_{joint}"])),
        )
        for joint in joints
        if f"right_{joint}" in ranges
    )


def _moments(
    person: PersonAnalysis, rows: Sequence[FormUpdate], references: Mapping[str, FormReference]
) -> tuple[Moment, ...]:
    """Worst ones first, each joint once, of losses that belong to a moment."""
    losses = [
        (loss, form.score)
        for form in rows
        if form.score is not None
        for loss in form.score.losses
        if loss.joint != "body"
    ]
    worst: dict[str, tuple[PointLoss, FormScore]] = {}
    for loss, score in sorted(losses, key=lambda found: -found[0].points):
        worst.setdefault(loss.joint, (loss, score))
    chosen = list(worst.values())[:MAX_MOMENTS]
    return tuple(_moment(person, loss, score, references) for loss, score in chosen)


def _moment(
    person: PersonAnalysis,
    loss: PointLoss,
    score: FormScore,
    references: Mapping[str, FormReference],
) -> Moment:
    row = int(np.argmin(np.abs(person.time_s - loss.at_s)))
    points = person.keypoints_px[row]
    used = score.reference
    found = None if used is None else references.get(used.name)
    pattern = None
    if used is not None and found is not None:
        pattern = next((p for p in found.patterns if p.view is used.view), None)
    wanted = None
    repetition = next((r for r in person.repetitions if r.number == loss.repetition), None)
    if pattern is not None and repetition is not None:
        wanted = beside(points, _reference_body(pattern, repetition, loss.at_s))
    return Moment(loss, loss_sentence(loss), *_lines(points, wanted))


def _reference_body(
    pattern: Pattern, repetition: Repetition, at_s: float
) -> Float[np.ndarray, "17 2"]:
    """Pose of the reference at the same share of the way out or back; y down, NaN for the face."""
    out_s = max(repetition.turn_s - repetition.start_s, 1e-6)
    back_s = max(repetition.end_s - repetition.turn_s, 1e-6)
    is_back = at_s > repetition.turn_s
    phase = (
        0.5 + 0.5 * (at_s - repetition.turn_s) / back_s
        if is_back
        else 0.5 * (at_s - repetition.start_s) / out_s
    )
    values = pattern.mean[round(min(max(phase, 0.0), 1.0) * (len(pattern.mean) - 1))]
    body = np.full((len(Coco), 2), np.nan)
    for joint in _PLACED:
        name = KEYPOINT_NAMES[joint]
        body[joint, 0] = values[SIGNAL_NAMES.index(f"{name}_forward")]
        body[joint, 1] = -values[SIGNAL_NAMES.index(f"{name}_up")]
    return body


def beside(
    points: Float[np.ndarray, "17 2"], body: Float[np.ndarray, "17 2"]
) -> Float[np.ndarray, "17 2"] | None:
    """Lay the reference's body over the person's: same hips and size, whichever way they face."""
    pelvis = points[[Coco.LEFT_HIP, Coco.RIGHT_HIP]].mean(axis=0)
    best: tuple[float, Float[np.ndarray, "17 2"]] | None = None
    for order in (np.arange(len(Coco)), MIRRORED_KEYPOINTS):
        for direction in (1.0, -1.0):
            other = body[order] * np.array([direction, 1.0])
            known = np.isfinite(points - pelvis + other).all(axis=1)
            if known.sum() < len(_PLACED) // 2:
                continue
            own, like = (points - pelvis)[known], other[known]
            size = float((own * like).sum() / max(float((like**2).sum()), 1e-9))
            misfit = float(((own - size * like) ** 2).sum())
            if size > 0.0 and (best is None or misfit < best[0]):
                best = misfit, pelvis + size * other
    return None if best is None else best[1]


def _lines(
    points: Float[np.ndarray, "17 2"], wanted: Float[np.ndarray, "17 2"] | None
) -> tuple[tuple[Line, ...], tuple[Line, ...]]:
    """Both skeletons in one small picture."""
    bodies = points if wanted is None else np.concatenate([points, wanted])
    known = bodies[np.isfinite(bodies).all(axis=1)]
    if not len(known):
        return (), ()
    low, high = known.min(axis=0), known.max(axis=0)
    scale = (PICTURE_SIZE - 2.0 * _MARGIN) / max(float((high - low).max()), 1.0)
    middle = 0.5 * (low + high)

    def drawn(body: Float[np.ndarray, "17 2"]) -> tuple[Line, ...]:
        placed = (body - middle) * scale + 0.5 * PICTURE_SIZE
        rounded = np.round(placed, 1).tolist()
        return tuple(
            (*rounded[a], *rounded[b]) for a, b in _BODY_BONES if np.isfinite(placed[[a, b]]).all()
        )

    return drawn(points), () if wanted is None else drawn(wanted)
