"""Skeleton, angles, identity and repetition count drawn on one picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8

from pose_analyzer.form_types import FormUpdate
from pose_analyzer.rendering.labels import (
    DIMMED_TEXT,
    Label,
    LabelLayout,
    Rgb,
    TextStyle,
    bgr,
    draw_label,
)
from pose_analyzer.skeletons import ANGLE_INDEX, BONES, N_KEYPOINTS, Coco
from pose_analyzer.types import KeypointFlag, PersonFrame

# Okabe & Ito 2008, "Color Universal Design": told apart with any kind of colour vision.
LEFT_COLOUR: Final[Rgb] = (230, 159, 0)
RIGHT_COLOUR: Final[Rgb] = (86, 180, 233)
CENTRE_COLOUR: Final[Rgb] = (240, 240, 240)
IDENTITY_COLOURS: Final[tuple[Rgb, ...]] = (
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
    (240, 240, 240),
)
OUTLINE: Final[Rgb] = (20, 20, 20)

# Below this a keypoint is drawn faint; MediaPipe's own drawing leaves such landmarks out
# (drawing_utils.py, _VISIBILITY_THRESHOLD).
CONFIDENCE_SHOWN: Final = 0.5
# A person smaller than this part of the picture has no room for angle labels.
MIN_LABELLED_HEIGHT_RATIO: Final = 0.3
MAX_COUNTERS: Final = 3
CUE_SHOWN_S: Final = 4.0
NO_FORMS: Final[Mapping[int, FormUpdate]] = MappingProxyType({})
# The fonts of OpenCV 4 have ASCII only.
_TO_ASCII: Final = str.maketrans(
    {"ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "ß": "ss"}
)

LABELLED_ANGLES: Final[tuple[tuple[str, Coco], ...]] = (
    ("left_elbow", Coco.LEFT_ELBOW),
    ("right_elbow", Coco.RIGHT_ELBOW),
    ("left_hip", Coco.LEFT_HIP),
    ("right_hip", Coco.RIGHT_HIP),
    ("left_knee", Coco.LEFT_KNEE),
    ("right_knee", Coco.RIGHT_KNEE),
)

_TRUNK: Final = np.isin(
    np.arange(N_KEYPOINTS),
    [Coco.LEFT_SHOULDER, Coco.RIGHT_SHOULDER, Coco.LEFT_HIP, Coco.RIGHT_HIP],
)


@dataclass(frozen=True, slots=True, eq=False)
class _Skeleton:
    """Keypoints of one person in pixels of the drawn picture, sorted by how well they are known."""

    points: Int64[np.ndarray, "17 2"]
    known: Bool[np.ndarray, "17"]
    bridged: Bool[np.ndarray, "17"]
    sure: Bool[np.ndarray, "17"]


def draw_people(
    image_bgr: UInt8[np.ndarray, "height width 3"],
    people: Sequence[PersonFrame],
    scale: float = 1.0,
    forms: Mapping[int, FormUpdate] = NO_FORMS,
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw everything known about the people of one frame; returns a new picture.

    Left limbs are orange, right limbs blue. Measured keypoints are filled, those of low
    confidence are hollow circles, bridged ones are hollow squares, and limbs that end in either
    are thin. Angles that are not to be trusted are grey with a question mark.

    Parameters
    ----------
    image_bgr
        The picture, possibly resized; left as it is.
    people
        Everyone in the frame, in pixels of the original image.
    scale
        Pixels of `image_bgr` per pixel of the original image.
    forms
        What was last said of each person's form, by id: scores are drawn, and cues for a while.
    """
    canvas = image_bgr.copy()
    style = TextStyle.for_picture(canvas.shape[0], canvas.shape[1])
    skeletons = [_skeleton(person, scale) for person in people]
    for person, skeleton in zip(people, skeletons, strict=True):
        _draw_skeleton(canvas, skeleton, style.line_px)
        if len(people) > 1:
            _draw_box(canvas, person, scale, style.line_px)
    layout = LabelLayout(canvas.shape[1], canvas.shape[0])
    _draw_counters(canvas, people, style, layout)
    _draw_forms(canvas, people, forms, (style, layout))
    for person in people:
        _draw_identity(canvas, person, scale, style, layout)
    for person, skeleton in zip(people, skeletons, strict=True):
        if _box_height_px(person) * scale >= MIN_LABELLED_HEIGHT_RATIO * canvas.shape[0]:
            _draw_angles(canvas, person, skeleton, style, layout)
    return canvas


def identity_colour(track_id: int) -> Rgb:
    """Colour of a person, the same in every frame."""
    return IDENTITY_COLOURS[(track_id - 1) % len(IDENTITY_COLOURS)]


def _skeleton(person: PersonFrame, scale: float) -> _Skeleton:
    known = np.isfinite(person.keypoints_px).all(axis=1)
    inside = np.where(known[:, None], person.keypoints_px * scale, 0.0)
    # Far outside the picture cv2 would overflow; such points are off screen either way.
    points = np.clip(np.rint(inside), -10_000, 10_000).astype(np.int64)
    bridged = (person.flags & (KeypointFlag.BRIDGED | KeypointFlag.REJECTED)) != 0
    sure = known & ~bridged & (person.confidences >= CONFIDENCE_SHOWN)
    return _Skeleton(points, known, bridged, sure)


def _draw_skeleton(canvas: UInt8[np.ndarray, "_ _ 3"], skeleton: _Skeleton, line_px: int) -> None:
    lines = [
        (skeleton.points[a].tolist(), skeleton.points[b].tolist(), _side_colour(a, b), sure)
        for a, b in BONES
        if skeleton.known[a] and skeleton.known[b]
        for sure in [bool(skeleton.sure[a] and skeleton.sure[b])]
    ]
    for start, end, _, sure in lines:
        if sure:
            cv2.line(canvas, start, end, bgr(OUTLINE), line_px + 2, cv2.LINE_AA)
    for start, end, colour, sure in lines:
        shade, width = (colour, line_px) if sure else (_faint(colour), max(1, line_px // 3))
        cv2.line(canvas, start, end, bgr(shade), width, cv2.LINE_AA)
    for joint in Coco:
        if skeleton.known[joint]:
            _draw_joint(canvas, skeleton, joint, line_px)


def _draw_joint(
    canvas: UInt8[np.ndarray, "_ _ 3"], skeleton: _Skeleton, joint: Coco, line_px: int
) -> None:
    point = skeleton.points[joint].tolist()
    colour = _side_colour(joint, joint)
    # The five points of the head are close together.
    radius = line_px + 1 if joint > Coco.RIGHT_EAR else max(2, line_px - 1)
    if skeleton.bridged[joint]:
        corner, opposite = [c - radius for c in point], [c + radius for c in point]
        cv2.rectangle(canvas, corner, opposite, bgr(OUTLINE), 3)
        cv2.rectangle(canvas, corner, opposite, bgr(colour), 1)
    elif skeleton.sure[joint]:
        cv2.circle(canvas, point, radius + 1, bgr(OUTLINE), -1, cv2.LINE_AA)
        cv2.circle(canvas, point, radius, bgr(colour), -1, cv2.LINE_AA)
    else:
        cv2.circle(canvas, point, radius, bgr(_faint(colour)), 1, cv2.LINE_AA)


def _draw_box(
    canvas: UInt8[np.ndarray, "_ _ 3"], person: PersonFrame, scale: float, line_px: int
) -> None:
    if np.isfinite(person.box_px).all():
        x0, y0, x1, y1 = _scaled_box(person, scale)
        colour = bgr(identity_colour(person.track_id))
        cv2.rectangle(canvas, [x0, y0], [x1, y1], colour, max(1, line_px // 3))


def _draw_identity(
    canvas: UInt8[np.ndarray, "_ _ 3"],
    person: PersonFrame,
    scale: float,
    style: TextStyle,
    layout: LabelLayout,
) -> None:
    """Tag with the id on top of the person's box."""
    if not np.isfinite(person.box_px).all():
        return
    x0, y0, x1, _ = _scaled_box(person, scale)
    plate = identity_colour(person.track_id)
    label = Label(str(person.track_id), style.small, OUTLINE, plate)
    width, height = label.size
    draw_label(canvas, label, layout.place(((x0 + x1 - width) // 2, y0 - height), label.size))


def _draw_angles(
    canvas: UInt8[np.ndarray, "_ _ 3"],
    person: PersonFrame,
    skeleton: _Skeleton,
    style: TextStyle,
    layout: LabelLayout,
) -> None:
    """Angles beside their joints, on the side away from the middle of the body."""
    middle_x = _middle_x(skeleton)
    gap = 3 * style.line_px
    # Trusted ones first: they get the places next to their joints.
    order = sorted(LABELLED_ANGLES, key=lambda item: not _is_trusted(person, item[0]))
    for name, joint in order:
        value_deg = float(person.angles.values_deg[ANGLE_INDEX[name]])
        if not (np.isfinite(value_deg) and skeleton.known[joint]):
            continue
        trusted = _is_trusted(person, name)
        text = f"{value_deg:.0f}" if trusted else f"{value_deg:.0f}?"
        colour = _side_colour(joint, joint) if trusted else DIMMED_TEXT
        label = Label(text, style.small, colour, degrees=True)
        width, height = label.size
        x, y = skeleton.points[joint].tolist()
        left = x + gap if x >= middle_x else x - gap - width
        draw_label(canvas, label, layout.place((left, y - height // 2), label.size))


def _draw_counters(
    canvas: UInt8[np.ndarray, "_ _ 3"],
    people: Sequence[PersonFrame],
    style: TextStyle,
    layout: LabelLayout,
) -> None:
    """Large count, exercise and phase of those who are exercising, in the top left corner."""
    exercising = [person for person in people if person.exercise is not None]
    busiest = sorted(exercising, key=lambda p: (-p.n_repetitions, -_box_height_px(p)))
    y = style.margin_px
    for person in sorted(busiest[:MAX_COUNTERS], key=lambda p: p.track_id):
        large = style.large if len(exercising) == 1 else style.medium
        tag = identity_colour(person.track_id) if len(people) > 1 else None
        y += _draw_counter(canvas, person, y, (style, large, layout), tag) + style.margin_px


def _draw_counter(
    canvas: UInt8[np.ndarray, "_ _ 3"],
    person: PersonFrame,
    y: int,
    look: tuple[TextStyle, float, LabelLayout],
    tag: Rgb | None,
) -> int:
    """Draw one counter with its upper edge at `y`; returns its height in pixels."""
    style, large, layout = look
    title = (person.exercise or "").replace("_", " ").upper()
    count = Label(str(person.n_repetitions), large, OUTLINE if tag else CENTRE_COLOUR, tag)
    heading = Label(title, style.medium, CENTRE_COLOUR)
    phase = Label(person.phase.value, style.small, CENTRE_COLOUR)
    x = style.margin_px
    draw_label(canvas, count, layout.place((x, y), count.size))
    x += count.size[0] + style.margin_px // 2
    draw_label(canvas, heading, layout.place((x, y), heading.size))
    draw_label(canvas, phase, layout.place((x, y + heading.size[1]), phase.size))
    return max(count.size[1], heading.size[1] + phase.size[1])


def _draw_forms(
    canvas: UInt8[np.ndarray, "_ _ 3"],
    people: Sequence[PersonFrame],
    forms: Mapping[int, FormUpdate],
    look: tuple[TextStyle, LabelLayout],
) -> None:
    """Draw the latest score of each person and, while it is new, the cue, bottom left."""
    style, layout = look
    y = canvas.shape[0] - style.margin_px
    for person in people:
        form = forms.get(person.track_id)
        if form is None:
            continue
        tag = identity_colour(person.track_id) if len(people) > 1 else None
        for text in _form_lines(form, person.time_s):
            label = Label(text, style.medium, OUTLINE if tag else CENTRE_COLOUR, tag)
            y -= label.size[1]
            draw_label(canvas, label, layout.place((style.margin_px, y), label.size))


def _form_lines(form: FormUpdate, time_s: float) -> list[str]:
    """From the bottom up."""
    lines = []
    if form.cue is not None and time_s - form.cue.time_s < CUE_SHOWN_S:
        lines.append(form.cue.text.translate(_TO_ASCII))
    if form.score is not None and form.score.total is not None:
        lines.append(f"form {form.score.total:.0f}")
    return lines


def _middle_x(skeleton: _Skeleton) -> float:
    """Where the trunk is, or the known joints if the trunk is not known."""
    known = skeleton.points[skeleton.known & _TRUNK]
    if not len(known):
        known = skeleton.points[skeleton.known]
    return float(known[:, 0].mean()) if len(known) else 0.0


def _is_trusted(person: PersonFrame, angle: str) -> bool:
    return bool(person.angles.trusted[ANGLE_INDEX[angle]])


def _scaled_box(person: PersonFrame, scale: float) -> tuple[int, int, int, int]:
    box: Float[np.ndarray, "4"] = np.clip(person.box_px * scale, -10_000, 10_000)
    x0, y0, x1, y1 = (round(value) for value in box.tolist())
    return x0, y0, x1, y1


def _box_height_px(person: PersonFrame) -> float:
    return float(person.box_px[3] - person.box_px[1])


def _side_colour(a: Coco, b: Coco) -> Rgb:
    """Colour of a bone from `a` to `b`: of a side if both ends are on it."""
    sides = {joint.name.split("_")[0] for joint in (a, b)}
    if sides == {"LEFT"}:
        return LEFT_COLOUR
    return RIGHT_COLOUR if sides == {"RIGHT"} else CENTRE_COLOUR


def _faint(colour: Rgb) -> Rgb:
    """Half way to mid grey."""
    red, green, blue = ((channel + 120) // 2 for channel in colour)
    return red, green, blue
